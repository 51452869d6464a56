"""Activations to int8, row by row, after a norm or without one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nearbank.compiled import compiled, compiled_part
from nearbank.kernels.reference.norm import NORM_LANES, NORMS

Floats = npt.NDArray[np.float32]


@compiled_part(error_model="numpy")
def _quantise_row(x, codes):  # type: ignore[no-untyped-def]
    """One row → its codes; returns (scale, sum of codes), scale NaN for a row with NaN or infinity."""
    peak = np.float32(0)
    bad = False
    for k in range(x.shape[0]):
        peak = max(peak, abs(x[k]))
        bad |= not (abs(x[k]) <= np.float32(3.5e38))
    scale = np.float32(np.nan) if bad else peak / np.float32(127)
    total = np.int32(0)
    for k in range(x.shape[0]):
        code = np.float32(0)
        if scale > 0:
            code = min(max(np.rint(x[k] / scale), np.float32(-127)), np.float32(127))
        codes[k] = np.int8(code)
        total += np.int32(code)
    return scale, total


@compiled(nogil=True, error_model="numpy")
def _quantise(x, codes, scales, sums):  # type: ignore[no-untyped-def]
    for m in range(x.shape[0]):
        scales[m], sums[m] = _quantise_row(x[m], codes[m])


@compiled_part(error_model="numpy")
def _fold(lanes):  # type: ignore[no-untyped-def]
    half = NORM_LANES // 2
    while half > 0:
        for i in range(half):
            lanes[i] += lanes[i + half]
        half //= 2
    return lanes[0]


@compiled_part(error_model="numpy")
def _sum_away(x, centre, squared, lanes):  # type: ignore[no-untyped-def]
    """Σ x, or Σ (x − centre)², in the order of `reference.norm`."""
    lanes[:] = 0
    for first in range(0, x.shape[0], NORM_LANES):
        part = x[first : first + NORM_LANES]
        for i in range(part.shape[0]):
            away = part[i] - centre
            lanes[i] += away * away if squared else part[i]
    return _fold(lanes)


@compiled(nogil=True, error_model="numpy")
def _quantise_normed(x, centred, gain, bias, epsilon, codes, scales, sums):  # type: ignore[no-untyped-def]
    """`gain` and `bias` are empty where there are none. A row stays in the first-level cache meanwhile."""
    rows, cols = x.shape
    lanes, row = np.empty(NORM_LANES, np.float32), np.empty(cols, np.float32)
    for m in range(rows):
        centre = np.float32(0)
        if centred:
            centre = _sum_away(x[m], centre, False, lanes) / np.float32(cols)
        mean = _sum_away(x[m], centre, True, lanes) / np.float32(cols)
        factor = np.float32(1) / np.sqrt(mean + epsilon)
        if not np.isfinite(mean):
            factor = np.float32(np.nan)
        for k in range(cols):
            row[k] = (x[m, k] - centre) * factor
        if gain.shape[0] > 0:
            for k in range(cols):
                row[k] *= gain[k]
        if bias.shape[0] > 0:
            for k in range(cols):
                row[k] += bias[k]
        scales[m], sums[m] = _quantise_row(row, codes[m])


def quantise_normed(
    x: Floats, norm: str, gain: Floats | None, bias: Floats | None, epsilon: np.float32
) -> tuple[npt.NDArray[np.int8], Floats, npt.NDArray[np.int32]]:
    """`quantise_rows` of `nearbank.kernels.reference.norm.normed`, in one kernel."""
    codes, scales = np.empty(x.shape, np.int8), np.empty(x.shape[0], np.float32)
    sums, none = np.empty(x.shape[0], np.int32), np.zeros(0, np.float32)
    vectors = none if gain is None else gain, none if bias is None else bias
    _quantise_normed(x, norm == NORMS[1], *vectors, epsilon, codes, scales, sums)
    return codes, scales, sums


def quantise_rows(x: Floats) -> tuple[npt.NDArray[np.int8], Floats, npt.NDArray[np.int32]]:
    """x [M, K] → int8 codes, scales max|x| / 127 [M] (NaN for a row with NaN or infinity), sums of codes [M]."""
    codes, scales = np.empty(x.shape, np.int8), np.empty(x.shape[0], np.float32)
    sums = np.empty(x.shape[0], np.int32)
    _quantise(x, codes, scales, sums)
    return codes, scales, sums

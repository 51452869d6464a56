"""Activations to int8, one pass over each row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float32]


@njit(cache=True, nogil=True, error_model="numpy")
def _quantise(x, codes, scales, sums):  # type: ignore[no-untyped-def]
    for m in range(x.shape[0]):
        peak = np.float32(0)
        bad = False
        for k in range(x.shape[1]):
            peak = max(peak, abs(x[m, k]))
            bad |= not (abs(x[m, k]) <= np.float32(3.5e38))
        scale = np.float32(np.nan) if bad else peak / np.float32(127)
        scales[m] = scale
        total = np.int32(0)
        for k in range(x.shape[1]):
            code = np.float32(0)
            if scale > 0:
                code = min(max(np.rint(x[m, k] / scale), np.float32(-127)), np.float32(127))
            codes[m, k] = np.int8(code)
            total += np.int32(code)
        sums[m] = total


def quantise_rows(x: Floats) -> tuple[npt.NDArray[np.int8], Floats, npt.NDArray[np.int32]]:
    """x [M, K] → int8 codes, scales max|x| / 127 [M] (NaN for a row with NaN or infinity), sums of codes [M]."""
    codes, scales = np.empty(x.shape, np.int8), np.empty(x.shape[0], np.float32)
    sums = np.empty(x.shape[0], np.int32)
    _quantise(x, codes, scales, sums)
    return codes, scales, sums

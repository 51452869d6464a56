"""Matrix multiplication with packed weights: the definition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.kernels.packed import PackedMatrix
from nearbank.kernels.reference.lanes import lane_dot

Floats = npt.NDArray[np.float32]

# Integers up to 2²⁴ are exact in float32, so a BLAS product whose sums stay below is exact too.
EXACT_IN_FLOAT32 = 1 << 24


@dataclass(frozen=True)
class Unpacked:
    """Integer levels (or float weights) [N, K] as floats, scales [N, groups], and each group's columns."""

    values: npt.NDArray[Any]
    scales: Floats
    groups: tuple[slice, ...]


def prepare(packed: PackedMatrix) -> Unpacked:
    """Unpack to floats that hold the integer levels exactly."""
    rows, cols = packed.shape
    if packed.format.is_float:
        return Unpacked(packed.dequantise(), np.ones((rows, 1), np.float32), (slice(0, cols),))
    levels = packed.levels()
    assert packed.scales is not None
    width = packed.format.scaling.group if packed.format.scaling.per == "group" else cols
    groups = tuple(slice(k, min(k + width, cols)) for k in range(0, cols, width))
    largest = int(np.abs(levels).max()) * 128 * min(width, cols)
    dtype = np.float32 if largest < EXACT_IN_FLOAT32 else np.float64
    scales = np.broadcast_to(packed.scales, (rows, len(groups)))
    return Unpacked(levels.astype(dtype), np.ascontiguousarray(scales), groups)


def matmul_codes(codes: npt.NDArray[np.int8], scales: Floats, sums: npt.NDArray[np.int32], state: Unpacked) -> Floats:
    """Σ over groups, in order, of float32(exact integer sum) · (activation scale · weight scale)."""
    y = np.zeros((codes.shape[0], state.values.shape[0]), dtype=np.float32)
    x = codes.astype(state.values.dtype)
    for g, columns in enumerate(state.groups):
        exact = (x[:, columns] @ state.values[:, columns].T).astype(np.float32)
        y = y + exact * (scales[:, None] * state.scales[:, g])
    return y


def matmul_floats(x: Floats, state: Unpacked) -> Floats:
    """Σ over groups, in order, of (lane-ordered Σ x · level) · weight scale."""
    y = np.zeros((x.shape[0], state.values.shape[0]), dtype=np.float32)
    values = state.values.astype(np.float32, copy=False)
    for m in range(x.shape[0]):
        for g, columns in enumerate(state.groups):
            y[m] = y[m] + lane_dot(x[m, columns], values[:, columns]) * state.scales[:, g]
    return y

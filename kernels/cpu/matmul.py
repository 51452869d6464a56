"""Matrix multiplication with packed weights: plain loops over int8 levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from nearbank.kernels.packed import PackedMatrix

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Levels:
    """Integer levels int8 (or float32 weights) [N, K], scales [N, groups], columns per group."""

    values: npt.NDArray[Any]
    scales: Floats
    width: int


def prepare(packed: PackedMatrix) -> Levels:
    """Unpack to one byte per level."""
    rows, cols = packed.shape
    if packed.format.is_float:
        return Levels(packed.dequantise(), np.ones((rows, 1), np.float32), cols)
    assert packed.scales is not None
    width = packed.format.scaling.group if packed.format.scaling.per == "group" else cols
    groups = -(-cols // width)
    scales = np.ascontiguousarray(np.broadcast_to(packed.scales, (rows, groups)))
    return Levels(packed.levels().astype(np.int8), scales, width)


@njit(cache=True, nogil=True)
def _matmul_codes(codes, scales, values, weight_scales, width, y):  # type: ignore[no-untyped-def]
    for n in range(values.shape[0]):
        for m in range(codes.shape[0]):
            total = np.float32(0)
            for g in range(weight_scales.shape[1]):
                exact = np.int32(0)
                for k in range(g * width, min((g + 1) * width, values.shape[1])):
                    exact += np.int32(codes[m, k]) * np.int32(values[n, k])
                total += np.float32(exact) * (scales[m] * weight_scales[n, g])
            y[m, n] = total


@njit(cache=True, nogil=True)
def _matmul_floats(x, values, weight_scales, width, y, lanes):  # type: ignore[no-untyped-def]
    for n in range(values.shape[0]):
        for m in range(x.shape[0]):
            total = np.float32(0)
            for g in range(weight_scales.shape[1]):
                first, last = g * width, min((g + 1) * width, values.shape[1])
                lanes[:] = 0
                whole = first + (last - first) // 16 * 16
                for k in range(first, whole, 16):
                    for lane in range(16):
                        lanes[lane] += x[m, k + lane] * np.float32(values[n, k + lane])
                for k in range(whole, last):
                    lanes[k - whole] += x[m, k] * np.float32(values[n, k])
                for half in (8, 4, 2, 1):
                    for lane in range(half):
                        lanes[lane] += lanes[lane + half]
                total += lanes[0] * weight_scales[n, g]
            y[m, n] = total


def matmul_codes(
    codes: npt.NDArray[np.int8], scales: Floats, sums: npt.NDArray[np.int32], state: Levels
) -> Floats:
    """Integer activations [M, K] times integer weights → [M, N]."""
    y = np.empty((codes.shape[0], state.values.shape[0]), np.float32)
    _matmul_codes(codes, scales, state.values, state.scales, state.width, y)
    return y


def matmul_floats(x: Floats, state: Levels) -> Floats:
    """Float activations [M, K] times weights of any format → [M, N]."""
    y = np.empty((x.shape[0], state.values.shape[0]), np.float32)
    _matmul_floats(x, state.values, state.scales, state.width, y, np.zeros(16, np.float32))
    return y

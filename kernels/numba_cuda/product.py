"""Products of packed weights: they stay packed as they lie in a file and are unpacked where they are used.

Base 3 becomes two bits per weight, and float weights become float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.formats import FORMATS, Format
from nearbank.kernels.numba_cuda.device import LANES, THREADS, add, check_device, cuda, f32, fold, i32, mul
from nearbank.kernels.packed import PackedMatrix

Floats = npt.NDArray[np.float32]


@cuda.jit(device=True)
def code_at(row, k, bits):  # type: ignore[no-untyped-def]
    """Code k of a packed row: 8 / bits codes per byte, low bits first; 8 bits are signed."""
    if bits == 8:
        byte = i32(row[k])
        return byte - 256 if byte > 127 else byte
    per_byte = 8 // bits
    return (i32(row[k // per_byte]) >> (k % per_byte * bits)) & ((1 << bits) - 1)


@cuda.jit
def matmul_codes_kernel(packed, scales, zeros, numbers, codes, x_scales, y):  # type: ignore[no-untyped-def]
    """One block per output (row n, token m): threads add every THREADS-th column of a group, then a tree."""
    n, m, t = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    bits, step, zero, width = numbers[0], numbers[1], numbers[2], numbers[3]
    sums = cuda.shared.array(THREADS, np.int32)
    cols, scale_row = codes.shape[1], n % scales.shape[0]
    total = f32(0)
    for g in range(scales.shape[1]):
        offset = zero if zeros.shape[0] == 0 else i32(zeros[scale_row, g])
        mine = i32(0)
        for k in range(g * width + t, min((g + 1) * width, cols), THREADS):
            mine += i32(codes[m, k]) * (step * code_at(packed[n], k, bits) - offset)
        sums[t] = mine
        fold(sums, THREADS)
        total = add(total, mul(f32(sums[0]), mul(x_scales[m], scales[scale_row, g])))
        cuda.syncthreads()
    if t == 0:
        y[m, n] = total


@cuda.jit
def matmul_floats_kernel(packed, weights, scales, zeros, numbers, x, y):  # type: ignore[no-untyped-def]
    """One block of 16 threads per output, thread l being lane l: columns l, l + 16, … one after the other."""
    n, m, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    bits, step, zero, width = numbers[0], numbers[1], numbers[2], numbers[3]
    sums = cuda.shared.array(LANES, np.float32)
    cols, scale_row = x.shape[1], n % scales.shape[0]
    total = f32(0)
    for g in range(scales.shape[1]):
        offset = zero if zeros.shape[0] == 0 else i32(zeros[scale_row, g])
        mine = f32(0)
        for k in range(g * width + lane, min((g + 1) * width, cols), LANES):
            weight = weights[n, k] if bits == 32 else f32(step * code_at(packed[n], k, bits) - offset)
            mine = add(mine, mul(x[m, k], weight))
        sums[lane] = mine
        fold(sums, LANES)
        total = add(total, mul(sums[0], scales[scale_row, g]))
        cuda.syncthreads()
    if lane == 0:
        y[m, n] = total


@dataclass(frozen=True)
class DeviceWeights:
    """Packed rows, scales and zeros on the device; `numbers` is bits, step, zero, group width."""

    format: Format
    shape: tuple[int, int]
    packed: Any = field(repr=False)
    weights: Any = field(repr=False)
    scales: Any = field(repr=False)
    zeros: Any = field(repr=False)
    numbers: Any = field(repr=False)


def prepare(packed: PackedMatrix) -> DeviceWeights:
    """Copy weights to the device. Base 3 becomes two bits per weight, float weights become float32."""
    check_device()
    packed = packed.in_even_fields()
    fmt, (rows, cols) = packed.format, packed.shape
    if fmt.is_float:
        numbers = np.array([32, 1, 0, cols], np.int32)
        scales, codes, weights = (
            np.ones((1, 1), np.float32),
            np.zeros((rows, 0), np.uint8),
            packed.dequantise(),
        )
    else:
        stored = packed.packed
        if fmt.name == "ternary-b3":
            stored = FORMATS["ternary"].pack(packed.quantised().codes)
        else:
            packed.quantised()  # raises on codes that the format does not have
        width = fmt.scaling.group if fmt.scaling.per == "group" else cols
        bits = 2 if fmt.name == "ternary-b3" else int(fmt.code_bits)
        numbers = np.array([bits, fmt.step, fmt.zero, width], np.int32)
        assert packed.scales is not None
        scales, codes, weights = packed.scales, stored, np.zeros((0, 0), np.float32)
    zeros = np.zeros((0, 0), np.uint8) if packed.zeros is None else packed.zeros
    arrays = (cuda.to_device(np.ascontiguousarray(a)) for a in (codes, weights, scales, zeros, numbers))
    return DeviceWeights(fmt, packed.shape, *arrays)


def matmul_codes(
    codes: npt.NDArray[np.int8], scales: Floats, sums: npt.NDArray[np.int32], state: DeviceWeights
) -> Floats:
    """Integer activations [M, K] times prepared integer weights → [M, N]."""
    y = cuda.to_device(np.full((codes.shape[0], state.shape[0]), np.nan, np.float32))
    given = cuda.to_device(codes), cuda.to_device(scales)
    grid = state.shape[0], codes.shape[0]
    matmul_codes_kernel[grid, THREADS](state.packed, state.scales, state.zeros, state.numbers, *given, y)
    return np.asarray(y.copy_to_host())


def matmul_floats(x: Floats, state: DeviceWeights) -> Floats:
    """Float activations [M, K] times prepared weights of any format → [M, N]."""
    y = cuda.to_device(np.full((x.shape[0], state.shape[0]), np.nan, np.float32))
    weights = state.packed, state.weights, state.scales, state.zeros, state.numbers
    matmul_floats_kernel[(state.shape[0], x.shape[0]), LANES](*weights, cuda.to_device(x), y)
    return np.asarray(y.copy_to_host())

"""Rounding: rows of activations to int8, and the two ways to bfloat16 that a cache's scale and offset need."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from nearbank.kernels.numba_cuda.device import (
    THREADS,
    add,
    as_bits,
    as_float,
    check_device,
    cuda,
    div,
    f32,
    fold,
    i32,
)

Floats = npt.NDArray[np.float32]


@cuda.jit(device=True)
def round_even(x):  # type: ignore[no-untyped-def]
    """Nearest integer, ties to even, for |x| < 2²²: adding 1.5 · 2²³ leaves no bits behind the point."""
    return add(add(x, f32(12582912.0)), f32(-12582912.0))


@cuda.jit(device=True)
def floor_bf16(x):  # type: ignore[no-untyped-def]
    """Bits of the largest bfloat16 not above x: drop 16 bits, away from zero when negative."""
    bits = as_bits(x)
    return ((bits + (0xFFFF if bits < 0 else 0)) >> 16) & 0xFFFF


@cuda.jit(device=True)
def ceil_bf16(x):  # type: ignore[no-untyped-def]
    """Bits of the smallest bfloat16 not below x ≥ 0."""
    return ((as_bits(x) + 0xFFFF) >> 16) & 0xFFFF


@cuda.jit(device=True)
def nearest_bf16(x):  # type: ignore[no-untyped-def]
    """Bits of the nearest bfloat16, ties to even."""
    bits = as_bits(x)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF


@cuda.jit(device=True)
def from_bf16(bits):  # type: ignore[no-untyped-def]
    """The float32 behind bfloat16 bits."""
    return as_float(i32(i32(bits) << 16))


@cuda.jit
def quantise_kernel(x, codes, scales, sums):  # type: ignore[no-untyped-def]
    """One block per row: the largest magnitude by a tree, then every thread rounds its columns."""
    m, t = cuda.blockIdx.x, cuda.threadIdx.x
    peaks = cuda.shared.array(THREADS, np.float32)
    parts = cuda.shared.array(THREADS, np.int32)
    peak, bad = f32(0), False
    for k in range(t, x.shape[1], THREADS):
        peak = max(peak, abs(x[m, k]))
        bad = bad or not abs(x[m, k]) <= f32(3.4028235e38)
    peaks[t] = f32(math.inf) if bad else peak
    half = THREADS // 2
    while half > 0:
        cuda.syncthreads()
        if t < half:
            peaks[t] = max(peaks[t], peaks[t + half])
        half //= 2
    cuda.syncthreads()
    scale = f32(math.nan) if peaks[0] == f32(math.inf) else div(peaks[0], f32(127))
    mine = i32(0)
    for k in range(t, x.shape[1], THREADS):
        code = f32(0)
        if scale > f32(0):
            code = round_even(min(max(div(x[m, k], scale), f32(-127)), f32(127)))
        codes[m, k] = np.int8(code)
        mine += i32(code)
    parts[t] = mine
    fold(parts, THREADS)
    if t == 0:
        scales[m], sums[m] = scale, parts[0]


def quantise_rows(x: Floats) -> tuple[npt.NDArray[np.int8], Floats, npt.NDArray[np.int32]]:
    """x [M, K] → int8 codes [M, K], scales [M] (NaN where the row is not finite), sums of codes [M]."""
    check_device()
    codes, scales = cuda.to_device(np.zeros(x.shape, np.int8)), cuda.to_device(np.zeros(len(x), np.float32))
    sums = cuda.to_device(np.zeros(len(x), np.int32))
    quantise_kernel[len(x), THREADS](cuda.to_device(x), codes, scales, sums)
    return codes.copy_to_host(), scales.copy_to_host(), sums.copy_to_host()

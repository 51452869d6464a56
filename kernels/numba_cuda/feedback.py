"""Rounding with errors fed back: a thread per range of codes. Bits of `nearbank.kernels.reference.feedback`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.kernels.numba_cuda.device import THREADS, add, cuda, div, f32, i32, mul
from nearbank.kernels.numba_cuda.rounding import ceil_bf16, floor_bf16, from_bf16, round_even
from nearbank.kernels.reference.feedback import ranges
from nearbank.kernels.store import PAGE

Floats = npt.NDArray[np.float32]
RANGES = len(ranges())


@cuda.jit(device=True)
def range_of(values, below, above, top):  # type: ignore[no-untyped-def]
    """Bits of the scale and the offset that cover a token's range but for what is left out at either end."""
    least = most = values[0]
    for d in range(values.shape[0]):
        least, most = min(least, values[d]), max(most, values[d])
    least, most = add(least, f32(0)), add(most, f32(0))  # no zero is negative
    low = add(least, add(mul(below, most), -mul(below, least)))
    high = add(most, -add(mul(above, most), -mul(above, least)))
    offset_bits = floor_bf16(low)
    return ceil_bf16(div(add(high, -from_bf16(offset_bits)), top)), offset_bits


@cuda.jit(device=True)
def round_fed_back(x, shares, weights, top):  # type: ignore[no-untyped-def]
    """x [D] in steps → codes, in place; returns what they cost in squared steps."""
    cost = f32(0)
    for k in range(x.shape[0]):
        code = round_even(min(max(x[k], f32(0)), top))
        error = add(x[k], -code)
        for j in range(k + 1, x.shape[0]):
            x[j] = add(x[j], -mul(shares[k, j], error))
        weighted = mul(error, weights[k])
        cost = add(cost, mul(weighted, weighted))
        x[k] = code
    return cost


@cuda.jit
def feed_back_kernel(given, shares, weights, trims, rows, params, table, layer, start, bits, codes):  # type: ignore[no-untyped-def]
    """One block per (token, head) tries a range per thread, in codes [T, heads, ranges, D], and packs the cheapest."""
    token, head, t = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    costs = cuda.shared.array(RANGES, np.float32)
    found = cuda.shared.array((RANGES, 2), np.int32)
    values, top = given[token, head], f32((1 << bits) - 1)
    for r in range(t, RANGES, THREADS):
        scale_bits, offset_bits = range_of(values, trims[r, 0], trims[r, 1], top)
        scale, offset = from_bf16(scale_bits), from_bf16(offset_bits)
        inverse = div(f32(1), scale) if scale != f32(0) else f32(0)
        x = codes[token, head, r]
        for d in range(values.shape[0]):
            x[d] = mul(add(values[d], -offset), inverse)
        costs[r] = mul(mul(round_fed_back(x, shares[head], weights[head], top), scale), scale)
        found[r, 0], found[r, 1] = scale_bits, offset_bits
    cuda.syncthreads()
    best = 0
    for r in range(1, RANGES):
        if costs[r] < costs[best]:
            best = r
    page, slot = table[(start + token) // PAGE], (start + token) % PAGE
    row, x, per_byte = rows[layer, page, head, slot], codes[token, head, best], 8 // bits
    for b in range(t, row.shape[0], THREADS):
        byte = 0
        for place in range(per_byte):
            d = b // 16 * 16 * per_byte + place * 16 + b % 16
            if d < values.shape[0]:
                byte |= i32(x[d]) << (place * bits)
        row[b] = byte
    if t == 0:
        params[layer, page, head, slot, 0], params[layer, page, head, slot, 1] = found[best, 0], found[best, 1]


def write_fed_back(pages: Any, memory: tuple[Any, Any], layer: int, start: int, new: Floats, feedback: Any) -> None:
    """new [T, kv heads, head_dim] → a layer's rows and params. feedback: shares and weights, on the device."""
    tokens, heads, dim = new.shape
    codes = cuda.device_array((tokens, heads, RANGES, dim), np.float32)
    arguments = (*feedback, cuda.to_device(ranges()), *memory, pages.table, layer, start, pages.bits, codes)
    feed_back_kernel[(tokens, heads), THREADS](cuda.to_device(new), *arguments)

"""The KV cache: a thread per row appends, a block per query head attends."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels.numba_cuda.device import LANES, THREADS, add, as_float, check_device, cuda, div, f32, i32, mul
from nearbank.kernels.numba_cuda.rounding import ceil_bf16, floor_bf16, from_bf16, nearest_bf16, round_even
from nearbank.kernels.store import PAGE, ROW_DTYPE, row_length

Floats = npt.NDArray[np.float32]
CACHE_FORMATS = ("fp32", "bf16", "int8", "int4", "int2")


@cuda.jit(device=True)
def value_at(row, d, bits):  # type: ignore[no-untyped-def]
    """Value d of a cache row: a float, or a code from blocks of 16 bytes that hold 16 neighbours per bit field."""
    if bits == 32:
        return f32(row[d])
    if bits == 16:
        return from_bf16(row[d])
    per_byte = 8 // bits
    inside = d % (16 * per_byte)
    byte = i32(row[d // (16 * per_byte) * 16 + inside % 16])
    return f32((byte >> (inside // 16 * bits)) & ((1 << bits) - 1))


@cuda.jit
def append_kernel(given, rows, params, table, layer, start, bits):  # type: ignore[no-untyped-def]
    """One thread per (token, head) writes its whole row, once: the range first, then the codes."""
    index = cuda.grid(1)
    tokens, heads, dim = given.shape
    if index >= tokens * heads:
        return
    t, head = index // heads, index % heads
    page, slot = table[(start + t) // PAGE], (start + t) % PAGE
    row = rows[layer, page, head, slot]
    if bits >= 16:
        for d in range(dim):
            row[d] = given[t, head, d] if bits == 32 else nearest_bf16(given[t, head, d])
        return
    least = most = given[t, head, 0]
    for d in range(dim):
        least, most = min(least, given[t, head, d]), max(most, given[t, head, d])
    top = f32((1 << bits) - 1)
    offset_bits = floor_bf16(least)
    offset = from_bf16(offset_bits)
    scale_bits = ceil_bf16(div(add(most, -offset), top))
    scale = from_bf16(scale_bits)
    per_byte = 8 // bits
    for b in range(row.shape[0]):
        byte = 0
        for place in range(per_byte):
            d = b // 16 * 16 * per_byte + place * 16 + b % 16
            if d < dim and scale != f32(0):
                code = round_even(div(add(given[t, head, d], -offset), scale))
                byte |= i32(min(max(code, f32(0)), top)) << (place * bits)
        row[b] = byte
    params[layer, page, head, slot, 0] = scale_bits
    params[layer, page, head, slot, 1] = offset_bits


@cuda.jit(device=True)
def exp_non_positive(x):  # type: ignore[no-untyped-def]
    """exp(x) for x ≤ 0 as `nearbank.kernels.reference.exponential` rounds it."""
    if x < f32(-87):
        return f32(0)
    n = add(add(mul(x, f32(1.4426950408889634)), f32(12582912)), f32(-12582912))
    r = add(add(x, -mul(n, f32(0.693359375))), -mul(n, f32(-2.12194440e-4)))
    p = f32(1.9875691500e-4)
    p = add(mul(p, r), f32(1.3981999507e-3))
    p = add(mul(p, r), f32(8.3334519073e-3))
    p = add(mul(p, r), f32(4.1665795894e-2))
    p = add(mul(p, r), f32(1.6666665459e-1))
    p = add(mul(p, r), f32(0.5))
    return mul(add(add(mul(p, mul(r, r)), r), f32(1)), as_float(i32((i32(n) + 127) << 23)))


@cuda.jit(device=True)
def lane_tree(lanes):  # type: ignore[no-untyped-def]
    """16 lane sums of one thread, folded."""
    half = LANES // 2
    while half > 0:
        for lane in range(half):
            lanes[lane] = add(lanes[lane], lanes[lane + half])
        half //= 2
    return lanes[0]


@cuda.jit
def attend_kernel(q, keys, key_params, values, value_params, table, layer, start, scale, bits, scores, out):  # type: ignore[no-untyped-def]
    """One block per (token, head), in three steps: a thread per key for the scores, the largest of them, and a
    thread per dimension for the weighted sum, page after page."""
    token, head, t = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    heads, dim, length = q.shape[1], q.shape[2], start + token + 1
    kv = head // (heads // keys.shape[2])
    lanes = cuda.local.array(LANES, np.float32)
    other = cuda.local.array(LANES, np.float32)
    peaks = cuda.shared.array(THREADS, np.float32)

    for lane in range(LANES):
        lanes[lane] = f32(0)
    for d in range(dim):
        lanes[d % LANES] = add(lanes[d % LANES], q[token, head, d])
    q_sum = lane_tree(lanes)
    peak = f32(-math.inf)
    for j in range(t, length, THREADS):
        page = table[j // PAGE]
        row, param = keys[layer, page, kv, j % PAGE], key_params[layer, page, kv, j % PAGE]
        for lane in range(LANES):
            lanes[lane] = f32(0)
        for d in range(dim):
            lanes[d % LANES] = add(lanes[d % LANES], mul(q[token, head, d], value_at(row, d, bits)))
        score = lane_tree(lanes)
        if bits < 16:
            score = add(mul(score, from_bf16(param[0])), mul(from_bf16(param[1]), q_sum))
        score = mul(score, scale)
        scores[token, head, j] = score
        peak = max(peak, score)
    peaks[t] = peak
    cuda.syncthreads()
    for i in range(THREADS):
        peak = max(peak, peaks[i])

    for d in range(t, dim, THREADS):
        total, offset, mass = f32(0), f32(0), f32(0)
        for first in range(0, length, PAGE):
            page, page_total = table[first // PAGE], f32(0)
            for lane in range(LANES):
                lanes[lane] = f32(0)
                other[lane] = f32(0)
            for j in range(first, min(first + PAGE, length)):
                weight = exp_non_positive(add(scores[token, head, j], -peak))
                param = value_params[layer, page, kv, j % PAGE]
                step = weight
                if bits < 16:
                    step = mul(weight, from_bf16(param[0]))
                    lanes[j % LANES] = add(lanes[j % LANES], mul(weight, from_bf16(param[1])))
                other[j % LANES] = add(other[j % LANES], weight)
                page_total = add(page_total, mul(step, value_at(values[layer, page, kv, j % PAGE], d, bits)))
            total = add(total, page_total)
            offset = add(offset, lane_tree(lanes))
            mass = add(mass, lane_tree(other))
        out[token, head, d] = div(add(total, offset), mass)


@dataclass(frozen=True)
class DevicePages:
    """Pages and table as in `nearbank.kernels.store`, on the device."""

    format: Format
    head_dim: int
    nbytes: int
    keys: Any = field(repr=False)
    values: Any = field(repr=False)
    key_params: Any = field(repr=False)
    value_params: Any = field(repr=False)
    table: Any = field(repr=False)

    @property
    def bits(self) -> int:
        """Bits of a stored value; 16 is bfloat16, 32 float32."""
        return int(self.format.code_bits)


def allocate(fmt: Format, layers: int, kv_heads: int, head_dim: int, capacity: int) -> DevicePages:
    """Zeroed pages for `capacity` tokens in each layer."""
    check_device()
    if fmt.name not in CACHE_FORMATS:
        raise NearbankError(f"backend 'numba-cuda': cache format {fmt.name}; supported: {', '.join(CACHE_FORMATS)}")
    shape = (layers, -(-capacity // PAGE), kv_heads, PAGE)
    rows = np.zeros((*shape, row_length(fmt, head_dim)), ROW_DTYPE.get(fmt.name, np.uint8))
    params = np.zeros((*shape, 2), np.uint16)
    size = 2 * rows.nbytes + 2 * params.nbytes
    table = np.arange(shape[1], dtype=np.int64)
    return DevicePages(fmt, head_dim, size, *(cuda.to_device(a) for a in (rows, rows, params, params, table)))


def with_pages(store: DevicePages, pages: list[int]) -> DevicePages:
    """The same memory as a sequence sees it that holds these pages, in this order."""
    return replace(store, table=cuda.to_device(np.array(pages or [0], np.int64)))


def append(store: DevicePages, layer: int, start: int, k: Floats, v: Floats) -> None:
    """Write k, v [T, kv heads, head_dim] at positions start …."""
    blocks = -(-k.shape[0] * k.shape[1] // THREADS)
    if blocks == 0:
        return
    for given, rows, params in ((k, store.keys, store.key_params), (v, store.values, store.value_params)):
        append_kernel[blocks, THREADS](cuda.to_device(given), rows, params, store.table, layer, start, store.bits)


def attend(store: DevicePages, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
    """Causal attention of q [T, heads, head_dim] at positions start …."""
    tokens, heads, _ = q.shape
    out = cuda.to_device(np.full(q.shape, np.nan, np.float32))
    scores = cuda.device_array((tokens, heads, start + tokens), np.float32)
    memory = store.keys, store.key_params, store.values, store.value_params, store.table
    attend_kernel[(tokens, heads), THREADS](
        cuda.to_device(q), *memory, layer, start, np.float32(scale), store.bits, scores, out
    )
    return np.asarray(out.copy_to_host())

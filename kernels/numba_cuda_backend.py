"""The CUDA kernels to learn from and to change in a notebook: plain Python, compiled by Numba for the GPU.

Same results, bit for bit, as `nearbank.kernels.reference`; not the speed of `nearbank.kernels.cupy_backend`.
Weights stay packed as they lie in a file (base-3 and floats excepted) and are unpacked where they are used.
With NUMBA_ENABLE_CUDASIM=1 all of it runs in Numba's simulator, without a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import FORMATS, Format
from nearbank.kernels.packed import PackedMatrix
from nearbank.kernels.store import PAGE, ROW_DTYPE, row_length

Floats = npt.NDArray[np.float32]
# Untyped on purpose: what this name holds depends on the simulator and on the package numba-cuda.
cuda: Any = import_module("numba.cuda")
SIMULATED = bool(import_module("numba.core.config").ENABLE_CUDASIM)
LANES = 16
THREADS = 4 if SIMULATED else 128  # of a block; the simulator's threads are Python's
CACHE_FORMATS = ("fp32", "bf16", "int8", "int4", "int2")
f32, i32 = np.float32, np.int32

# The compiler may turn a · b + c into one instruction with one rounding. These five never fuse.
if SIMULATED:

    @cuda.jit(device=True)
    def mul(a, b):  # type: ignore[no-untyped-def]
        return f32(a) * f32(b)

    @cuda.jit(device=True)
    def add(a, b):  # type: ignore[no-untyped-def]
        return f32(a) + f32(b)

    @cuda.jit(device=True)
    def div(a, b):  # type: ignore[no-untyped-def]
        return f32(np.divide(f32(a), f32(b)))

    @cuda.jit(device=True)
    def as_bits(a):  # type: ignore[no-untyped-def]
        return int(f32(a).view(np.int32))

    @cuda.jit(device=True)
    def as_float(bits):  # type: ignore[no-untyped-def]
        return np.int64(bits).astype(np.int32).view(np.float32)
else:
    libdevice: Any = import_module("numba.cuda.libdevice")
    mul, add, div = libdevice.fmul_rn, libdevice.fadd_rn, libdevice.fdiv_rn
    as_bits, as_float = libdevice.float_as_int, libdevice.int_as_float


@cuda.jit(device=True)
def round_even(x):  # type: ignore[no-untyped-def]
    """Nearest integer, ties to even, for |x| < 2²²: adding 1.5 · 2²³ leaves no bits behind the point."""
    return add(add(x, f32(12582912.0)), f32(-12582912.0))


@cuda.jit(device=True)
def fold(values, width):  # type: ignore[no-untyped-def]
    """The sum of values[0 … width) by a tree, over the threads of a block; right in values[0]."""
    t, half = cuda.threadIdx.x, width // 2
    while half > 0:
        cuda.syncthreads()
        if t < half:
            values[t] = values[t] + values[t + half]
        half //= 2
    cuda.syncthreads()


# ---------------------------------------------------------------- matrices


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
    _check_device()
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


def quantise_rows(x: Floats) -> tuple[npt.NDArray[np.int8], Floats, npt.NDArray[np.int32]]:
    """x [M, K] → int8 codes [M, K], scales [M] (NaN where the row is not finite), sums of codes [M]."""
    _check_device()
    codes, scales = cuda.to_device(np.zeros(x.shape, np.int8)), cuda.to_device(np.zeros(len(x), np.float32))
    sums = cuda.to_device(np.zeros(len(x), np.int32))
    quantise_kernel[len(x), THREADS](cuda.to_device(x), codes, scales, sums)
    return codes.copy_to_host(), scales.copy_to_host(), sums.copy_to_host()


# ---------------------------------------------------------------- the KV cache


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
def append_kernel(given, rows, params, layer, start, bits):  # type: ignore[no-untyped-def]
    """One thread per (token, head) writes its whole row, once: the range first, then the codes."""
    index = cuda.grid(1)
    tokens, heads, dim = given.shape
    if index >= tokens * heads:
        return
    t, head = index // heads, index % heads
    page, slot = (start + t) // PAGE, (start + t) % PAGE
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
def attend_kernel(q, keys, key_params, values, value_params, layer, start, scale, bits, scores, out):  # type: ignore[no-untyped-def]
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
        row, param = keys[layer, j // PAGE, kv, j % PAGE], key_params[layer, j // PAGE, kv, j % PAGE]
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
            page_total = f32(0)
            for lane in range(LANES):
                lanes[lane] = f32(0)
                other[lane] = f32(0)
            for j in range(first, min(first + PAGE, length)):
                weight = exp_non_positive(add(scores[token, head, j], -peak))
                param = value_params[layer, j // PAGE, kv, j % PAGE]
                step = weight
                if bits < 16:
                    step = mul(weight, from_bf16(param[0]))
                    lanes[j % LANES] = add(lanes[j % LANES], mul(weight, from_bf16(param[1])))
                other[j % LANES] = add(other[j % LANES], weight)
                page_total = add(page_total, mul(step, value_at(values[layer, j // PAGE, kv, j % PAGE], d, bits)))
            total = add(total, page_total)
            offset = add(offset, lane_tree(lanes))
            mass = add(mass, lane_tree(other))
        out[token, head, d] = div(add(total, offset), mass)


@dataclass(frozen=True)
class DevicePages:
    """Pages as in `nearbank.kernels.store`, on the device."""

    format: Format
    head_dim: int
    nbytes: int
    keys: Any = field(repr=False)
    values: Any = field(repr=False)
    key_params: Any = field(repr=False)
    value_params: Any = field(repr=False)

    @property
    def bits(self) -> int:
        """Bits of a stored value; 16 is bfloat16, 32 float32."""
        return int(self.format.code_bits)


def allocate(fmt: Format, layers: int, kv_heads: int, head_dim: int, capacity: int) -> DevicePages:
    """Zeroed pages for `capacity` tokens in each layer."""
    _check_device()
    if fmt.name not in CACHE_FORMATS:
        raise NearbankError(f"backend 'numba-cuda': cache format {fmt.name}; supported: {', '.join(CACHE_FORMATS)}")
    shape = (layers, -(-capacity // PAGE), kv_heads, PAGE)
    rows = np.zeros((*shape, row_length(fmt, head_dim)), ROW_DTYPE.get(fmt.name, np.uint8))
    params = np.zeros((*shape, 2), np.uint16)
    size = 2 * rows.nbytes + 2 * params.nbytes
    return DevicePages(fmt, head_dim, size, *(cuda.to_device(a) for a in (rows, rows, params, params)))


def append(store: DevicePages, layer: int, start: int, k: Floats, v: Floats) -> None:
    """Write k, v [T, kv heads, head_dim] at positions start …."""
    blocks = -(-k.shape[0] * k.shape[1] // THREADS)
    if blocks == 0:
        return
    for given, rows, params in ((k, store.keys, store.key_params), (v, store.values, store.value_params)):
        append_kernel[blocks, THREADS](cuda.to_device(given), rows, params, layer, start, store.bits)


def attend(store: DevicePages, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
    """Causal attention of q [T, heads, head_dim] at positions start …."""
    tokens, heads, _ = q.shape
    out = cuda.to_device(np.full(q.shape, np.nan, np.float32))
    scores = cuda.device_array((tokens, heads, start + tokens), np.float32)
    memory = store.keys, store.key_params, store.values, store.value_params
    attend_kernel[(tokens, heads), THREADS](
        cuda.to_device(q), *memory, layer, start, np.float32(scale), store.bits, scores, out
    )
    return np.asarray(out.copy_to_host())


def _check_device() -> None:
    if not SIMULATED and not cuda.is_available():
        raise NearbankError(
            "backend 'numba-cuda': Numba finds no CUDA device; set NUMBA_ENABLE_CUDASIM=1 to simulate, "
            "or use backend 'numba' or 'numpy'"
        )

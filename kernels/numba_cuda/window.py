"""Caches whose newest tokens are exact (`nearbank.kernels.window`): the exact rows lie beside the pages.

A thread per row or channel rounds, a block per query head attends. Bits of `nearbank.kernels.reference.windowed`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.cache_formats import Scheme
from nearbank.errors import NearbankError
from nearbank.kernels.numba_cuda.cache import (
    allocate,
    append_kernel,
    exp_non_positive,
    lane_tree,
    value_at,
)
from nearbank.kernels.numba_cuda.device import LANES, THREADS, add, cuda, div, f32, i32, mul
from nearbank.kernels.numba_cuda.feedback import write_fed_back
from nearbank.kernels.numba_cuda.rounding import ceil_bf16, floor_bf16, from_bf16, round_even
from nearbank.kernels.reference.feedback import Feedback
from nearbank.kernels.store import PAGE
from nearbank.kernels.window import Channels, Sizes

Floats = npt.NDArray[np.float32]
WINDOWED = ("int8", "int4", "int2")


@cuda.jit(device=True)
def channel_code(value, scale, offset, top):  # type: ignore[no-untyped-def]
    """The code of a value under a channel's scale and offset."""
    if scale == f32(0):
        return 0
    return i32(min(max(round_even(div(add(value, -offset), scale)), f32(0)), top))


@cuda.jit
def round_groups_kernel(exact, first, rows, params, layer, group, size, bits):  # type: ignore[no-untyped-def]
    """One block per (finished group, head): a thread per channel finds its range, then a thread per byte packs.

    exact [heads, tokens, D] from position `first`; params [layers, pages, heads, groups in a page, 2, D].
    """
    head, t = cuda.blockIdx.y, cuda.threadIdx.x
    begin = (group + cuda.blockIdx.x) * size
    page, slot = begin // PAGE, begin % PAGE
    param, dim = params[layer, page, head, slot // size], exact.shape[2]
    top = f32((1 << bits) - 1)
    for d in range(t, dim, THREADS):
        least = most = exact[head, begin - first, d]
        for i in range(size):
            least, most = min(least, exact[head, begin - first + i, d]), max(most, exact[head, begin - first + i, d])
        offset_bits = floor_bf16(least)
        param[0, d] = ceil_bf16(div(add(most, -from_bf16(offset_bits)), top))
        param[1, d] = offset_bits
    cuda.syncthreads()
    per_byte, row_bytes = 8 // bits, rows.shape[4]
    for place in range(t, size * row_bytes, THREADS):
        i, b = place // row_bytes, place % row_bytes
        byte = 0
        for part in range(per_byte):
            d = b // 16 * 16 * per_byte + part * 16 + b % 16
            if d < dim:
                scale, offset = from_bf16(param[0, d]), from_bf16(param[1, d])
                byte |= channel_code(exact[head, begin - first + i, d], scale, offset, top) << (part * bits)
        rows[layer, page, head, slot + i, b] = byte


@cuda.jit(device=True)
def past_score(q, row, param, channels, by_channel, q_sum, bits, lanes):  # type: ignore[no-untyped-def]
    """The score of a rounded key: scale and offset per token (`param`), or per channel (`channels` [2, D])."""
    for lane in range(LANES):
        lanes[lane] = f32(0)
    for d in range(q.shape[0]):
        factor = mul(q[d], from_bf16(channels[0, d])) if by_channel else q[d]
        lanes[d % LANES] = add(lanes[d % LANES], mul(factor, value_at(row, d, bits)))
    dot = lane_tree(lanes)
    if not by_channel:
        return add(mul(dot, from_bf16(param[0])), mul(from_bf16(param[1]), q_sum))
    for lane in range(LANES):
        lanes[lane] = f32(0)
    for d in range(q.shape[0]):
        lanes[d % LANES] = add(lanes[d % LANES], mul(q[d], from_bf16(channels[1, d])))
    return add(dot, lane_tree(lanes))


@cuda.jit(device=True)
def exact_score(q, key, lanes):  # type: ignore[no-untyped-def]
    """The score of an exact key."""
    for lane in range(LANES):
        lanes[lane] = f32(0)
    for d in range(q.shape[0]):
        lanes[d % LANES] = add(lanes[d % LANES], mul(q[d], key[d]))
    return lane_tree(lanes)


@cuda.jit
def scores_kernel(q, keys, params, channels, exact, first, bounds, key_group, layer, start, scale, bits, scores):  # type: ignore[no-untyped-def]
    """One block per (token, head), a thread per key; bounds [T, 2]: keys and values this token sees rounded."""
    token, head = cuda.blockIdx.x, cuda.blockIdx.y
    length, kv = start + token + 1, head // (q.shape[1] // keys.shape[2])
    lanes = cuda.local.array(LANES, np.float32)
    mine = q[token, head]
    for lane in range(LANES):
        lanes[lane] = f32(0)
    for d in range(mine.shape[0]):
        lanes[d % LANES] = add(lanes[d % LANES], mine[d])
    q_sum = lane_tree(lanes)
    for j in range(cuda.threadIdx.x, length, THREADS):
        page, slot = j // PAGE, j % PAGE
        if j < bounds[token, 0]:
            group = slot // key_group if key_group > 0 else 0
            channel = channels[layer, page, kv, group] if key_group > 0 else channels[0, 0, 0, 0]
            score = past_score(
                mine, keys[layer, page, kv, slot], params[layer, page, kv, slot], channel, key_group > 0, q_sum, bits,
                lanes,
            )  # fmt: skip
        else:
            score = exact_score(mine, exact[kv, j - first], lanes)
        scores[token, head, j] = mul(score, scale)


@cuda.jit
def context_kernel(values, params, exact, first, bounds, layer, start, bits, scores, out):  # type: ignore[no-untyped-def]
    """One block per (token, head), a thread per dimension: page after page, then the exact values."""
    token, head = cuda.blockIdx.x, cuda.blockIdx.y
    length, kv = start + token + 1, head // (out.shape[1] // values.shape[2])
    lanes = cuda.local.array(LANES, np.float32)
    other = cuda.local.array(LANES, np.float32)
    peak, rounded = f32(-math.inf), bounds[token, 1]
    for j in range(length):
        peak = max(peak, scores[token, head, j])
    for d in range(cuda.threadIdx.x, out.shape[2], THREADS):
        total, offset, mass = f32(0), f32(0), f32(0)
        for begin in range(0, rounded, PAGE):
            page_total = f32(0)
            for lane in range(LANES):
                lanes[lane] = f32(0)
                other[lane] = f32(0)
            for j in range(begin, min(begin + PAGE, rounded)):
                weight = exp_non_positive(add(scores[token, head, j], -peak))
                param = params[layer, j // PAGE, kv, j % PAGE]
                lanes[j % LANES] = add(lanes[j % LANES], mul(weight, from_bf16(param[1])))
                other[j % LANES] = add(other[j % LANES], weight)
                code = value_at(values[layer, j // PAGE, kv, j % PAGE], d, bits)
                page_total = add(page_total, mul(mul(weight, from_bf16(param[0])), code))
            total = add(total, page_total)
            offset = add(offset, lane_tree(lanes))
            mass = add(mass, lane_tree(other))
        near = f32(0)
        for lane in range(LANES):
            other[lane] = f32(0)
        for j in range(rounded, length):
            weight = exp_non_positive(add(scores[token, head, j], -peak))
            other[(j - rounded) % LANES] = add(other[(j - rounded) % LANES], weight)
            near = add(near, mul(weight, exact[kv, j - first, d]))
        out[token, head, d] = div(add(add(total, near), offset), add(mass, lane_tree(other)))


def _on_device(feedback: Feedback | None) -> tuple[Any, Any] | None:
    return None if feedback is None else (cuda.to_device(feedback.shares), cuda.to_device(feedback.weights))


class DeviceWindow:
    """`nearbank.kernels.window.WindowMemory` in GPU memory. Exact rows are copied anew with every append: readable,
    not fast; `nearbank.kernels.cupy_window` keeps them in a ring."""

    def __init__(self, sizes: Sizes, scheme: Scheme, channels: tuple[Channels, ...]) -> None:
        fmt, layers, kv_heads, head_dim, _ = sizes
        if fmt.name not in WINDOWED:
            known = ", ".join(WINDOWED)
            raise NearbankError(f"backend 'numba-cuda': windowed cache format {fmt.name}; supported: {known}")
        self.pages, self._scheme, self._channels = allocate(*sizes), scheme, channels
        shape = (1, 1, 1, 1, 2, 1)
        if scheme.key_group:
            shape = (*self.pages.keys.shape[:3], PAGE // scheme.key_group, 2, head_dim)
        self._key_channels = cuda.to_device(np.zeros(shape, np.uint16))
        empty = np.zeros((kv_heads, 0, head_dim), np.float32)
        self._exact = [(0, empty, empty)] * layers
        self._feedback = [tuple(map(_on_device, (c.key_feedback, c.value_feedback))) for c in channels]
        self._feedback = self._feedback or [(None, None)] * layers

    @property
    def nbytes(self) -> int:
        """Bytes allocated, the exact tokens of this moment included."""
        return self.pages.nbytes + int(self._key_channels.nbytes) + sum(k.nbytes + v.nbytes for _, k, v in self._exact)

    def clear(self) -> None:
        """Forget all tokens; the pages stay."""
        self._exact = [(0, k[:, :0], v[:, :0]) for _, k, v in self._exact]

    def copy_from(self, other: DeviceWindow, tokens: int) -> None:
        """Hold what another of the same sizes, format and scheme holds."""
        for name in ("keys", "values", "key_params", "value_params"):
            getattr(self.pages, name).copy_to_device(getattr(other.pages, name))
        self._key_channels.copy_to_device(other._key_channels)
        self._exact = list(other._exact)

    def write(self, layer: int, start: int, k: Floats, v: Floats) -> None:
        """Keep k, v exact and round what is due."""
        if len(k) == 0:
            return
        if self._channels:
            k, v = self._channels[layer].applied(k, v)
        first, size = max(self._exact[layer][0], start - self._scheme.keep), self._scheme.key_group
        held_first, *held = self._exact[layer]
        kept = [x[:, first - held_first : start - held_first] for x in held]
        exact = [np.concatenate([old, new.swapaxes(0, 1)], axis=1) for old, new in zip(kept, (k, v), strict=True)]
        self._exact[layer] = (first, np.ascontiguousarray(exact[0]), np.ascontiguousarray(exact[1]))
        pages, (key_feedback, value_feedback) = self.pages, self._feedback[layer]
        self._write_tokens((pages.values, pages.value_params), layer, start, v, value_feedback)
        if not size:
            self._write_tokens((pages.keys, pages.key_params), layer, start, k, key_feedback)
        begin, end = (start // size, (start + len(k)) // size) if size else (0, 0)
        if end > begin:
            on_device = cuda.to_device(self._exact[layer][1])
            round_groups_kernel[(end - begin, k.shape[1]), THREADS](
                on_device, first, pages.keys, self._key_channels, layer, begin, size, pages.bits
            )

    def _write_tokens(self, memory: tuple[Any, Any], layer: int, start: int, new: Floats, feedback: Any) -> None:
        """To the nearest codes, or with errors fed back."""
        if feedback is not None:
            write_fed_back(self.pages, memory, layer, start, new, feedback)
            return
        blocks, pages = -(-new.shape[0] * new.shape[1] // THREADS), self.pages
        append_kernel[blocks, THREADS](cuda.to_device(new), *memory, pages.table, layer, start, pages.bits)

    def read(self, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
        """Attention of q [T, heads, D] at positions start …."""
        pages, size, (tokens, heads, _) = self.pages, self._scheme.key_group, q.shape
        shared, c = heads // pages.keys.shape[2], self._channels[layer] if self._channels else None
        if c is not None:
            q = q * np.repeat(c.key_scale, shared, axis=0)
        bounds = cuda.to_device(
            np.array([self._scheme.rounded_until(start + t + 1) for t in range(tokens)], np.int64).reshape(-1, 2)
        )
        first, *exact = self._exact[layer]
        keys, values = (cuda.to_device(part) for part in exact)
        scores = cuda.device_array((tokens, heads, start + tokens), np.float32)
        out = cuda.to_device(np.full(q.shape, np.nan, np.float32))
        common = layer, start
        scores_kernel[(tokens, heads), THREADS](
            cuda.to_device(q), pages.keys, pages.key_params, self._key_channels, keys, first, bounds, size, *common,
            np.float32(scale), pages.bits, scores,
        )  # fmt: skip
        context_kernel[(tokens, heads), THREADS](
            pages.values, pages.value_params, values, first, bounds, *common, pages.bits, scores, out
        )
        context = np.asarray(out.copy_to_host())
        if c is not None:
            context = context * np.repeat(c.value_scale, shared, axis=0) + np.repeat(c.value_shift, shared, axis=0)
        return context


def open_window(sizes: Sizes, scheme: Scheme, channels: tuple[Channels, ...]) -> Any:
    """Memory of a windowed cache."""
    return DeviceWindow(sizes, scheme, channels)

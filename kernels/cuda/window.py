"""Launches for caches whose newest tokens are exact: `window.cuh` and `feedback.cuh`. Host side, any `Runtime`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nearbank.cache_formats import SCHEMES, Scheme
from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels.cuda import cache
from nearbank.kernels.cuda.cache import ATTEND_WARPS, EXACT_SCRATCH_BYTES, AttendScratch, DevicePages
from nearbank.kernels.cuda.host import Runtime
from nearbank.kernels.cuda.sources import STORED, WINDOW_DIMS, Kernel, attend_window, window_resident
from nearbank.kernels.store import PAGE
from nearbank.kernels.window import Channels

FILE, FED_BACK = "window.cuh", "feedback.cuh"
MOVE, TOTAL = Kernel(FILE, "window_move"), Kernel(FILE, "window_total")
WINDOWED = ("int2", "int4", "int8")
RANGES, SHARES_AHEAD = 9, 16  # kRanges and kSharesAhead of feedback.cuh
SHARED_BYTES = 48 * 1024  # of a block, without asking for more


def keep_rows(kind: int) -> Kernel:
    """New tokens into the ring. kind: 0 float32, 1 fp16, 2 bf16."""
    return Kernel(FILE, f"window_keep<{kind}>")


def stored_kernel(name: str, stored: str) -> Kernel:
    """window_round, window_scores or window_pages for a stored format."""
    return Kernel(FILE, f"window_{name}<{STORED[stored]}>")


def feed_back(stored: str) -> Kernel:
    """New tokens rounded with errors fed back, for a stored format."""
    return Kernel(FED_BACK, f"feed_back<{STORED[stored]}>")


def feedback_bytes(head_dim: int) -> int:
    """Shared memory of `feed_back`: shares of a few channels, costs, and a token once for each range."""
    return 4 * ((SHARES_AHEAD + RANGES) * head_dim + RANGES)


def kernels() -> tuple[Kernel, ...]:
    """Every instance that a launch can ask for."""
    stored = (stored_kernel(name, one) for name in ("round", "scores", "pages") for one in WINDOWED)
    groups = sorted({scheme.key_group for scheme in SCHEMES.values()})
    fast = (attend_window(one, dim, group) for one, dims in WINDOW_DIMS.items() for dim in dims for group in groups)
    return (MOVE, TOTAL, *(keep_rows(kind) for kind in range(3)), *stored, *map(feed_back, WINDOWED), *fast)


@dataclass(frozen=True)
class Ring:
    """Exact keys and values [kv heads, rows, D] float32; the token at position p lies in row p mod rows."""

    rows: int
    keys: Any = field(repr=False)
    values: Any = field(repr=False)


@dataclass
class WindowMemory:
    """Pages of rounded tokens, a ring of exact ones per layer, and each layer's channels if any: 4 × [kv heads, D],
    then shares and weights of what is fed back into keys and into values, or None."""

    pages: DevicePages
    scheme: Scheme
    channels: tuple[tuple[Any, ...], ...]
    rings: list[Ring]

    @property
    def nbytes(self) -> int:
        """Bytes allocated at this moment."""
        exact = sum(int(ring.keys.nbytes + ring.values.nbytes) for ring in self.rings)
        different = {id(layer): layer for layer in self.channels}
        static = sum(int(part.nbytes) for layer in different.values() for part in layer if part is not None)
        return self.pages.nbytes + exact + static

    @property
    def resident(self) -> int:
        """Thread blocks of the fast attention that share a multiprocessor."""
        return window_resident(self.pages.format.name, self.pages.head_dim, self.scheme.key_group)

    def fast(self) -> bool:
        """Whether the fast attention has this format and head dimension."""
        return self.pages.head_dim in WINDOW_DIMS.get(self.pages.format.name, ())

    def channel(self, layer: int, index: int) -> Any:
        """One of a layer's key shift, key scale, value shift, value scale, then the four of the feedback, or None."""
        return self.channels[layer][index] if self.channels else None


def allocate(
    runtime: Runtime, fmt: Format, layers: int, kv_heads: int, head_dim: int, capacity: int, scheme: Scheme,
    channels: tuple[Channels, ...],
) -> WindowMemory:  # fmt: skip
    """Zeroed pages and rings as long as the scheme keeps tokens."""
    if fmt.name not in WINDOWED:
        raise NearbankError(f"windowed CUDA cache: format {fmt.name}; supported: {', '.join(WINDOWED)}")
    fed = any(one.key_feedback or one.value_feedback for one in channels)
    if fed and feedback_bytes(head_dim) > SHARED_BYTES:
        raise NearbankError(
            f"windowed CUDA cache: errors fed back over a head dimension of {head_dim} need more than a block's shared "
            "memory; use backend numba or channels without feedback"
        )
    pages = cache.allocate(runtime, fmt, layers, kv_heads, head_dim, capacity)
    if scheme.key_group:
        shape = (*pages.keys.shape[:3], PAGE // scheme.key_group, 2, head_dim)
        pages = replace(pages, key_params=runtime.zeros(shape, np.uint16))
    rings = [_ring(runtime, pages, _rows_for(scheme, 1)) for _ in range(layers)]
    return WindowMemory(pages, scheme, _on_device(runtime, channels), rings)


def _on_device(runtime: Runtime, channels: tuple[Channels, ...]) -> tuple[tuple[Any, ...], ...]:
    """Each layer's; those of several layers once."""
    made = {id(one): _uploaded(runtime, one) for one in channels}
    return tuple(made[id(one)] for one in channels)


def _uploaded(runtime: Runtime, one: Channels) -> tuple[Any, ...]:
    parts = (one.key_shift, one.key_scale, one.value_shift, one.value_scale)
    fed = [(x and x.shares, x and x.weights) for x in (one.key_feedback, one.value_feedback)]
    return tuple(
        None if part is None else runtime.asarray(np.ascontiguousarray(part, np.float32))
        for part in (*parts, *fed[0], *fed[1])
    )


def _ring(runtime: Runtime, pages: DevicePages, rows: int) -> Ring:
    shape = (pages.kv_heads, rows, pages.head_dim)
    return Ring(rows, runtime.zeros(shape, np.float32), runtime.zeros(shape, np.float32))


def _rows_for(scheme: Scheme, tokens: int) -> int:
    """The power of two that holds an append of `tokens` and what the scheme keeps before it."""
    return 1 << (tokens + scheme.keep - 1).bit_length()


def _fitting_ring(runtime: Runtime, memory: WindowMemory, layer: int, tokens: int) -> Ring:
    """The layer's ring, made anew where an append needs a longer one or far less than there is."""
    held, rows = memory.rings[layer], _rows_for(memory.scheme, tokens)
    if rows <= held.rows <= 4 * rows:
        return held
    pages, memory.rings[layer] = memory.pages, _ring(runtime, memory.pages, rows)
    new = memory.rings[layer]
    if memory.scheme.keep:
        sizes = map(np.int32, (layer, pages.head_dim, held.rows, rows))
        arguments = (held.keys, held.values, new.keys, new.values, pages.lengths, *sizes)
        runtime.kernel(MOVE)((pages.kv_heads, memory.scheme.keep, 2), 128, 0, arguments)
    return new


def append(runtime: Runtime, memory: WindowMemory, layer: int, k: Any, v: Any, kind: int) -> None:
    """Keep k, v [T, kv heads, head_dim] exact and round what is due, behind what layer `layer` holds."""
    tokens, pages, group = k.shape[0], memory.pages, memory.scheme.key_group
    if tokens == 0:
        return
    ring, rows = _fitting_ring(runtime, memory, layer, tokens), -(-tokens * pages.kv_heads // 4)
    channels = tuple(memory.channel(layer, i) for i in range(4))
    sizes = map(np.int32, (tokens, pages.head_dim, layer, pages.kv_heads, ring.rows, pages.capacity))
    kept = (k, v, ring.keys, ring.values, *channels, pages.lengths, *sizes)
    runtime.kernel(keep_rows(kind))((rows, 1, 2), 128, 0, kept)
    groups = (tokens // group + 1) * pages.kv_heads if group else 0
    numbers = (tokens, pages.head_dim, layer, pages.pages, pages.kv_heads, pages.row_bytes, pages.capacity)
    exact = (ring.keys, ring.values, pages.keys, pages.values, pages.key_params, pages.value_params)
    written = _fed_back(runtime, memory, layer, exact, (*numbers, pages.format.high, ring.rows))
    last = pages.format.high, group, ring.rows, written
    arguments = (*exact, pages.lengths, pages.finished, *map(np.int32, (*numbers, *last)))
    runtime.kernel(stored_kernel("round", pages.format.name))((max(rows, groups), 1, 2), 128, 0, arguments)


def _fed_back(
    runtime: Runtime, memory: WindowMemory, layer: int, exact: tuple[Any, ...], sizes: tuple[int, ...]
) -> int:
    """Round what has its errors fed back. Returns whether keys (1) and values (2) are written."""
    feedback = tuple(memory.channel(layer, i) for i in range(4, 8))
    written = (feedback[0] is not None) + 2 * (feedback[2] is not None)
    if written:
        kernel, (tokens, dim) = runtime.kernel(feed_back(memory.pages.format.name)), sizes[:2]
        arguments = (*exact, *feedback, memory.pages.lengths, *map(np.int32, sizes))
        kernel((tokens * memory.pages.kv_heads, 1, 2), 32 * RANGES, feedback_bytes(dim), arguments)
    return written


def attend(
    runtime: Runtime, memory: WindowMemory, layer: int, q: Any, scale: float, scratch: AttendScratch, out: Any = None
) -> Any:
    """Causal attention of q [T, heads, head_dim], the last T tokens appended, as exact as `cache.attend`."""
    (queries, heads, dim), pages, ring = q.shape, memory.pages, memory.rings[layer]
    if not memory.fast():
        known = "; ".join(f"{name}: {', '.join(map(str, dims))}" for name, dims in WINDOW_DIMS.items())
        raise NearbankError(
            f"fast windowed attention: {pages.format.name} with head dimension {dim}; supported: {known}"
        )
    out = runtime.empty(q.shape, np.float32) if out is None else out
    sizes = (queries, heads // pages.kv_heads, layer, pages.pages, pages.kv_heads, pages.capacity)
    stores = (pages.keys, pages.values, pages.key_params, pages.value_params, pages.lengths)
    scratches = (scratch.parts, scratch.arrived, out, np.float32(scale))
    exact = (ring.keys, ring.values, *(memory.channel(layer, i) for i in (1, 2, 3)))
    kept = map(np.int32, (memory.scheme.keep, ring.rows))
    kernel = runtime.kernel(attend_window(pages.format.name, dim, memory.scheme.key_group))
    grid = (scratch.splits, pages.kv_heads, scratch.blocks)
    shared = cache.attend_shared_bytes(dim, 2 * ATTEND_WARPS)
    kernel(grid, 32 * ATTEND_WARPS, shared, (q, *stores, *scratches, *map(np.int32, sizes), *exact, *kept))
    return out


def attend_exact(runtime: Runtime, memory: WindowMemory, layer: int, start: int, q: Any, scale: np.float32) -> Any:
    """Attention of q [T, heads, head_dim] at positions start …, the last tokens appended: the definition's bits."""
    out = runtime.empty(q.shape, np.float32)
    used = -(-(start + q.shape[0]) // PAGE)
    per_query = q.shape[1] * ((used + 1) * (PAGE + q.shape[2] + 3)) * 4
    most = max(1, min(EXACT_SCRATCH_BYTES // per_query, 65535))
    for first in range(0, q.shape[0], most):
        part = slice(first, min(first + most, q.shape[0]))
        _attend_part(runtime, memory, layer, start + first, q[part], scale, out[part])
    return out


def _attend_part(
    runtime: Runtime, memory: WindowMemory, layer: int, start: int, q: Any, scale: np.float32, out: Any
) -> None:
    (queries, heads, dim), pages, ring = q.shape, memory.pages, memory.rings[layer]
    used, (group, keep) = -(-(start + queries) // PAGE), (memory.scheme.key_group, memory.scheme.keep)
    scores = runtime.empty((queries, heads, used * PAGE), np.float32)
    peaks = runtime.empty((queries, heads, used), np.float32)
    totals = runtime.empty((queries, heads, used + 1, dim), np.float32)
    sums = runtime.empty((queries, heads, used + 1, 2), np.float32)
    numbers = (start, used * PAGE, dim, layer, pages.pages, pages.kv_heads, pages.row_bytes, group, keep, ring.rows)
    sizes, name = tuple(map(np.int32, numbers)), pages.format.name
    keys = (
        q,
        memory.channel(layer, 1),
        pages.keys,
        pages.key_params,
        ring.keys,
        scores,
        peaks,
        np.float32(scale),
        *sizes,
    )
    runtime.kernel(stored_kernel("scores", name))((used, heads, queries), 256, 1024, keys)
    values = (pages.values, pages.value_params, ring.values, scores, peaks, totals, sums, *sizes)
    runtime.kernel(stored_kernel("pages", name))((used + 1, heads, queries), 256, 4096, values)
    ends = map(np.int32, (start, used, dim, pages.kv_heads, group, keep))
    last = (totals, sums, memory.channel(layer, 2), memory.channel(layer, 3), out, *ends)
    runtime.kernel(TOTAL)((heads, queries), 128, 0, last)

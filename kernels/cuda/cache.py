"""The KV cache's launches: append, the fast attention and the one in fixed order. Host side, any `Runtime`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels.cuda import sources
from nearbank.kernels.cuda.host import Runtime
from nearbank.kernels.store import PAGE, ROW_DTYPE, row_length

ATTEND_WARPS = 8
MOST_SPLITS = 128  # more would only add to what the last block joins
EXACT_SCRATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class DevicePages:
    """A cache in device memory, laid out as `nearbank.kernels.store`, with its lengths beside it.

    keys, values [layers, pages, kv heads, PAGE, row]; params […, PAGE, 2]; lengths [layers] int32. A pool's sequences
    share the rows: lengths [sequences, layers], tables [sequences, pages of `capacity`] int32 (`kv.cuh` says what is
    in them) and, for a launch over several, `ids` [sequences of the launch] int32. One sequence has its row of each.
    """

    format: Format
    layers: int
    kv_heads: int
    head_dim: int
    capacity: int
    keys: Any = field(repr=False)
    values: Any = field(repr=False)
    key_params: Any = field(repr=False)
    value_params: Any = field(repr=False)
    lengths: Any = field(repr=False)
    finished: Any = field(repr=False)
    tables: Any = field(default=None, repr=False)
    ids: Any = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        arrays = (self.keys, self.values, self.key_params, self.value_params, self.lengths, self.finished, self.tables)
        return sum(int(array.nbytes) for array in arrays if array is not None)

    @property
    def pages(self) -> int:
        """Pages of one layer."""
        return int(self.keys.shape[1])

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's row of one head."""
        return int(self.keys.shape[4]) * int(self.keys.dtype.itemsize)

    @property
    def sequences(self) -> int:
        """Sequences that one launch serves."""
        return 1 if self.ids is None else int(self.ids.shape[0])

    def fast(self) -> bool:
        """Whether the fast attention has this format and head dimension."""
        return self.head_dim in sources.FAST_DIMS.get(self.format.name, ())


def allocate(runtime: Runtime, fmt: Format, layers: int, kv_heads: int, head_dim: int, capacity: int) -> DevicePages:
    """Zeroed pages for `capacity` tokens in each layer."""
    if fmt.name not in sources.STORED:
        raise NearbankError(f"CUDA KV cache: format {fmt.name}; supported: {', '.join(sources.STORED)}")
    shape = (layers, -(-capacity // PAGE), kv_heads, PAGE)
    rows = (*shape, row_length(fmt, head_dim))
    params = (*shape, 0 if fmt.is_float else 2)
    dtype = ROW_DTYPE.get(fmt.name, np.uint8)
    return DevicePages(
        *(fmt, layers, kv_heads, head_dim, capacity),
        keys=runtime.zeros(rows, dtype),
        values=runtime.zeros(rows, dtype),
        key_params=runtime.zeros(params, np.uint16),
        value_params=runtime.zeros(params, np.uint16),
        lengths=runtime.zeros(layers, np.int32),
        finished=runtime.zeros(layers, np.int32),
    )


def append(runtime: Runtime, pages: DevicePages, layer: int, k: Any, v: Any, kind: int) -> None:
    """Quantise k, v [T, kv heads, head_dim] behind what layer `layer` holds; its length grows on the device.

    For several sequences: T tokens of the first, then as many of the second, and so on.
    """
    tokens = k.shape[0] // pages.sequences
    if tokens == 0:
        return
    sizes = (
        tokens,
        pages.head_dim,
        layer,
        pages.pages,
        pages.kv_heads,
        pages.row_bytes,
        pages.capacity,
        pages.format.high,
    )
    memory = (pages.keys, pages.values, pages.key_params, pages.value_params, pages.lengths, pages.finished)
    arguments = (k, v, *memory, *map(np.int32, sizes), pages.tables, pages.ids, np.int32(pages.layers))
    grid = (-(-tokens * pages.kv_heads // 4), pages.sequences, 2)
    runtime.kernel(sources.append_rows(pages.format.name, kind, pages.tables is not None))(grid, 128, 0, arguments)


@dataclass(frozen=True)
class AttendScratch:
    """Memory for the parts that a launch of the fast attention joins; made once for `queries` × `heads`.

    blocks: of 8 queries, all sequences together.
    """

    splits: int
    blocks: int
    parts: Any = field(repr=False)
    arrived: Any = field(repr=False)


def splits_for(
    stored: str, head_dim: int, kv_heads: int, capacity: int, blocks: int, multiprocessors: int,
    resident: int | None = None,
) -> int:  # fmt: skip
    """Ranges of tokens to cut a cache into: as many as fill every multiprocessor, at most one per 128 tokens.

    resident: thread blocks that share a multiprocessor; as many of `attend` as do unless given.
    """
    held = resident or sources.attend_resident(stored, head_dim)
    return max(1, min(held * multiprocessors // (blocks * kv_heads), -(-capacity // (16 * ATTEND_WARPS)), MOST_SPLITS))


def blocks_and_splits(
    runtime: Runtime, pages: DevicePages, queries: int, heads: int, sequences: int, resident: int | None = None
) -> tuple[int, int]:
    """Blocks of 8 queries for each KV head, and `splits_for` so many. queries: of one sequence."""
    blocks = -(-queries * (heads // pages.kv_heads) // 8) * sequences
    sizes = pages.format.name, pages.head_dim, pages.kv_heads, pages.capacity
    return blocks, splits_for(*sizes, blocks, runtime.multiprocessors, resident)


def attend_scratch(
    runtime: Runtime, pages: DevicePages, queries: int, heads: int, resident: int | None = None
) -> AttendScratch:
    """Scratch for `blocks_and_splits`."""
    blocks, splits = blocks_and_splits(runtime, pages, queries, heads, pages.sequences, resident)
    groups = pages.kv_heads * blocks
    parts = runtime.empty(groups * splits * 8 * (pages.head_dim + 2), np.float32)
    return AttendScratch(splits, blocks, parts, runtime.zeros(groups, np.int32))


def attend_shared_bytes(dim: int, parts: int) -> int:
    """Shared memory of a block that joins so many parts: `Parts` of attend.cuh."""
    return (2 * 8 * 2 * ATTEND_WARPS + 4 + parts * 8 * (dim + 4)) * 4


def attend(
    runtime: Runtime,
    pages: DevicePages,
    layer: int,
    q: Any,
    scale: float,
    scratch: AttendScratch,
    out: Any = None,
) -> Any:
    """Causal attention of q [T, heads, head_dim] float32, the last T tokens appended → float32 alike.

    For several sequences: the last T of the first, then as many of the second, and so on. Two bfloat16 (fp16
    caches: fp16) make each query and weight, so relative errors stay near 2⁻¹⁶ of Σ|q·k|.
    """
    queries, heads, dim = q.shape
    if not pages.fast():
        known = "; ".join(f"{name}: {', '.join(map(str, dims))}" for name, dims in sources.FAST_DIMS.items())
        raise NearbankError(f"fast attention: {pages.format.name} with head dimension {dim}; supported: {known}")
    out = runtime.empty(q.shape, np.float32) if out is None else out
    shared_by = heads // pages.kv_heads
    sizes = (queries // pages.sequences, shared_by, layer, pages.pages, pages.kv_heads, pages.capacity)
    memory = (pages.keys, pages.values, pages.key_params, pages.value_params, pages.lengths)
    paged = (pages.tables, pages.ids, np.int32(pages.layers))
    kernel = runtime.kernel(sources.attend(pages.format.name, dim, pages.tables is not None))
    grid = (scratch.splits, pages.kv_heads, scratch.blocks)
    shared = attend_shared_bytes(dim, ATTEND_WARPS)
    scratches = (scratch.parts, scratch.arrived, out, np.float32(scale))
    kernel(grid, 32 * ATTEND_WARPS, shared, (q, *memory, *scratches, *map(np.int32, sizes), *paged))
    return out


def attend_exact(runtime: Runtime, pages: DevicePages, layer: int, start: int, q: Any, scale: np.float32) -> Any:
    """The same attention with every sum in the order of the definition: the bits of `nearbank.kernels.reference`.

    start: the position of q's first token, which the host must know.
    """
    return attend_exact_many(runtime, pages, layer, [start + i + 1 for i in range(q.shape[0])], q, scale)


def attend_exact_many(
    runtime: Runtime, pages: DevicePages, layer: int, ends: Sequence[int], q: Any, scale: np.float32
) -> Any:
    """That of queries [T, heads, head_dim] which see ends[…] tokens each: of T sequences, `pages.ids`, or else of one.

    As many queries at a time as scratch memory holds.
    """
    out = runtime.empty(q.shape, np.float32)
    per_query = q.shape[1] * (-(-max(ends, default=0) // PAGE) * (PAGE + pages.head_dim + 3)) * 4
    most = max(1, min(EXACT_SCRATCH_BYTES // max(per_query, 1), 65535))
    for first in range(0, q.shape[0], most):
        part = slice(first, min(first + most, q.shape[0]))
        _attend_exact_part(runtime, pages, layer, ends[part], part, q[part], scale, out[part])
    return out


def _attend_exact_part(
    runtime: Runtime, pages: DevicePages, layer: int, ends: Sequence[int], part: slice, q: Any, scale: np.float32,
    out: Any,
) -> None:  # fmt: skip
    queries, heads, dim = q.shape
    used = -(-max(ends) // PAGE)
    scores = runtime.empty((queries, heads, used * PAGE), np.float32)
    peaks = runtime.empty((queries, heads, used), np.float32)
    totals = runtime.empty((queries, heads, used, dim), np.float32)
    sums = runtime.empty((queries, heads, used, 2), np.float32)
    numbers = (ends[0] - 1, used * PAGE, dim, layer, pages.pages, pages.kv_heads, pages.row_bytes)
    many = pages.ids is not None
    each = (pages.ids[part], runtime.asarray(np.array(ends, np.int32))) if many else (None, None)
    sizes, grid = tuple(map(np.int32, numbers)), (used, heads, queries)
    seen = (np.int32(-(-pages.capacity // PAGE)), pages.tables, *each)
    name = pages.format.name
    keys = (q, pages.keys, pages.key_params, scores, peaks, np.float32(scale), *sizes, *seen)
    runtime.kernel(sources.exact_scores(name))(grid, 256, 1024, keys)
    values = (pages.values, pages.value_params, scores, peaks, totals, sums, *sizes, *seen)
    runtime.kernel(sources.exact_pages(name))(grid, 256, 4096, values)
    last = (totals, sums, out, np.int32(ends[0] - 1), np.int32(used), np.int32(dim), each[1])
    runtime.kernel(sources.EXACT_TOTAL)((heads, queries), 128, 0, last)

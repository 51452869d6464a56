"""A pool of cache pages in GPU memory, for the sequences of many callers; arrays on the GPU in and out.

    pool = DevicePagePool(layers, kv_heads, head_dim, pages=4096, format="int4", sequences=64)
    prompt = pool.sequence()                                   # the calls of `DeviceCache`
    prompt.append(layer, k, v)
    answers = [prompt.fork() for _ in range(8)]                # same tokens, no copy
    pool.append_many(layer, k, v, answers)                     # one token each, in one launch
    context = pool.attend_many(layer, q, answers)              # one query each, in one launch

Lengths and page tables lie on the device, so a captured step can be played again: `reserve` pages and `choose`
sequences before. Use a pool on one stream; `fork`, `clear`, `reserve` and `choose` work on CuPy's current one.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels import cupy_backend
from nearbank.kernels.arrays import checked_size
from nearbank.kernels.cuda import cache, host
from nearbank.kernels.cuda.cache import AttendScratch
from nearbank.kernels.cuda.callers_cache import AttendingCache, given_pair, has_tensor_cores, put, rows_of
from nearbank.kernels.cuda.given import Given, callers_stream, check_given, given, given_target
from nearbank.kernels.packed import as_format
from nearbank.kernels.pages import HeldPages, PageBook, checked_sequences, copy_page, pages_between
from nearbank.kernels.store import PAGE

ABSENT = np.int32(-(2**31))  # in a page table: negative, so nobody writes there


class DevicePagePool:
    """`pages` pages of 256 tokens each, for at most `sequences` sequences at a time. Allocated when it is made."""

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        pages: int,
        format: Format | str = "int4",  # noqa: A002 - as in KVCache
        sequences: int = 64,
    ) -> None:
        self.book = PageBook(pages, "DevicePagePool")
        checked_size(sequences, "DevicePagePool: sequences")
        self.runtime, chosen = cupy_backend.current_runtime(), as_format(format).for_cache()
        made = cache.allocate(self.runtime, chosen, layers, kv_heads, head_dim, pages * PAGE)
        self.memory = replace(
            made,
            lengths=self.runtime.zeros((sequences, layers), np.int32),
            finished=self.runtime.zeros((sequences, layers), np.int32),
            tables=self.runtime.asarray(np.full((sequences, pages), ABSENT, np.int32)),
        )
        self._ids = self.runtime.zeros(sequences, np.int32)
        self._chosen: list[int] = []
        self._rows = list(reversed(range(sequences)))  # of lengths and tables, that no sequence has
        self._scratch: dict[int, tuple[Any, Any]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes allocated, scratch included."""
        scratch = sum(int(one.nbytes) for pair in self._scratch.values() for one in pair)
        return self.memory.nbytes + int(self._ids.nbytes) + scratch

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        return self.book.free

    def sequence(self) -> PooledDeviceCache:
        """An empty cache for one more sequence."""
        return PooledDeviceCache(self)

    def take_row(self, owner: object) -> int:
        """A row of lengths and tables, until its owner is gone."""
        if not self._rows:
            most = int(self.memory.tables.shape[0])
            raise NearbankError(f"DevicePagePool: {most} sequences are in use; make the pool for more `sequences`")
        row = self._rows.pop()
        weakref.finalize(owner, self._rows.append, row)
        return row

    def choose(self, sequences: Sequence[PooledDeviceCache]) -> None:
        """The sequences that a captured `append_many` and `attend_many` of as many will serve from now on."""
        rows = [one.row for one in checked_sequences(sequences, self, PooledDeviceCache)]
        if rows != self._chosen:
            self._ids[: len(rows)] = self.runtime.asarray(np.array(rows, np.int32))
            self._chosen = rows

    def append_many(self, layer: int, k: Any, v: Any, sequences: Sequence[PooledDeviceCache]) -> None:
        """One token for each of some sequences: k, v [sequences, kv_heads, head_dim] (fp32, fp16 or bf16, alike)."""
        checked_sequences(sequences, self, PooledDeviceCache)
        shape = len(sequences), self.memory.kv_heads, self.memory.head_dim
        keys, values = given_pair(k, v, shape, self.runtime.device)
        contiguous = self.runtime.xp.ascontiguousarray
        with callers_stream(keys):
            for one in sequences:
                one.make_room(one.length(layer), 1)
            self.choose(sequences)
            arrays = contiguous(keys.array), contiguous(values.array)
            cache.append(self.runtime, self._together(len(sequences)), layer, *arrays, host.KIND[keys.kind])
        for one in sequences:
            one.grew(layer, 1)

    def attend_many(
        self, layer: int, q: Any, sequences: Sequence[PooledDeviceCache], scale: float | None = None, out: Any = None
    ) -> Any:
        """Attention of q [sequences, heads, head_dim] float32, one query at each sequence's last token → alike."""
        checked_sequences(sequences, self, PooledDeviceCache)
        queries, ends = given(q, "q"), [one.length(layer) for one in sequences]
        self._check_queries(queries, layer, ends)
        _, heads, dim = queries.array.shape
        factor = dim**-0.5 if scale is None else scale
        target = given_target(out, queries.array.shape, self.runtime.device)
        with callers_stream(queries):
            self.choose(sequences)
            array, pages = rows_of(self.runtime, queries), self._together(len(sequences))
            if not (pages.fast() and has_tensor_cores(self.runtime)):
                exact = cache.attend_exact_many(self.runtime, pages, layer, ends, array, np.float32(factor))
                return queries.returned(put(exact, target))
            scratch = self.scratch_for(1, heads, len(sequences))
            return queries.returned(cache.attend(self.runtime, pages, layer, array, factor, scratch, target))

    def scratch_for(self, queries: int, heads: int, sequences: int = 1) -> AttendScratch:
        """Scratch for a launch; launches of about the same size have the same memory."""
        held = self.memory
        blocks, splits = cache.blocks_and_splits(self.runtime, held, queries, heads, sequences)
        size = 1 << (held.kv_heads * blocks * splits - 1).bit_length()
        if size not in self._scratch:
            parts = self.runtime.empty(size * 8 * (held.head_dim + 2), np.float32)
            self._scratch[size] = parts, self.runtime.zeros(size, np.int32)
        return AttendScratch(splits, blocks, *self._scratch[size])

    def _together(self, count: int) -> cache.DevicePages:
        return replace(self.memory, ids=self._ids[:count])

    def _check_queries(self, queries: Given, layer: int, ends: list[int]) -> None:
        check_given(queries, "q", (len(ends), None, self.memory.head_dim), self.runtime.device)
        heads = queries.array.shape[1]
        if queries.kind != "fp32" or heads % self.memory.kv_heads or min(ends) == 0:
            raise NearbankError(
                f"q is {queries.kind} of {heads} heads with {self.memory.kv_heads} KV heads, for sequences of {ends} "
                f"tokens in layer {layer}; expected float32, whole groups of heads, a token at least"
            )


class PooledDeviceCache(AttendingCache):
    """One sequence of a `DevicePagePool`, with the calls of `DeviceCache`. Its capacity is what the pool has left.

    An append in a replayed graph that finds no page of its own writes nothing, and `attend` then returns NaN.
    """

    def __init__(self, pool: DevicePagePool) -> None:
        self.pool, self.held, self.row = pool, HeldPages(pool.book, self), pool.take_row(self)
        memory, row = pool.memory, self.row
        counters = {"lengths": memory.lengths[row], "finished": memory.finished[row]}
        super().__init__(pool.runtime, replace(memory, tables=memory.tables[row], **counters))
        self._published = np.zeros(0, np.int32)  # whatever the row had before
        self.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of the pages held, those shared with others included; the pool counts each page once."""
        memory = self.pool.memory
        rows = (memory.keys, memory.values, memory.key_params, memory.value_params)
        return sum(int(part.nbytes) for part in rows) // self.pool.book.count * len(self.held.pages)

    def clear(self) -> None:
        """Forget all tokens and give the pages back."""
        super().clear()
        self.pool.book.release(self.held.pages)
        self.publish()

    def fork(self) -> PooledDeviceCache:
        """A sequence with the same tokens so far: it shares the pages until one of the two writes to them."""
        other = PooledDeviceCache(self.pool)
        other.copy_from(self)
        return other

    def copy_from(self, other: PooledDeviceCache) -> None:
        """Hold what `other`, a sequence of the same pool, holds now, by sharing its pages."""
        checked_sequences([other], self.pool, PooledDeviceCache)
        self.held.share(other.held)
        self._held.lengths[...] = other._held.lengths
        self._lengths = list(other._lengths)
        for one in (self, other):
            one.publish()

    def reserve(self, tokens: int) -> None:
        """Pages of its own for `tokens` tokens more than the calls so far appended to any layer, for replays."""
        start = min(self._lengths)
        self.make_room(start, max(self._lengths) + tokens - start)

    def make_room(self, start: int, tokens: int) -> None:
        """See that the pages of these positions are there and nobody else's."""
        first, last = pages_between(start, tokens)
        for page, new in self.held.own(first, last):
            copy_page(self.pool.memory, page, new)
        if (self._published[first:last] < 0).any():
            self.publish()

    def grew(self, layer: int, tokens: int) -> None:
        """Count tokens that the pool appended."""
        self._lengths[layer] += tokens

    def publish(self) -> None:
        """Its page table as it is now, to the device."""
        table = np.full(self.pool.book.count, ABSENT, np.int32)
        held = np.array(self.held.pages, np.int32)
        table[: len(held)] = np.where(self.pool.book.holders[held] > 1, ~held, held)
        if not np.array_equal(table, self._published):
            self._held.tables[...] = self._runtime.asarray(table)
            self._published = table

    def _append(self, layer: int, k: Any, v: Any, kind: int) -> None:
        self.make_room(self._lengths[layer], k.shape[0])
        cache.append(self._runtime, self._held, layer, k, v, kind)

    def _scratch_for(self, queries: int, heads: int) -> AttendScratch:
        return self.pool.scratch_for(queries, heads)

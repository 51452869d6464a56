"""One pool of pages for the KV caches of many sequences, which may share pages of a common beginning.

    pool = PagePool(layers, kv_heads, head_dim, pages=64, format="int4")
    prompt = pool.sequence()                      # a KVCache that takes pages as it grows
    prompt.append(layer, k, v)
    answer = prompt.fork()                        # same tokens, no copy
    answer.append(layer, k, v)                    # a page that both hold is copied before it is written
    answer.clear()                                # its pages go back to the pool
    pool.append_many(layer, k, v, sequences)      # a token for each of many sequences
    pool.attend_many(layer, q, sequences)         # a query of each

A page holds `PAGE` tokens of every layer and KV head. All memory is allocated when the pool is made. For arrays on a
GPU there is `nearbank.kernels.cupy_pool.DevicePagePool`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels.arrays import taken
from nearbank.kernels.backends import backend_named
from nearbank.kernels.cache import Floats, KVCache
from nearbank.kernels.pages import HeldPages, PageBook, checked_sequences, copy_page, pages_between
from nearbank.kernels.store import PAGE


class PagePool:
    """`pages` pages of `PAGE` tokens each, on any backend; NumPy arrays or torch tensors in host memory."""

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        pages: int,
        format: Format | str = "fp32",  # noqa: A002 - as in KVCache
        backend: str = "auto",
    ) -> None:
        self.book = PageBook(pages, "PagePool")
        whole = KVCache(layers, kv_heads, head_dim, pages * PAGE, format, backend)
        self.layers, self.kv_heads, self.head_dim, self.pages = layers, kv_heads, head_dim, pages
        self.format, self.backend = whole.format, whole.backend
        self.store: Any = whole.store

    @property
    def nbytes(self) -> int:
        """Bytes allocated, all of them from the beginning."""
        return int(self.store.nbytes) + self.book.holders.nbytes

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        return self.book.free

    def sequence(self) -> PooledKVCache:
        """An empty cache for one more sequence."""
        return PooledKVCache(self)

    def append_many(self, layer: int, k: Any, v: Any, sequences: Sequence[PooledKVCache]) -> None:
        """One token for each of some sequences: k, v [sequences, kv_heads, head_dim] (floats); all of them or none."""
        checked_sequences(sequences, self, PooledKVCache)
        keys, values = sequences[0].checked_tokens(k, v)
        _check_count(keys, "k", sequences)
        for one in sequences:
            one.make_room(one.length(layer), 1)
        for i, one in enumerate(sequences):
            one.append(layer, keys[i : i + 1], values[i : i + 1])

    def attend_many(self, layer: int, q: Any, sequences: Sequence[PooledKVCache], scale: float | None = None) -> Any:
        """Attention of q [sequences, heads, head_dim], one query at each sequence's last token → the context alike."""
        checked_sequences(sequences, self, PooledKVCache)
        queries, handed_back = taken(q, "q")
        _check_count(queries, "q", sequences)
        contexts = [one.attend(layer, queries[i : i + 1], scale) for i, one in enumerate(sequences)]
        return handed_back(np.concatenate(contexts))


def _check_count(array: npt.NDArray[Any], name: str, sequences: Sequence[PooledKVCache]) -> None:
    if array.ndim != 3 or len(array) != len(sequences):
        raise NearbankError(
            f"PagePool: {name} is {list(array.shape)}; expected one row for each of {len(sequences)} sequences, "
            "[sequences, heads, head_dim]"
        )


class PooledKVCache(KVCache):
    """A `KVCache` whose pages come from a pool. Its capacity is what the pool has left."""

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.held = HeldPages(pool.book, self)
        super().__init__(pool.layers, pool.kv_heads, pool.head_dim, pool.pages * PAGE, pool.format, pool.backend)

    @property
    def nbytes(self) -> int:
        """Bytes of the pages held, those shared with others included; the pool counts each page once."""
        return int(self.pool.store.nbytes) // self.pool.pages * len(self.held.pages)

    def clear(self) -> None:
        """Forget all tokens and give the pages back."""
        super().clear()
        self.pool.book.release(self.held.pages)
        self.store = self._allocated()

    def fork(self) -> PooledKVCache:
        """A sequence with the same tokens so far: it shares the pages until one of the two writes to them."""
        other = PooledKVCache(self.pool)
        other.copy_from(self)
        return other

    def copy_from(self, other: KVCache) -> None:
        """Hold what `other`, a sequence of the same pool, holds now, by sharing its pages."""
        if not isinstance(other, PooledKVCache) or other.pool is not self.pool:
            raise NearbankError("PooledKVCache: only a sequence of the same pool can be copied")
        self.held.share(other.held)
        self.store = self._allocated()
        self._lengths = list(other._lengths)

    def _allocated(self) -> Any:
        """The pool's memory, seen through the pages held."""
        return backend_named(self.backend).with_pages(self.pool.store, self.held.pages)

    def _write(self, layer: int, start: int, k: Floats, v: Floats) -> None:
        self.make_room(start, len(k))
        super()._write(layer, start, k, v)

    def make_room(self, start: int, tokens: int) -> None:
        """See that the pages of these positions are there and nobody else's."""
        first, last = pages_between(start, tokens)
        if self.held.lacking(first, last):
            for page, new in self.held.own(first, last):
                copy_page(self.pool.store, page, new)
            self.store = self._allocated()

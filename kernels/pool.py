"""One pool of pages for the KV caches of many sequences, which may share pages of a common beginning.

    pool = PagePool(layers, kv_heads, head_dim, pages=64, format="int4")
    prompt = pool.sequence()                      # a KVCache that takes pages as it grows
    prompt.append(layer, k, v)
    answer = prompt.fork()                        # same tokens, no copy
    answer.append(layer, k, v)                    # a page that both hold is copied before it is written
    answer.clear()                                # its pages go back to the pool

A page holds `PAGE` tokens of every layer and KV head. All memory is allocated when the pool is made.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import numpy as np

from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels.arrays import checked_size
from nearbank.kernels.backends import resolve
from nearbank.kernels.cache import Floats, KVCache
from nearbank.kernels.store import PAGE, CacheStore

POOLED = ("numpy", "numba")


class PagePool:
    """`pages` pages of `PAGE` tokens each, for backend numpy or numba."""

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        pages: int,
        format: Format | str = "fp32",  # noqa: A002 - as in KVCache
        backend: str = "auto",
    ) -> None:
        checked_size(pages, "PagePool: pages")
        if resolve(backend) not in POOLED:
            raise NearbankError(f"PagePool: backend '{backend}'; supported: {', '.join(POOLED)}")
        whole = KVCache(layers, kv_heads, head_dim, pages * PAGE, format, backend)
        self.layers, self.kv_heads, self.head_dim, self.pages = layers, kv_heads, head_dim, pages
        self.format, self.backend = whole.format, whole.backend
        self.store: CacheStore = whole.store
        self._holders = np.zeros(pages, np.int64)  # sequences that hold each page

    @property
    def nbytes(self) -> int:
        """Bytes allocated, all of them from the beginning."""
        return self.store.nbytes + self._holders.nbytes

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        return int((self._holders == 0).sum())

    def sequence(self) -> PooledKVCache:
        """An empty cache for one more sequence."""
        return PooledKVCache(self)

    def take(self, count: int) -> list[int]:
        """So many free pages, or none of them and an error."""
        free = np.flatnonzero(self._holders == 0)[:count]
        if len(free) < count:
            raise NearbankError(
                f"PagePool: {count} more pages of {PAGE} tokens are needed and {len(free)} of {self.pages} are free; "
                "clear a sequence or make the pool larger"
            )
        self._holders[free] = 1
        return [int(page) for page in free]

    def share(self, pages: list[int]) -> None:
        """One more sequence holds these pages."""
        self._holders[pages] += 1

    def release(self, pages: list[int]) -> None:
        """One sequence less holds these pages; the list is emptied."""
        self._holders[pages] -= 1
        pages.clear()

    def is_shared(self, page: int) -> bool:
        """True if several sequences hold the page."""
        return bool(self._holders[page] > 1)

    def replace_by_copy(self, page: int, new: int) -> None:
        """Copy a page of all layers into `new`, for one of its holders."""
        for rows in (self.store.keys, self.store.values, self.store.key_params, self.store.value_params):
            rows[:, new] = rows[:, page]
        self._holders[page] -= 1


class PooledKVCache(KVCache):
    """A `KVCache` whose pages come from a pool. Its capacity is what the pool has left."""

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self._pages: list[int] = []
        super().__init__(pool.layers, pool.kv_heads, pool.head_dim, pool.pages * PAGE, pool.format, pool.backend)
        weakref.finalize(self, pool.release, self._pages)

    @property
    def nbytes(self) -> int:
        """Bytes of the pages held, those shared with others included; the pool counts each page once."""
        return self.pool.store.nbytes // self.pool.pages * len(self._pages)

    def clear(self) -> None:
        """Forget all tokens and give the pages back."""
        super().clear()
        self._hold([])

    def fork(self) -> PooledKVCache:
        """A sequence with the same tokens so far: it shares the pages until one of the two writes to them."""
        other = PooledKVCache(self.pool)
        other.copy_from(self)
        return other

    def copy_from(self, other: KVCache) -> None:
        """Hold what `other`, a sequence of the same pool, holds now, by sharing its pages."""
        if not isinstance(other, PooledKVCache) or other.pool is not self.pool:
            raise NearbankError("PooledKVCache: only a sequence of the same pool can be copied")
        self.pool.share(other._pages)
        self._hold(list(other._pages))
        self._lengths = list(other._lengths)

    def _hold(self, pages: list[int]) -> None:
        """Exchange the pages held for others, which this sequence holds already."""
        self.pool.release(self._pages)
        self._pages += pages
        self._use()

    def _use(self) -> None:
        self.store = replace(self.pool.store, table=np.array(self._pages, np.int64))

    def _allocated(self) -> Any:
        return replace(self.pool.store, table=np.zeros(0, np.int64))

    def _write(self, layer: int, start: int, k: Floats, v: Floats) -> None:
        if len(k) == 0:
            return
        self._own(start // PAGE, -(-(start + len(k)) // PAGE))
        super()._write(layer, start, k, v)

    def _own(self, first: int, last: int) -> None:
        """Make the sequence's pages `first` … `last` its own: new ones, and copies of those that others hold too."""
        shared = [i for i in range(first, min(last, len(self._pages))) if self.pool.is_shared(self._pages[i])]
        more = max(0, last - len(self._pages))
        if not shared and not more:
            return
        taken = self.pool.take(len(shared) + more)
        for i, new in zip(shared, taken, strict=False):
            self.pool.replace_by_copy(self._pages[i], new)
            self._pages[i] = new
        self._pages += taken[len(shared) :]
        self._use()

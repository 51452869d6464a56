"""Sequences of one page pool: the same bits as caches of their own, and every page accounted for."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nearbank.errors import NearbankError
from nearbank.kernels import KVCache, PagePool
from nearbank.kernels.cuda import sources
from nearbank.kernels.store import PAGE

LAYERS, KV_HEADS, DIM, PAGES = 2, 2, 5, 9
STORED = ("fp32", "bf16", "int8", "int4")
KERNELS = (
    *(kernel(name) for kernel in (sources.exact_scores, sources.exact_pages) for name in STORED),
    *(sources.append_rows(name, 0, paged=True) for name in STORED),
    sources.EXACT_TOTAL,
)


class Twins:
    """Sequences of a pool beside caches of their own that are given the same tokens."""

    def __init__(self, backend, name, seed):
        self.pool = PagePool(LAYERS, KV_HEADS, DIM, PAGES, name, backend)
        self.rng, self.name, self.pairs = np.random.default_rng(seed), name, []

    def own(self):
        return KVCache(LAYERS, KV_HEADS, DIM, PAGES * PAGE, self.name, "numba")

    def open(self, _):
        self.pairs.append((self.pool.sequence(), self.own()))

    def append(self, tokens):
        shared, own = self.chosen()
        k, v = self.rng.normal(size=(2, tokens, KV_HEADS, DIM)).astype(np.float32)
        try:
            for layer in range(LAYERS):
                shared.append(layer, k, v)
                own.append(layer, k, v)
        except NearbankError:
            assert self.pool.free_pages < 2 + tokens // PAGE
            assert shared.length(0) == own.length(0)
            assert shared.length(1) == own.length(1)

    def append_many(self, _):
        k, v = self.rng.normal(size=(2, len(self.pairs), KV_HEADS, DIM)).astype(np.float32)
        try:
            for layer in range(LAYERS):
                self.pool.append_many(layer, k, v, [shared for shared, _ in self.pairs])
                for i, (_, own) in enumerate(self.pairs):
                    own.append(layer, k[i : i + 1], v[i : i + 1])
        except NearbankError:
            assert self.pool.free_pages < len(self.pairs)

    def fork(self, _):
        shared, own = self.chosen()
        copy = self.own()
        copy.copy_from(own)
        before = self.pool.free_pages
        self.pairs.append((shared.fork(), copy))
        assert self.pool.free_pages == before

    def clear(self, _):
        for cache in self.chosen():
            cache.clear()

    def chosen(self):
        return self.pairs[self.rng.integers(len(self.pairs))]

    def check(self):
        for layer in range(LAYERS):
            assert [shared.length(layer) for shared, _ in self.pairs] == [own.length(layer) for _, own in self.pairs]
            filled = [(shared, own) for shared, own in self.pairs if own.length(layer)]
            if filled:
                q = self.rng.normal(size=(len(filled), 2 * KV_HEADS, DIM)).astype(np.float32)
                got = self.pool.attend_many(layer, q, [shared for shared, _ in filled])
                want = [own.attend(layer, q[i : i + 1]) for i, (_, own) in enumerate(filled)]
                np.testing.assert_array_equal(got, np.concatenate(want))
        held = {page for shared, _ in self.pairs for page in shared.held.pages}
        assert self.pool.free_pages == PAGES - len(held)


@pytest.fixture(params=["numpy", "numba", "cupy"])
def backend(request, emulated_gpu):
    if request.param == "cupy":
        emulated_gpu(KERNELS)
    return request.param


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(STORED), seed=st.integers(0, 10**6),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["open", "append", "append", "append", "append_many", "fork", "clear"]),
            st.integers(1, 2 * PAGE),
        ),
        max_size=12,
    ),
)  # fmt: skip
def test_sequences_are_as_caches_of_their_own(backend, name, seed, steps):
    twins = Twins(backend, name, seed)
    twins.open(0)
    for step, size in steps:
        getattr(twins, step)(size)
    twins.check()


def tokens(count):
    return np.ones((count, KV_HEADS, DIM), np.float32)


def test_a_page_is_copied_only_when_it_is_written():
    pool = PagePool(1, KV_HEADS, DIM, 4, "int8")
    first = pool.sequence()
    first.append(0, tokens(PAGE + 1), tokens(PAGE + 1))
    second = first.fork()
    assert pool.free_pages == 2
    second.append(0, tokens(1), tokens(1))
    assert pool.free_pages == 1  # the page begun; the full one is still shared
    assert first.held.pages[0] == second.held.pages[0]
    assert first.held.pages[1] != second.held.pages[1]
    first.append(0, tokens(1), tokens(1))
    assert pool.free_pages == 1


def test_an_exhausted_pool_says_so_and_changes_nothing():
    pool = PagePool(1, KV_HEADS, DIM, 3)
    first, second = pool.sequence(), pool.sequence()
    first.append(0, tokens(PAGE + 1), tokens(PAGE + 1))
    with pytest.raises(NearbankError, match="2 more pages of 256 tokens are needed and 1 of 3 are free"):
        second.append(0, tokens(2 * PAGE), tokens(2 * PAGE))
    assert (second.length(), pool.free_pages) == (0, 1)
    first.clear()
    second.append(0, tokens(2 * PAGE), tokens(2 * PAGE))
    assert pool.free_pages == 1


def test_memory_is_allocated_once_and_a_forgotten_sequence_gives_its_pages_back():
    pool = PagePool(1, KV_HEADS, DIM, 3, "int4")
    store = pool.store
    parts = [store.keys, store.values, store.key_params, store.value_params, pool.book.holders]
    assert pool.nbytes == sum(part.nbytes for part in parts)
    sequence = pool.sequence()
    sequence.append(0, tokens(3 * PAGE), tokens(3 * PAGE))
    assert sequence.nbytes == pool.nbytes - pool.book.holders.nbytes
    assert np.shares_memory(sequence.store.keys, store.keys)
    del sequence
    gc.collect()
    assert pool.free_pages == 3


def test_what_cannot_be_is_refused():
    pool = PagePool(1, KV_HEADS, DIM, 1)
    with pytest.raises(NearbankError, match="pages = 0; expected a whole number, 1 or more"):
        PagePool(1, KV_HEADS, DIM, 0)
    with pytest.raises(NearbankError, match="only a sequence of the same pool"):
        pool.sequence().copy_from(PagePool(1, KV_HEADS, DIM, 1).sequence())
    one, q = pool.sequence(), np.ones((2, KV_HEADS, DIM), np.float32)
    with pytest.raises(NearbankError, match="PagePool: a PooledKVCache is no sequence of this pool"):
        pool.attend_many(0, q, [PagePool(1, KV_HEADS, DIM, 1).sequence()])
    with pytest.raises(NearbankError, match=r"q is \[2, 2, 5\]; expected one row for each of 1 sequences"):
        pool.attend_many(0, q, [one])
    with pytest.raises(NearbankError, match="2 sequences; expected one or more, each of them once"):
        pool.append_many(0, q, q, [one, one])
    with pytest.raises(NearbankError, match="k holds NaN"):
        pool.append_many(0, q * np.nan, q, [one, pool.sequence()])
    with pytest.raises(NearbankError, match="1 more pages of 256 tokens are needed and 0 of 1 are free"):
        pool.append_many(0, q, q, [one, pool.sequence()])
    assert one.length() == 0
    with pytest.raises(NearbankError, match="a PooledKVCache cannot be copied into it"):
        KVCache(1, KV_HEADS, DIM, PAGE).copy_from(pool.sequence())

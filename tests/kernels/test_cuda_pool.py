"""Sequences of a pool in GPU memory, emulated: beside caches of their own that are given the same tokens."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.bounds import bound_of

from nearbank.errors import NearbankError
from nearbank.kernels import KVCache, cupy_pool
from nearbank.kernels.cuda import cache, sources
from nearbank.kernels.cupy_pool import DevicePagePool
from nearbank.kernels.store import PAGE

KV_HEADS, PAGES, LAYER = 1, 7, 1  # of two layers, that one
CASES = (("int4", 64), ("bf16", 64), ("int8", 20))  # the last has no fast attention
KERNELS = (
    *(sources.append_rows(name, 0, paged=True) for name, _ in CASES),
    *(sources.append_rows("int4", kind, paged=True) for kind in (1, 2)),
    *(sources.attend(name, 64, paged=True) for name in ("int4", "bf16")),
    *(make(name) for make in (sources.exact_scores, sources.exact_pages) for name in ("int8", "bf16")),
    sources.EXACT_TOTAL,
)


@pytest.fixture
def device(emulated_gpu):
    return emulated_gpu(KERNELS)


class Twins:
    """Sequences of a device pool beside plain caches, and what must hold between them."""

    def __init__(self, device, name, dim, seed):
        self.device, self.name, self.dim, self.rng = device, name, dim, np.random.default_rng(seed)
        self.pool, self.pairs = DevicePagePool(2, KV_HEADS, dim, PAGES, name, sequences=4), []

    def own(self):
        return KVCache(2, KV_HEADS, self.dim, PAGES * PAGE, self.name, "numba")

    def normals(self, *shape):
        return self.rng.standard_normal((*shape, self.dim)).astype(np.float32)

    def open(self, _):
        if len(self.pairs) < 4:
            self.pairs.append((self.pool.sequence(), self.own()))

    def append(self, tokens):
        shared, own = self.chosen()
        k, v = self.normals(tokens, KV_HEADS), self.normals(tokens, KV_HEADS)
        try:
            shared.append(LAYER, self.device.asarray(k), self.device.asarray(v))
            own.append(LAYER, k, v)
        except NearbankError:
            assert self.pool.free_pages < 2 + tokens // PAGE

    def append_many(self, _):
        k, v = (self.normals(len(self.pairs), KV_HEADS) for _ in "kv")
        try:
            sequences = [shared for shared, _ in self.pairs]
            self.pool.append_many(LAYER, self.device.asarray(k), self.device.asarray(v), sequences)
            for (_, own), one_k, one_v in zip(self.pairs, k, v, strict=True):
                own.append(LAYER, one_k[None], one_v[None])
        except NearbankError:
            assert self.pool.free_pages < len(self.pairs)

    def fork(self, _):
        shared, own = self.chosen()
        if len(self.pairs) < 4:
            copy = self.own()
            copy.copy_from(own)
            self.pairs.append((shared.fork(), copy))

    def clear(self, _):
        for one in self.chosen():
            one.clear()

    def forget(self, _):
        if len(self.pairs) > 1:
            del self.pairs[self.rng.integers(len(self.pairs))]
            gc.collect()

    def chosen(self):
        return self.pairs[self.rng.integers(len(self.pairs))]

    def check(self):
        filled = [(shared, own) for shared, own in self.pairs if own.length(LAYER)]
        assert [shared.length(LAYER) for shared, _ in self.pairs] == [own.length(LAYER) for _, own in self.pairs]
        held = {page for shared, _ in self.pairs for page in shared.held.pages}
        assert self.pool.free_pages == PAGES - len(held)
        if not filled:
            return
        q = self.normals(len(filled), 2 * KV_HEADS)
        many = self.pool.attend_many(LAYER, self.device.asarray(q), [shared for shared, _ in filled])
        for (shared, own), one, row in zip(filled, q, many, strict=True):
            for got in (shared.attend(LAYER, self.device.asarray(one[None]))[0], row):
                self.compare(got, own, one[None])

    def compare(self, got, own, q):
        want = own.attend(LAYER, q)
        if not self.pool.memory.fast():
            np.testing.assert_array_equal(got[None], want)
            return
        worst = np.abs(got[None].astype(np.float64) - want).max(axis=2)
        assert (worst <= bound_of(own, q, self.dim**-0.5, self.name)).all()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=st.sampled_from(CASES), seed=st.integers(0, 10**6),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["open", "append", "append", "append_many", "append_many", "fork", "clear", "forget"]),
            st.integers(1, PAGE + 20),
        ),
        max_size=12,
    ),
)  # fmt: skip
def test_sequences_are_as_caches_of_their_own(device, case, seed, steps):
    twins = Twins(device, *case, seed)
    twins.open(0)
    twins.append(PAGE - 1)
    for step, size in steps:
        getattr(twins, step)(size)
    twins.check()
    device.forget()


def filled(device, name="int4", dim=64, tokens=PAGE - 1, pages=4, sequences=4):
    pool = DevicePagePool(1, 1, dim, pages, name, sequences)
    sequence = pool.sequence()
    ones = device.asarray(np.ones((tokens, 1, dim), np.float32))
    sequence.append(0, ones, ones)
    return pool, sequence


def replayed(device, pool, sequence, tokens=1):
    """What a captured graph does again: the host takes no pages for it. Returns the context of a query after it."""
    k = device.asarray(np.tile(np.linspace(0, 1, 64, dtype=np.float32), (tokens, 1, 1)))
    cache.append(device, sequence._held, 0, k, device.asarray(np.ones((tokens, 1, 64), np.float32)), 0)
    q = device.asarray(np.ones((1, 2, 64), np.float32))
    return cache.attend(device, sequence._held, 0, q, 1.0, pool.scratch_for(1, 2))


def test_a_replayed_step_grows_into_what_was_reserved(device):
    pool, sequence = filled(device)
    sequence.fork()
    sequence.reserve(2)
    assert pool.free_pages == 2  # the fork is gone again, and its share with it
    for tokens in range(PAGE, PAGE + 2):
        np.testing.assert_allclose(replayed(device, pool, sequence), 1.0, atol=0.01)
        assert sequence._held.lengths[0] == tokens


def test_a_replayed_step_never_writes_to_pages_of_others(device):
    pool, sequence = filled(device)
    early = sequence.fork()
    sequence.append(0, *(device.asarray(np.full((3, 1, 64), 2, np.float32)) for _ in "kv"))
    late = sequence.fork()
    held = [np.array(getattr(pool.memory, part)) for part in ("keys", "values", "key_params", "value_params")]
    for victim in (early, sequence, late):  # a page that was shared at the fork, two that are still
        assert np.isnan(replayed(device, pool, victim)).all()
        assert np.isnan(replayed(device, pool, victim)).all()
    for part, before in zip(("keys", "values", "key_params", "value_params"), held, strict=True):
        np.testing.assert_array_equal(getattr(pool.memory, part), before)
    early.clear()
    late.clear()
    early.reserve(1)
    np.testing.assert_allclose(replayed(device, pool, early), 1.0, atol=0.01)


@pytest.mark.parametrize("tokens", [2, PAGE * 4])
def test_a_replayed_step_stops_where_its_pages_end(device, tokens):
    pool, sequence = filled(device)
    before = np.array(pool.memory.keys)
    assert np.isnan(replayed(device, pool, sequence, tokens)).all()
    np.testing.assert_array_equal(pool.memory.keys, before)


def test_a_chosen_batch_is_what_a_replay_serves(device):
    pool, first = filled(device)
    second = first.fork()
    three = device.asarray(np.full((2, 1, 64), 3, np.float32))
    pool.append_many(0, three, three, [first, second])
    q = device.asarray(np.zeros((1, 1, 64), np.float32))
    second.reserve(1)
    pool.choose([first])
    pool.choose([second])
    cache.append(device, pool._together(1), 0, three[:1], three[:1], 0)
    got = cache.attend(device, pool._together(1), 0, q, 1.0, pool.scratch_for(1, 1))
    np.testing.assert_allclose(got, 1 + 4 / (PAGE + 1), rtol=0.01)
    assert list(pool.memory.lengths[:, 0]) == [PAGE, PAGE + 1, 0, 0]


def test_half_precision_comes_in_as_it_is(device):
    rng = np.random.default_rng(0)
    k = rng.standard_normal((3, 1, 64)).astype(np.float16)
    twin = KVCache(1, 1, 64, 8, "int4", "numpy")
    twin.append(0, k, k)
    pool = DevicePagePool(1, 1, 64, 3, "int4")
    sequences = [pool.sequence() for _ in range(3)]
    pool.append_many(0, device.asarray(k), device.asarray(k), sequences)
    for i, sequence in enumerate(sequences):
        np.testing.assert_array_equal(pool.memory.keys[0, sequence.held.pages[0], :, 0], twin.store.keys[0, 0, :, i])


def test_memory_is_allocated_once_and_scratch_is_shared(device):
    pool, sequence = filled(device, tokens=1)
    before = pool.nbytes
    assert before == pool.memory.nbytes + pool._ids.nbytes
    parts = ("keys", "values", "key_params", "value_params")
    assert sequence.nbytes * 4 == sum(getattr(pool.memory, part).nbytes for part in parts)
    pool.attend_many(0, device.asarray(np.ones((1, 2, 64), np.float32)), [sequence])
    grown = pool.nbytes
    assert grown > before
    pool.attend_many(0, device.asarray(np.ones((1, 1, 64), np.float32)), [sequence])
    assert pool.nbytes == grown


@pytest.mark.parametrize("capability", [90, 75])
def test_the_context_is_put_where_the_caller_wants_it(device, monkeypatch, capability):
    pool, sequence = filled(device, "bf16")
    queries = device.asarray(np.linspace(-1, 1, 2 * 64, dtype=np.float32).reshape(1, 2, 64))
    expected = np.array(pool.attend_many(0, queries, [sequence]))
    monkeypatch.setattr(device, "capability", capability)
    for attend in (
        lambda out: pool.attend_many(0, queries, [sequence], out=out),
        lambda out: sequence.attend(0, queries, out=out),
    ):
        out = device.asarray(np.full((1, 2, 64), np.nan, np.float32))
        assert np.shares_memory(attend(out), out)
        np.testing.assert_allclose(out, expected, atol=1e-5)
        twice = device.asarray(np.zeros((1, 2, 128), np.float32))
        for wrong in (twice, twice[..., :64].astype(np.float16), twice[..., ::2]):
            with pytest.raises(NearbankError, match="'out' is"):
                attend(wrong)


def test_what_cannot_be_is_refused(device):
    pool, sequence = filled(device, pages=2, sequences=2)
    ones = device.asarray(np.ones((1, 1, 64), np.float32))
    other = sequence.fork()
    with pytest.raises(NearbankError, match="2 sequences are in use"):
        pool.sequence()
    with pytest.raises(NearbankError, match=r"'k' is fp32\[1, 1, 64\]; expected floats \[2, 1, 64\]"):
        pool.append_many(0, ones, ones, [sequence, other])
    with pytest.raises(NearbankError, match="2 sequences; expected one or more, each of them once"):
        pool.append_many(0, ones, ones, [sequence, sequence])
    with pytest.raises(NearbankError, match="0 sequences; expected one or more"):
        pool.attend_many(0, ones, [])
    with pytest.raises(NearbankError, match="a PooledDeviceCache is no sequence of this pool"):
        pool.attend_many(0, ones, [DevicePagePool(1, 1, 64, 1, "int4").sequence()])
    with pytest.raises(NearbankError, match="a list is no sequence of this pool"):
        sequence.copy_from([])
    for layer in (-1, 1, "0"):
        with pytest.raises(NearbankError, match="this cache has layers 0 to 0"):
            pool.append_many(layer, ones, ones, [sequence])
        with pytest.raises(NearbankError, match="this cache has layers 0 to 0"):
            sequence.attend(layer, ones)
    with pytest.raises(NearbankError, match="a token at least"):
        other.clear()
        pool.attend_many(0, ones, [other])
    with pytest.raises(NearbankError, match="2 more pages of 256 tokens are needed and 1 of 2 are free"):
        other.append(0, *(device.asarray(np.ones((PAGE + 1, 1, 64), np.float32)) for _ in "kv"))
    assert (other.length(0), pool.free_pages) == (0, 1)
    with pytest.raises(NearbankError, match="sequences = 0; expected a whole number"):
        DevicePagePool(1, 1, 64, 1, sequences=0)
    with pytest.raises(NearbankError, match="'q' is ndarray in host memory"):
        pool.attend_many(0, np.ones((1, 1, 64), np.float32), [sequence])


def test_a_row_of_tables_is_used_again(device):
    pool, sequence = filled(device, sequences=1)
    del sequence
    gc.collect()
    again = pool.sequence()
    assert pool.free_pages == 4
    assert (np.array(pool.memory.tables[0]) == cupy_pool.ABSENT).all()
    assert again.length(0) == pool.memory.lengths[0, 0] == 0

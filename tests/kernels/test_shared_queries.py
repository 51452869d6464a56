"""Queries that share a KV head are taken together on the CPU; what is beside one does not change its bits."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nearbank.cache_formats import CACHE_FORMATS, SCHEMES
from nearbank.kernels import KVCache, set_threads, thread_count
from nearbank.kernels.cpu.attention import MOST_QUERIES, queries_at_once
from nearbank.kernels.window import Channels, WindowedKVCache

GROUPS = st.sampled_from([*range(1, 9), 11, 13])  # query heads per KV head
THREADS = st.sampled_from([1, 2, 5])  # more threads, smaller blocks of queries


@contextmanager
def threads(count):
    before = thread_count()
    set_threads(count)
    try:
        yield
    finally:
        set_threads(before)


def tensors(tokens, queries, heads, kv_heads, dim, seed):
    rng = np.random.default_rng(seed)
    shapes = (queries, heads, dim), (tokens, kv_heads, dim), (tokens, kv_heads, dim)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def both(make, q, k, v, count):
    """The context on both backends after everything is appended."""
    found = []
    for backend in ("numpy", "numba"):
        cache = make(backend)
        cache.append(0, k, v)
        with threads(count):
            found.append(cache.attend(0, q))
    return found


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(CACHE_FORMATS), shared=GROUPS, kv_heads=st.integers(1, 2), queries=st.integers(1, 3),
    before=st.sampled_from([0, 1, 3, 4, 14, 15, 16, 17, 254, 255, 256, 270, 513]),
    dim=st.sampled_from([1, 15, 16, 17, 40, 64, 80, 128]), count=THREADS, seed=st.integers(0, 999),
)  # fmt: skip
def test_queries_of_any_group_get_the_definitions_bits(
    name, shared, kv_heads, queries, before, dim, count, seed
):  # fmt: skip
    q, k, v = tensors(before + queries, queries, kv_heads * shared, kv_heads, dim, seed)
    np.testing.assert_array_equal(
        *both(lambda backend: KVCache(1, kv_heads, dim, len(k), name, backend), q, k, v, count)
    )


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["int8", "int4", "int2"]), scheme=st.sampled_from(list(SCHEMES)), shared=GROUPS,
    queries=st.integers(1, 2), before=st.sampled_from([0, 1, 31, 32, 40, 255, 256, 300]),
    dim=st.sampled_from([1, 17, 40, 64]), in_channels=st.booleans(), count=THREADS, seed=st.integers(0, 999),
)  # fmt: skip
def test_in_a_window_too(name, scheme, shared, queries, before, dim, in_channels, count, seed):
    q, k, v = tensors(before + queries, queries, 2 * shared, 2, dim, seed)
    channels = Channels.of(k, v) if in_channels else None
    np.testing.assert_array_equal(
        *both(lambda backend: WindowedKVCache(1, 2, dim, len(k), name, scheme, channels, backend), q, k, v, count)
    )


@settings(deadline=None)
@given(queries=st.integers(1, 2000), others=st.integers(1, 64), count=st.integers(1, 128))
def test_blocks_are_alike_and_leave_every_thread_one(queries, others, count):
    with threads(count):
        block = queries_at_once(queries, others)
    blocks = -(-queries // block)
    assert 1 <= block <= min(queries, MOST_QUERIES)
    assert blocks * block - queries < blocks  # none is more than one query short on average
    assert blocks * others >= min(count, queries * others)

"""The CUDA cache kernels, the very sources, run on the CPU and held against the NumPy definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.bounds import bound_of

from nearbank.errors import NearbankError
from nearbank.formats import FORMATS
from nearbank.kernels import KVCache
from nearbank.kernels.cuda import cache, host, sources
from nearbank.kernels.cuda.emulation import EmulatedRuntime, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="emulating CUDA needs a C++ compiler (g++, or CXX)")

KERNELS = tuple(
    kernel for kernel in sources.all_kernels() if kernel.file in ("kv.cuh", "attend.cuh", "attend_exact.cuh")
)
FORMATS_KEPT = ("int2", "int4", "int8", "fp16", "bf16", "fp32")


@pytest.fixture
def runtime() -> EmulatedRuntime:
    return EmulatedRuntime(KERNELS)


def filled(runtime, fmt, kv_heads, dim, sizes, rng, capacity=600, layer=1):
    """A NumPy cache and a device cache that were given the same tokens."""
    twin = KVCache(2, kv_heads, dim, capacity, fmt, backend="numpy")
    pages = cache.allocate(runtime, twin.format, 2, kv_heads, dim, capacity)
    for tokens in sizes:
        k, v = (rng.standard_normal((tokens, kv_heads, dim)).astype(np.float32) for _ in range(2))
        twin.append(layer, k, v)
        cache.append(runtime, pages, layer, runtime.asarray(k), runtime.asarray(v), 0)
    return twin, pages


def assert_same_memory(twin, pages):
    for name in ("keys", "values", "key_params", "value_params"):
        np.testing.assert_array_equal(getattr(pages, name), getattr(twin.store, name), err_msg=name)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fmt=st.sampled_from(FORMATS_KEPT), kv_heads=st.integers(1, 3), group=st.integers(1, 3), dim=st.integers(1, 90),
    before=st.integers(0, 20), tokens=st.integers(1, 4), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_append_and_exact_attention_have_the_bits_of_the_definition(
    runtime, fmt, kv_heads, group, dim, before, tokens, seed
):
    rng = np.random.default_rng(seed)
    twin, pages = filled(runtime, fmt, kv_heads, dim, (before, tokens) if before else (tokens,), rng)
    assert_same_memory(twin, pages)
    q = rng.standard_normal((tokens, kv_heads * group, dim)).astype(np.float32)
    got = cache.attend_exact(runtime, pages, 1, before, runtime.asarray(q), np.float32(dim**-0.5))
    np.testing.assert_array_equal(got, twin.attend(1, q))


def test_exact_attention_over_several_pages(runtime):
    rng = np.random.default_rng(1)
    twin, pages = filled(runtime, "int4", 1, 32, (511, 2), rng)
    q = rng.standard_normal((2, 2, 32)).astype(np.float32)
    got = cache.attend_exact(runtime, pages, 1, 511, runtime.asarray(q), np.float32(0.25))
    np.testing.assert_array_equal(got, twin.attend(1, q, 0.25))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=st.sampled_from([(fmt, dim) for fmt, dims in sources.FAST_DIMS.items() for dim in dims]),
    kv_heads=st.integers(1, 2), group=st.integers(1, 9), before=st.integers(0, 90), tokens=st.integers(1, 5),
    multiprocessors=st.integers(1, 9), spread=st.sampled_from([0.01, 1.0, 30.0]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_fast_attention_stays_within_its_bound(
    runtime, case, kv_heads, group, before, tokens, multiprocessors, spread, seed
):
    fmt, dim = case
    rng = np.random.default_rng(seed)
    twin, pages = filled(runtime, fmt, kv_heads, dim, (before, tokens) if before else (tokens,), rng)
    q = (spread * rng.standard_normal((tokens, kv_heads * group, dim))).astype(np.float32)
    runtime.multiprocessors = multiprocessors
    scratch = cache.attend_scratch(runtime, pages, tokens, kv_heads * group)
    scale = dim**-0.5
    want = twin.attend(1, q)
    for _ in range(2):  # the second finds the scratch as the first left it
        got = cache.attend(runtime, pages, 1, runtime.asarray(q), scale, scratch)
        worst = np.abs(got.astype(np.float64) - want).max(axis=2)
        assert (worst <= bound_of(twin, q, scale, fmt)).all()


@pytest.mark.parametrize("fmt", ["int4", "fp16"])
def test_fast_attention_of_sequences_that_share_a_pool(runtime, fmt):
    rng, held, dim, heads, tokens = np.random.default_rng(6), 270, 64, 3, 2
    pool = cache.allocate(runtime, FORMATS[fmt].for_cache(), 1, 1, dim, 5 * 256)
    counters = (runtime.zeros((2, 1), np.int32) for _ in range(2))
    tables, ids = (runtime.asarray(np.array(of, np.int32)) for of in ([[4, 1], [0, 3]], [1, 0]))
    both = dict(zip(("lengths", "finished"), counters, strict=True))
    pages = replace(pool, capacity=2 * 256, tables=tables, ids=ids, **both)
    twins = [KVCache(1, 1, dim, 512, fmt, backend="numpy") for _ in range(2)]
    k, v = (rng.standard_normal((2, held, 1, dim)).astype(np.float32) for _ in range(2))
    for i, twin in enumerate(twins):
        twin.append(0, k[i], v[i])
    cache.append(runtime, pages, 0, *(runtime.asarray(x.reshape(2 * held, 1, dim)) for x in (k, v)), 0)
    q = rng.standard_normal((2, tokens, heads, dim)).astype(np.float32)
    scratch = cache.attend_scratch(runtime, pages, tokens, heads)
    got = cache.attend(runtime, pages, 0, runtime.asarray(q.reshape(2 * tokens, heads, dim)), 0.125, scratch)
    for i, twin in enumerate(twins):
        worst = np.abs(got.reshape(q.shape)[i].astype(np.float64) - twin.attend(0, q[i], 0.125)).max(axis=2)
        assert (worst <= bound_of(twin, q[i], 0.125, fmt, layer=0)).all()


@pytest.mark.parametrize("fmt", ["int4", "int8", "bf16", "fp16"])
def test_what_lies_behind_the_last_token_is_never_seen(runtime, fmt):
    rng = np.random.default_rng(2)
    _, pages = filled(runtime, fmt, 1, 64, (20,), rng)
    q = runtime.asarray(rng.standard_normal((1, 2, 64)).astype(np.float32))
    scratch = cache.attend_scratch(runtime, pages, 1, 2)
    before = cache.attend(runtime, pages, 1, q, 0.1, scratch).copy()
    for array in (pages.keys, pages.values, pages.key_params, pages.value_params):
        array[1, :, :, 20:] = np.iinfo(array.dtype).max  # NaN where the dtype is that of floats
    np.testing.assert_array_equal(cache.attend(runtime, pages, 1, q, 0.1, scratch), before)


def test_append_beyond_the_capacity_writes_nothing_and_attention_says_nan(runtime):
    rng = np.random.default_rng(3)
    _, pages = filled(runtime, "int4", 1, 64, (10,), rng, capacity=12)
    held = pages.keys.copy()
    k = runtime.asarray(rng.standard_normal((3, 1, 64)).astype(np.float32))
    cache.append(runtime, pages, 1, k, k, 0)
    np.testing.assert_array_equal(pages.keys, held)
    q = runtime.asarray(np.ones((1, 1, 64), np.float32))
    assert np.isnan(cache.attend(runtime, pages, 1, q, 1.0, cache.attend_scratch(runtime, pages, 1, 1))).all()


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_append_takes_half_precision(runtime, kind):
    rng = np.random.default_rng(4)
    words = [FORMATS[kind].quantise(rng.standard_normal((6, 40)).astype(np.float32)).codes for _ in range(2)]
    twin = KVCache(1, 2, 40, 20, "int4", backend="numpy")
    twin.append(
        0,
        *(FORMATS[kind].dequantise(FORMATS[kind].quantise(floats(kind, w))).reshape(3, 2, 40) for w in words),
    )
    pages = cache.allocate(runtime, twin.format, 1, 2, 40, 20)
    cache.append(runtime, pages, 0, *(runtime.asarray(np.asarray(w).reshape(3, 2, 40)) for w in words), host.KIND[kind])
    assert_same_memory(twin, pages)


def floats(kind, words):
    from nearbank.formats import Quantised

    return FORMATS[kind].dequantise(Quantised(words))


def test_unsupported_head_dimensions_are_named(runtime):
    pages = cache.allocate(runtime, FORMATS["int8"].for_cache(), 1, 1, 80, 16)
    scratch = cache.attend_scratch(runtime, pages, 1, 1)
    with pytest.raises(NearbankError, match="int8 with head dimension 80; supported: int2: 128; int4: 64, 128, 256"):
        cache.attend(runtime, pages, 0, runtime.zeros((1, 1, 80), np.float32), 1.0, scratch)
    with pytest.raises(NearbankError, match="format ternary; supported: int2"):
        cache.allocate(runtime, FORMATS["ternary"], 1, 1, 80, 16)

"""The KV cache on every backend: equal bits, bounded against float64, the same however tokens arrive."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from nearbank.cache_formats import CACHE_FORMATS
from nearbank.errors import NearbankError
from nearbank.kernels import KVCache
from nearbank.kernels.cpu import floats, pages
from nearbank.kernels.reference.exponential import exp_non_positive
from nearbank.kernels.store import floats_stored, unpack_rows

BACKENDS = ["numpy", "numba"]


def tensors(tokens, heads, kv_heads, dim, seed=0, size=1.0):
    rng = np.random.default_rng(seed)
    shapes = (tokens, heads, dim), (tokens, kv_heads, dim), (tokens, kv_heads, dim)
    return [(rng.normal(size=shape) * size).astype(np.float32) for shape in shapes]


def attention(q, k, v, scale):
    """Causal attention of the last queries, in float64."""
    q, k, v = (np.asarray(t, np.float64) for t in (q, k, v))
    shared, start = q.shape[1] // k.shape[1], len(k) - len(q)
    out = np.zeros(q.shape)
    for t in range(len(q)):
        for h in range(q.shape[1]):
            n = start + t + 1
            scores = k[:n, h // shared] @ q[t, h] * scale
            weights = np.exp(scores - scores.max())
            out[t, h] = weights @ v[:n, h // shared] / weights.sum()
    return out


def held(cache, layer, rows, params, tokens):
    """What the cache holds, as float64 [tokens, kv heads, head_dim]."""
    stored = rows[layer].swapaxes(1, 2).reshape(-1, cache.kv_heads, rows.shape[-1])[:tokens]
    if cache.format.is_float:
        return floats_stored(cache.format, np.ascontiguousarray(stored))[..., : cache.head_dim]
    codes = unpack_rows(np.ascontiguousarray(stored), cache.format)[..., : cache.head_dim]
    flat = params[layer].swapaxes(1, 2).reshape(-1, cache.kv_heads, 2)[:tokens]
    scale, offset = (flat[..., i].astype(np.uint32) << 16 for i in (0, 1))
    as_float = [np.ascontiguousarray(bits).view(np.float32).astype(np.float64)[..., None] for bits in (scale, offset)]
    return as_float[1] + as_float[0] * codes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CACHE_FORMATS)
def test_attention_over_what_is_held_is_right(name, backend):
    """Error of the sums only: a few thousand roundings of float32 on numbers of size 1."""
    q, k, v = tensors(300, 4, 2, 40)
    cache = KVCache(2, 2, 40, 300, name, backend)
    cache.append(1, k, v)
    store = cache.store
    keys = held(cache, 1, store.keys, store.key_params, 300)
    values = held(cache, 1, store.values, store.value_params, 300)
    expected = attention(q[-3:], keys, values, 40**-0.5)
    np.testing.assert_allclose(cache.attend(1, q[-3:]), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_what_is_held_is_within_a_step(name):
    _, k, v = tensors(20, 2, 2, 50, seed=3)
    cache = KVCache(1, 2, 50, 20, name)
    cache.append(0, k, v)
    back = held(cache, 0, cache.store.keys, cache.store.key_params, 20)
    levels = cache.format.high
    spread = k.max(axis=-1, keepdims=True) - k.min(axis=-1, keepdims=True)
    # half a step, the step at most 2⁻⁷ wider for its rounding to bf16, the offset at most |min|·2⁻⁷ lower
    slack = np.abs(k.min(axis=-1, keepdims=True)) * 2.0**-7 / levels
    assert (np.abs(back - k) <= (spread / levels + slack) * (1 + 2.0**-6) / 2 + 1e-6).all()


@settings(max_examples=20, deadline=None)
@given(
    dim=st.integers(1, 80), kv_heads=st.integers(1, 3), shared=st.integers(1, 3), tokens=st.integers(1, 40),
    before=st.sampled_from([0, 1, 250, 256, 300]), name=st.sampled_from(CACHE_FORMATS), seed=st.integers(0, 999),
    exponent=st.integers(-6, 3),
)  # fmt: skip
def test_backends_return_the_same_bits(dim, kv_heads, shared, tokens, before, name, seed, exponent):
    q, k, v = tensors(before + tokens, kv_heads * shared, kv_heads, dim, seed, 10.0**exponent)
    results = []
    for backend in BACKENDS:
        cache = KVCache(1, kv_heads, dim, before + tokens, name, backend)
        cache.append(0, k[:before], v[:before])
        cache.append(0, k[before:], v[before:])
        results.append((cache.attend(0, q[before:]), cache.store))
    (mine, ours), (other, theirs) = results
    np.testing.assert_array_equal(mine, other)
    for part in ("keys", "values", "key_params", "value_params"):
        np.testing.assert_array_equal(getattr(ours, part), getattr(theirs, part))


@pytest.mark.parametrize("features", [None, frozenset()], ids=["own conversion", "in shifts"])
def test_every_finite_fp16_becomes_its_float32(monkeypatch, features):
    if features is not None:
        monkeypatch.setattr(floats, "cpu_features", lambda: features)
    kind = pages.KIND_NUMBERS["fp16"]

    @njit
    def widened(bits, out):
        pages.widen(kind, bits, 0, bits.size // 16, out)

    every = np.arange(1 << 16).astype(np.uint16)
    finite = every[np.isfinite(every.view(np.float16))]
    out = np.empty(finite.size, np.float32)
    widened(finite, out)
    np.testing.assert_array_equal(out.view(np.uint32), finite.view(np.float16).astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["fp32", "int4"])
def test_token_by_token_equals_all_at_once(name, backend):
    q, k, v = tensors(270, 2, 1, 24, seed=5)
    whole = KVCache(1, 1, 24, 270, name, backend)
    whole.append(0, k, v)
    expected = whole.attend(0, q[-20:])
    cache = KVCache(1, 1, 24, 270, name, backend)
    cache.append(0, k[:250], v[:250])
    for t in range(250, 270):
        cache.append(0, k[t : t + 1], v[t : t + 1])
        np.testing.assert_array_equal(cache.attend(0, q[t : t + 1])[0], expected[t - 250])


def test_exp_is_close_to_exp():
    x = -np.abs(np.random.default_rng(0).normal(size=20_000) * 20).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    inside = x >= -87
    assert (np.abs(exp_non_positive(x) - exact)[inside] <= 2 * 2.0**-24 * exact[inside] * 2).all()
    assert (exp_non_positive(np.array([-88.0, -1e30, -np.inf], np.float32)) == 0).all()


@pytest.mark.parametrize("name", CACHE_FORMATS)
def test_memory_reported_is_memory_allocated(name):
    cache = KVCache(3, 2, 128, 512, name)
    store = cache.store
    assert cache.nbytes == sum(a.nbytes for a in (store.keys, store.values, store.key_params, store.value_params))
    assert cache.nbytes == 3 * 2 * cache.format.bytes_for(512 * 2, 128)


def test_bad_input_is_refused():
    cache = KVCache(2, 2, 8, 4, "int4")
    one = np.ones((1, 2, 8), np.float32)
    with pytest.raises(NearbankError, match="holds 0 tokens; append first"):
        cache.attend(0, one)
    cache.append(0, np.ones((3, 2, 8), np.float32), np.ones((3, 2, 8), np.float32))
    with pytest.raises(NearbankError, match="capacity of 4"):
        cache.append(0, np.ones((2, 2, 8), np.float32), np.ones((2, 2, 8), np.float32))
    assert cache.length(0) == 3
    with pytest.raises(NearbankError, match="layer 2"):
        cache.append(2, one, one)
    with pytest.raises(NearbankError, match=r"expected floats \[tokens, 2, 8\]"):
        cache.append(0, np.ones((1, 3, 8), np.float32), one)
    with pytest.raises(NearbankError, match="3 query heads over 2"):
        cache.attend(0, np.ones((1, 3, 8), np.float32))
    for bad in (np.float32(np.nan), np.float32(np.inf), np.float32(2e38)):
        with pytest.raises(NearbankError, match="NaN or magnitudes"):
            cache.append(0, one * bad, one)
    with pytest.raises(NearbankError, match="NaN or infinity"):
        cache.attend(0, one * np.nan)
    with pytest.raises(NearbankError, match="supported: fp32"):
        KVCache(1, 1, 8, 4, "ternary")
    with pytest.raises(NearbankError, match="capacity = 0"):
        KVCache(1, 1, 8, 0)

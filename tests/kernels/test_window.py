"""Caches with exact newest tokens: right against float64, equal bits on both backends and however tokens come."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.fed_channels import STRENGTHS, TOKENS, extreme, fed

from nearbank.cache_formats import SCHEMES
from nearbank.errors import NearbankError
from nearbank.formats import from_bf16
from nearbank.kernels.reference.feedback import Feedback
from nearbank.kernels.reference.quantise import quantise_tokens
from nearbank.kernels.window import Channels, WindowedKVCache

BACKENDS = ["numpy", "numba"]


def tensors(tokens, heads, kv_heads, dim, seed=0):
    rng = np.random.default_rng(seed)
    spread = rng.lognormal(0, 1, size=(1, kv_heads, dim))  # channels of very different size, as keys have
    q = rng.normal(size=(tokens, heads, dim)).astype(np.float32)
    k, v = ((rng.normal(size=(tokens, kv_heads, dim)) * spread + spread).astype(np.float32) for _ in "kv")
    return q, k, v


def rounded(x, top):
    """Along the last axis, as the cache rounds."""
    codes, scales, offsets = quantise_tokens(np.ascontiguousarray(x), top)
    return from_bf16(offsets)[..., None].astype(np.float64) + from_bf16(scales)[..., None].astype(np.float64) * codes


def expected(scheme, q, k, v, top, scale):
    """The last query's context in float64, from the papers' words; exact when `top` is None."""
    n, group = len(k), scheme.key_group
    keys_end, values_end = scheme.rounded_until(n)
    keys, values = k.astype(np.float64), v.astype(np.float64)
    if top is None:
        return attended(q[-1], keys, values, scale)
    values[:values_end] = rounded(v, top)[:values_end]
    if not group:
        keys[:keys_end] = rounded(k, top)[:keys_end]
    for first in range(0, keys_end if group else 0, group or 1):
        part = k[first : first + group].transpose(1, 2, 0)
        keys[first : first + group] = rounded(part, top).transpose(2, 0, 1)
    return attended(q[-1], keys, values, scale)


def attended(q, keys, values, scale):
    """Softmax attention of one token's heads, in float64."""
    out = []
    for h in range(len(q)):
        head = h // (len(q) // keys.shape[1])
        scores = keys[:, head] @ q[h].astype(np.float64) * scale
        weights = np.exp(scores - scores.max())
        out.append(weights @ values[:, head] / weights.sum())
    return np.array(out)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
@pytest.mark.parametrize("scheme", list(SCHEMES))
@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 100, 290])
def test_the_newest_are_exact_and_the_rest_rounded(scheme, name, tokens, backend):
    q, k, v = tensors(tokens, 4, 2, 24, tokens)
    cache = WindowedKVCache(1, 2, 24, tokens, name, scheme, backend=backend)
    cache.append(0, k, v)
    right = expected(SCHEMES[scheme], q, k, v, cache.format.high, 24**-0.5)
    np.testing.assert_allclose(cache.attend(0, q[-1:])[0], right, rtol=0, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    scheme=st.sampled_from(list(SCHEMES)), name=st.sampled_from(["int8", "int4", "int2"]), dim=st.integers(1, 70),
    before=st.sampled_from([0, 1, 31, 60, 255, 256]), tokens=st.integers(1, 40), shared=st.integers(1, 2),
    form=st.sampled_from(["tokens", "channels", "fed back"]), seed=st.integers(0, 999),
)  # fmt: skip
def test_backends_and_arrival_do_not_change_the_bits(scheme, name, dim, before, tokens, shared, form, seed):
    q, k, v = tensors(before + tokens, 2 * shared, 2, dim, seed)
    channels = None if form == "tokens" else Channels.of(k, v)
    if form == "fed back":
        channels = fed(channels, scheme, seed)
    results = []
    for backend in BACKENDS:
        cache = WindowedKVCache(1, 2, dim, before + tokens, name, scheme, channels, backend)
        cache.append(0, k[:before], v[:before])
        if backend == "numpy":
            cache.append(0, k[before:], v[before:])
            results.append(cache.attend(0, q[before:]))
            continue
        one_by_one = []
        for t in range(before, before + tokens):
            cache.append(0, k[t : t + 1], v[t : t + 1])
            one_by_one.append(cache.attend(0, q[t : t + 1])[0])
        results.append(np.array(one_by_one))
    np.testing.assert_array_equal(*results)


@settings(max_examples=40, deadline=None)
@given(token=TOKENS, name=st.sampled_from(["int8", "int4", "int2"]), strength=STRENGTHS, seed=st.integers(0, 999))
def test_fed_back_codes_are_the_definitions_at_the_extremes(token, name, strength, seed):
    x = np.array(token, np.float32)[None, None]
    stores = []
    for backend in BACKENDS:
        cache = WindowedKVCache(1, 1, len(token), 1, name, "past", extreme(len(token), strength, seed), backend)
        cache.append(0, x, x)
        stores.append(cache.store.pages)
    for part in ("keys", "values", "key_params", "value_params"):
        np.testing.assert_array_equal(*(getattr(one, part) for one in stores), err_msg=part)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_anything_to_feed_back_codes_are_the_nearest(backend):
    """Where nothing is taken over, eight bits cost least untrimmed: what is cut off weighs more than finer steps."""
    _, k, v = tensors(20, 2, 2, 24, 5)
    nothing = Feedback(np.zeros((2, 24, 24), np.float32), np.full((2, 24), 1, np.float32))
    flat = np.ones((2, 24), np.float32)
    channels = Channels(0 * flat, flat, 0 * flat, flat)
    caches = []
    for feedback in (None, nothing):
        cache = WindowedKVCache(
            1, 2, 24, 20, "int8", "past", replace(channels, key_feedback=feedback, value_feedback=feedback), backend
        )
        cache.append(0, k, v)
        caches.append(cache)
    nearest, fed_back = (one.store.pages for one in caches)
    np.testing.assert_array_equal(fed_back.keys, nearest.keys)
    np.testing.assert_array_equal(fed_back.key_params, nearest.key_params)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_have_channels_of_their_own(backend):
    q, k, v = tensors(12, 2, 2, 16, 3)
    every = [fed(Channels.of(part, v), "past", i) for i, part in enumerate((k, 2 * k, k + 1))]
    together = WindowedKVCache(3, 2, 16, 12, "int4", "past", every, backend)
    for layer, channels in enumerate(every):
        alone = WindowedKVCache(1, 2, 16, 12, "int4", "past", channels, backend)
        for cache, at in ((together, layer), (alone, 0)):
            cache.append(at, k, v)
        np.testing.assert_array_equal(together.attend(layer, q), alone.attend(0, q))


def test_channel_scales_help_where_channels_differ():
    """WKVQuant's claim, on keys whose channels differ in size: the static dimension lowers the error."""
    q, k, v = tensors(200, 4, 2, 64, 9)
    exact = expected(SCHEMES["past"], q, k, v, None, 64**-0.5)
    errors = []
    for channels in (None, Channels.of(k, v)):
        cache = WindowedKVCache(1, 2, 64, 200, "int4", "past", channels)
        cache.append(0, k, v)
        errors.append(np.abs(cache.attend(0, q[-1:])[0] - exact).mean())
    assert errors[1] < 0.8 * errors[0]


def test_memory_is_that_of_pages_and_window():
    cache = WindowedKVCache(2, 2, 128, 512, "int4", "kivi")
    _, k, v = tensors(100, 2, 2, 128)
    cache.append(0, k, v)
    cache.append(0, k[:1], v[:1])
    exact = 2 * 2 * (32 + 1 + 8) * 128 * 4 + 2 * 2 * 8 * 128 * 4
    codes = 2 * 2 * 512 * 2 * 64
    params = 2 * 512 * 2 * 4 + 2 * (512 // 32) * 2 * 128 * 4
    assert cache.nbytes == exact + codes + params


def test_bad_input_is_refused():
    with pytest.raises(NearbankError, match="known: past, kivi"):
        WindowedKVCache(1, 1, 8, 4, "int4", "future")
    with pytest.raises(NearbankError, match="rounds to integers"):
        WindowedKVCache(1, 1, 8, 4, "fp32")
    cache = WindowedKVCache(1, 1, 8, 4)
    with pytest.raises(NearbankError, match="capacity of 4"):
        cache.append(0, np.ones((5, 1, 8), np.float32), np.ones((5, 1, 8), np.float32))


def test_channels_that_do_not_fit_are_refused():
    flat, upper = np.ones((2, 8), np.float32), np.tile(np.eye(8, dtype=np.float32), (2, 1, 1))
    channels, fed_back = Channels(flat, flat, flat, flat), Feedback.of(upper)

    def refused(match, scheme="past", layers=1, given=None, **changed):
        with pytest.raises(NearbankError, match=match):
            WindowedKVCache(layers, 2, 8, 4, "int4", scheme, given or replace(channels, **changed))

    refused(r"key_shift is \[1, 8\]; expected \[2, 8\]", key_shift=flat[:1])
    refused("value_scale holds NaN, infinity or a scale of zero", value_scale=0 * flat)
    refused("key_shift holds NaN", key_shift=np.nan * flat)
    refused("those of 2 layers; expected one for all or 3", layers=3, given=[channels, channels])
    refused(r"value_feedback is \[1, 8, 8\]; expected \[2, 8, 8\]", value_feedback=Feedback.of(upper[:1]))
    refused("'kivi' rounds keys channel by channel", "kivi", key_feedback=fed_back)
    for bad in (-upper, upper.swapaxes(1, 2) + 1, np.nan * upper):
        with pytest.raises(NearbankError, match="upper triangles with positive diagonals"):
            Feedback.of(bad)
    with pytest.raises(NearbankError, match="not finite"):
        Feedback.of(np.triu(np.full((1, 8, 8), 1e30, np.float32), 1) + np.float32(1e-20) * upper[:1])
    with pytest.raises(NearbankError, match="feedback is"):
        Feedback.of(upper[0])
    cache = WindowedKVCache(1, 2, 8, 4, "int4", "past", replace(channels, key_feedback=fed_back))
    with pytest.raises(NearbankError, match="NaN"):
        cache.append(0, np.full((1, 2, 8), np.nan, np.float32), np.ones((1, 2, 8), np.float32))

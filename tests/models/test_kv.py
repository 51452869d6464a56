"""KV schemes: bytes to the byte, what each query sees, and rounding held against hand-made cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.random_gpt import random_model

from nearbank.kernels import KVCache, WindowedKVCache
from nearbank.models.execution import Cache
from nearbank.models.kv import KIVI_GROUP, ChannelFit, kv_scheme
from nearbank.models.kv_fit import fit_channels, load_fit, save_fit
from nearbank.models.plain_cache import PlainCache


def filled(cache: Cache, lengths: list[int], seed: int = 0, heads: int = 4) -> list[np.ndarray]:
    """Attention outputs of tokens that arrive in passes of these lengths."""
    random = np.random.default_rng(seed)
    total = sum(lengths)
    q = random.normal(0, 1, (total, heads, cache.head_dim)).astype(np.float32)
    k, v = random.normal(0, 1, (2, total, cache.kv_heads, cache.head_dim)).astype(np.float32)
    out, start = [], 0
    for length in lengths:
        part = slice(start, start + length)
        cache.append(0, k[part], v[part])
        out.extend(cache.attend(0, q[part]))
        start += length
    return out


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16", "int8", "int4", "int2"])
def test_the_plain_cache_equals_the_kernels_cache(name: str) -> None:
    plain = PlainCache(1, 2, 16, 50, kv_scheme(name))
    kernel = KVCache(1, 2, 16, 50, name, "numpy")
    for ours, theirs in zip(filled(plain, [20, 1, 9]), filled(kernel, [20, 1, 9]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["fp32", "int4", "int4-past", "int2-kivi"]),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    window=st.none() | st.integers(1, 50),
)
def test_passes_of_any_length_give_the_same_outputs(name: str, lengths: list[int], window: int | None) -> None:
    def cache() -> PlainCache:
        return PlainCache(1, 2, 16, 200, kv_scheme(name), (window,), 3.0)

    one_by_one = filled(cache(), [1] * sum(lengths))
    np.testing.assert_array_equal(filled(cache(), lengths), one_by_one)


def test_a_window_hides_older_tokens() -> None:
    """With a window of 1 a token sees only itself: its value comes out, whatever was before."""
    cache = PlainCache(1, 1, 4, 10, kv_scheme("fp32"), (1,))
    values = np.arange(12, dtype=np.float32).reshape(3, 1, 4)
    cache.append(0, values, values)
    np.testing.assert_allclose(cache.attend(0, np.ones((3, 1, 4), np.float32)), values)


def test_past_only_keeps_the_newest_token_exact() -> None:
    """A lone token attends only itself: exactly its value, though 2 bits could not hold it."""
    value = np.array([[[0.1, 0.7, -0.4, 0.33]]], np.float32)
    outputs = {}
    for name in ("int2", "int2-past"):
        cache = PlainCache(1, 1, 4, 4, kv_scheme(name))
        cache.append(0, value, value)
        outputs[name] = cache.attend(0, np.ones((1, 1, 4), np.float32))
    np.testing.assert_array_equal(outputs["int2-past"], value)
    assert np.abs(outputs["int2"] - value).max() > 0.01


@given(st.integers(1, 500))
def test_what_is_seen_rounded(end: int) -> None:
    assert kv_scheme("int4").rounded_until(end) == (end, end)
    assert kv_scheme("int4-past").rounded_until(end) == (end - 1, end - 1)
    keys, values = kv_scheme("int4-kivi").rounded_until(end)
    assert keys % KIVI_GROUP == 0
    assert 1 <= end - keys <= KIVI_GROUP  # the newest tokens, itself among them, are exact
    assert end - values == min(end, KIVI_GROUP)


def test_kivi_rounds_keys_per_channel_and_values_per_token() -> None:
    """Channels of very different size cost a per-token rounding its small channels; per channel they survive."""
    scale = np.array([100, 1, 0.01] + [1] * 29, np.float32)
    keys = np.random.default_rng(0).uniform(-1, 1, (1, KIVI_GROUP, 32)).astype(np.float32) * scale
    scheme = kv_scheme("int4-kivi")
    error = np.abs(scheme.rounded_keys(keys) - keys).max(axis=1)[0]
    assert (error <= 2 * scale / 15 / 2 * 1.05).all()
    assert np.abs(kv_scheme("int4").rounded_keys(keys) - keys).max(axis=1)[0][2] > 0.005
    values = np.tile(scale[:, None], (1, 64))[None, :2]  # [1, 2, 64]: constant within a token
    np.testing.assert_allclose(scheme.rounded_values(values), values, rtol=0.01)


@pytest.mark.parametrize("name", ["int8-past", "int4-past", "int4-kivi", "int2-kivi"])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_kernels_windowed_cache_equals_the_plain_one(name: str, backend: str) -> None:
    scheme = kv_scheme(name)
    kernel = WindowedKVCache(1, 2, 32, 90, scheme.format, scheme.method, backend=backend)
    lengths = [50, 1, 1, 20, 13]
    for ours, theirs in zip(filled(PlainCache(1, 2, 32, 90, scheme), lengths), filled(kernel, lengths), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=2e-6)


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8", "int4", "int2"])
def test_allocated_bytes_equal_the_arithmetic(name: str) -> None:
    layers, kv_heads, head_dim, tokens = 3, 2, 64, 512
    cache = KVCache(layers, kv_heads, head_dim, tokens, name)
    assert cache.nbytes == layers * tokens * kv_scheme(name).bytes_per_token(kv_heads, head_dim)


def test_bytes_by_hand() -> None:
    """64 values: 4 bit = 32 bytes and 4 of scale and offset, for K and for V; KIVI spreads K's over 32 tokens."""
    assert kv_scheme("int4").bytes_per_token(1, 64) == 2 * (32 + 4)
    assert kv_scheme("int2-past").bytes_per_token(3, 64) == 3 * 2 * (16 + 4)
    assert kv_scheme("int2-kivi").bytes_per_token(1, 64) == (16 + 64 * 4 // 32) + (16 + 4)


@pytest.mark.parametrize("name", ["int3", "ternary", "int4-", "int4-future", "bf16-past", "kivi"])
def test_unknown_schemes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="KV cache '"):
        kv_scheme(name)


def test_a_fit_divides_channels_by_a_power_of_their_range() -> None:
    """With a = 1 a large channel no longer costs a small one its bits; the value comes back in its own units."""
    scale = np.array([100, 1, 0.01, 1], np.float32)
    values = np.random.default_rng(0).uniform(-1, 1, (40, 1, 4)).astype(np.float32) * scale + 5 * scale
    shift, ones = (5 * scale)[None, None], np.ones((1, 1, 4), np.float32)
    errors = {}
    for name, exponent in (("none", 0), ("full", 1)):
        power = (scale**exponent).astype(np.float32)[None, None] * ones
        cache = PlainCache(1, 1, 4, 40, kv_scheme("int4-2d"), fit=ChannelFit(shift, power, shift, power))
        cache.append(0, values, values)
        seen = cache._seen(0, 40)[1][0]
        errors[name] = np.abs(seen - values[:, 0]).max(axis=0)
    assert errors["none"][2] > 0.008
    assert (errors["full"] <= scale * 2 / 15).all()


def test_fitting_brings_logits_nearer_and_survives_a_file(tmp_path: Path) -> None:
    model = random_model("numpy", kv="fp32")
    text = "the quick brown fox jumps over the lazy dog, and then it rests a while. why not?\n" * 2
    exact = model.logits(model.encode(text[:60]))
    far = {}
    fitted = fit_channels(model, text, "int2-2d", windows=2)
    for name, one in (("plain", replace(model, kv="int2")), ("fitted", fitted)):
        far[name] = np.abs(one.logits(one.encode(text[:60])) - exact).mean()
    assert far["fitted"] < far["plain"]
    assert fitted.kv_fit is not None
    save_fit(tmp_path / "fit.safetensors", fitted.kv_fit)
    again = replace(model, kv="int2-2d", kv_fit=load_fit(tmp_path / "fit.safetensors", model))
    np.testing.assert_array_equal(again.logits([1, 2, 3]), fitted.logits([1, 2, 3]))


def test_fits_are_checked(tmp_path: Path) -> None:
    model = random_model("numpy", kv="int4-wkv")
    with pytest.raises(ValueError, match="KV cache 'int4-wkv' needs a fit"):
        model.logits([1, 2])
    with pytest.raises(ValueError, match="KV cache 'int4' has nothing to fit"):
        fit_channels(model, "hello", "int4")
    with pytest.raises(ValueError, match="the calibration text is 1 tokens"):
        fit_channels(model, "a")
    with pytest.raises(ValueError, match="no fit of a KV cache"):
        load_fit(tmp_path / "none.safetensors", model)
    small = np.ones((1, 1, 4), np.float32)
    save_fit(tmp_path / "small.safetensors", ChannelFit(small, small, small, small))
    with pytest.raises(ValueError, match=r"key_shift is float32\[1, 1, 4\]; random needs float32\[3, 4, 8\]"):
        load_fit(tmp_path / "small.safetensors", model)

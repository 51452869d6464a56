"""Windowed caches' CUDA kernels, the very sources, run on the CPU and held against the NumPy definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.fed_channels import STRENGTHS, TOKENS, extreme, fed

from nearbank.cache_formats import SCHEMES
from nearbank.errors import NearbankError
from nearbank.kernels import Channels, WindowedKVCache, cupy_window
from nearbank.kernels.cuda import cubin, window
from nearbank.kernels.cuda.emulation import compiler
from nearbank.kernels.reference.feedback import Feedback

emulated = pytest.mark.skipif(compiler() is None, reason="emulating CUDA needs a C++ compiler (g++, or CXX)")


@pytest.fixture
def runtime(emulated_gpu):
    return emulated_gpu(window.kernels())


def tensors(tokens, heads, kv_heads, dim, seed):
    rng = np.random.default_rng(seed)
    spread = rng.lognormal(0, 1, size=(1, kv_heads, dim))
    q = rng.normal(size=(tokens, heads, dim)).astype(np.float32)
    return q, *((rng.normal(size=(tokens, kv_heads, dim)) * spread + spread).astype(np.float32) for _ in "kv")


@emulated
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scheme=st.sampled_from(list(SCHEMES)), name=st.sampled_from(window.WINDOWED), dim=st.integers(1, 70),
    sizes=st.lists(st.sampled_from([1, 2, 3, 31, 32, 33, 60]), min_size=1, max_size=4), shared=st.integers(1, 2),
    form=st.sampled_from(["tokens", "channels", "fed back"]), seed=st.integers(0, 999),
)  # fmt: skip
def test_memory_and_attention_have_the_bits_of_the_definition(runtime, scheme, name, dim, sizes, shared, form, seed):
    runtime.forget()
    total = sum(sizes)
    q, k, v = tensors(total, 2 * shared, 2, dim, seed)
    channels = None if form == "tokens" else Channels.of(k, v)
    if form == "fed back":
        channels = fed(channels, scheme, seed)
    twin = WindowedKVCache(1, 2, dim, total, name, scheme, channels, "numpy")
    device = cupy_window.open_window((twin.format, 1, 2, dim, total), twin.scheme, twin.channels)
    start = 0
    for tokens in sizes:
        part = slice(start, start + tokens)
        twin.append(0, k[part], v[part])
        device.write(0, start, k[part], v[part])
        last = slice(start + max(0, tokens - 5), start + tokens)  # of a long append, the last queries
        got = device.read(0, last.start, q[last], np.float32(dim**-0.5))
        np.testing.assert_array_equal(got, twin.attend(0, q[last]))
        start += tokens
    for part in ("keys", "values", "key_params", "value_params"):
        held = np.asarray(getattr(device.memory.pages, part))
        np.testing.assert_array_equal(held, getattr(twin.store.pages, part), err_msg=part)


@emulated
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(token=TOKENS, name=st.sampled_from(window.WINDOWED), strength=STRENGTHS, seed=st.integers(0, 999))
def test_fed_back_codes_are_the_definitions_at_the_extremes(runtime, token, name, strength, seed):
    runtime.forget()
    x, channels = np.array(token, np.float32)[None, None], extreme(len(token), strength, seed)
    twin = WindowedKVCache(1, 1, len(token), 1, name, "past", channels, "numpy")
    device = cupy_window.open_window((twin.format, 1, 1, len(token), 1), twin.scheme, twin.channels)
    twin.append(0, x, x)
    device.write(0, 0, x, x)
    for part in ("keys", "values", "key_params", "value_params"):
        held = np.asarray(getattr(device.memory.pages, part))
        np.testing.assert_array_equal(held, getattr(twin.store.pages, part), err_msg=part)


@emulated
@pytest.mark.parametrize("scheme", SCHEMES)
def test_attention_over_pages_and_a_copy(runtime, scheme):
    q, k, v = tensors(300, 2, 1, 16, 7)
    twin = WindowedKVCache(1, 1, 16, 300, "int4", scheme, None, "numpy")
    device, copy = (cupy_window.open_window((twin.format, 1, 1, 16, 300), twin.scheme, ()) for _ in range(2))
    for part in (slice(0, 298), slice(298, 299), slice(299, 300)):
        twin.append(0, k[part], v[part])
        device.write(0, part.start, k[part], v[part])
    copy.copy_from(device, 300)
    want = twin.attend(0, q[-1:])
    for one in (device, copy):
        np.testing.assert_array_equal(one.read(0, 299, q[-1:], np.float32(0.25)), want)
    device.clear()
    twin.clear()
    twin.append(0, k[:2], v[:2])
    device.write(0, 0, k[:2], v[:2])
    np.testing.assert_array_equal(device.read(0, 0, q[:2], np.float32(0.25)), twin.attend(0, q[:2]))


@emulated
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_front_for_device_arrays(runtime, scheme):
    q, k, v = tensors(300, 4, 2, 24, 3)
    half_k, half_v = k.astype(np.float16), v.astype(np.float16)
    twin = WindowedKVCache(2, 2, 24, 310, "int4", scheme, Channels.of(k, v), "numpy")
    cache = cupy_window.WindowedDeviceCache(2, 2, 24, 310, "int4", scheme, Channels.of(k, v))
    twin.append(1, half_k, half_v)
    cache.append(1, runtime.asarray(half_k), runtime.asarray(half_v))
    got = cache.attend(1, runtime.asarray(q[-3:]))
    assert isinstance(got, runtime.array_type)
    np.testing.assert_array_equal(got, twin.attend(1, q[-3:]))
    assert (cache.length(0), cache.length(1)) == (0, 300)
    with pytest.raises(NearbankError, match="capacity of 310"):
        cache.append(1, runtime.asarray(k), runtime.asarray(v))
    with pytest.raises(NearbankError, match="host memory"):
        cache.append(1, k, v)
    with pytest.raises(NearbankError, match="at most so many tokens"):
        cache.attend(0, runtime.asarray(q))
    before = cache.nbytes
    cache.append(1, runtime.asarray(k[:1]), runtime.asarray(v[:1]))
    assert cache.nbytes < before  # the exact rows of the long append are let go


def test_bad_windows_are_refused(runtime):
    with pytest.raises(NearbankError, match="supported: int2, int4, int8"):
        cupy_window.WindowedDeviceCache(1, 1, 8, 8, "fp16")
    with pytest.raises(NearbankError, match="known: past, kivi"):
        cupy_window.WindowedDeviceCache(1, 1, 8, 8, "int4", "future")
    one, nothing = np.ones((1, 512), np.float32), Feedback(np.zeros((1, 512, 512), np.float32), np.ones((1, 512)))
    with pytest.raises(NearbankError, match="head dimension of 512 need more than a block's shared memory"):
        cupy_window.WindowedDeviceCache(1, 1, 512, 8, channels=Channels(one, one, one, one, nothing))


def compiler_problem() -> str | None:
    pytest.importorskip("cupy")
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except Exception as error:  # a missing libnvrtc shows as any of several errors
        return f"NVRTC does not load: {error}"
    return None


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("name", ["round", "scores", "pages"])
def test_machine_code_spills_nothing(arch, name):
    problem = compiler_problem()
    if problem:
        pytest.skip(problem)
    compiled = cubin.compile_kernel(window.stored_kernel(name, "int4"), arch)
    assert (compiled.spill_bytes, compiled.stack_bytes) == (0, 0)

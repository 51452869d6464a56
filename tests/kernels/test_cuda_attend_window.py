"""The fast attention over windowed caches, its very source run on the CPU and held against the NumPy definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nearbank.cache_formats import SCHEMES
from nearbank.errors import NearbankError
from nearbank.formats import from_bf16
from nearbank.kernels import Channels, WindowedKVCache, cupy_window
from nearbank.kernels.cuda import cache as device_cache
from nearbank.kernels.cuda import cubin, sources, window
from nearbank.kernels.reference.attention import rows_of

CASES = [(name, dim) for name, dims in sources.WINDOW_DIMS.items() for dim in dims]
GROUPS = sorted({scheme.key_group for scheme in SCHEMES.values()})


@pytest.fixture
def runtime(emulated_gpu):
    return emulated_gpu(window.kernels())


def tensors(tokens, heads, kv_heads, dim, rng):
    spread = rng.lognormal(0, 1, size=(1, kv_heads, dim))
    q = rng.normal(size=(tokens, heads, dim)).astype(np.float32)
    return q, *((rng.normal(size=(tokens, kv_heads, dim)) * spread + spread).astype(np.float32) for _ in "kv")


def magnitudes(twin, head, exact, of_keys):
    """What sums over a head add: |exact|, or |scale|·code + |offset| where that is more. [tokens, dim]."""
    pages, tokens = twin.store.pages, twin.length(0)
    rows, params = (pages.keys, pages.key_params) if of_keys else (pages.values, pages.value_params)
    group = twin.scheme.key_group if of_keys else 0
    codes, pairs = rows_of(pages, rows, pages.value_params if group else params, 0, head, tokens)
    scale, offset = pairs[:, :1], pairs[:, 1:]
    if group:
        whole = from_bf16(params[0, :, head].reshape(-1, 2, codes.shape[1]))
        scale, offset = (np.repeat(whole[:, i], group, 0)[:tokens] for i in range(2))
    return np.maximum(np.abs(exact), np.abs(scale * codes) + np.abs(offset)).astype(np.float64)


def bound_of(twin, q, k, v, scale):
    """Largest error, query by query and head by head, that two bfloat16 for a query or a weight allow.

    As for `attend` (test_cuda_cache.py): 2⁻¹⁵ of Σ|q·k| in a score, and as much of |v| in the result; a channel's shift
    adds float32 rounding.
    """
    channels, unit, worst = twin.channels, 2.0**-15, np.zeros(q.shape[:2])
    ones = np.ones(k.shape[1:], np.float32)
    one = channels[0] if channels else Channels(0 * ones, ones, 0 * ones, ones)
    for h in range(q.shape[1]):
        head = h // (q.shape[1] // twin.kv_heads)
        keys = magnitudes(twin, head, (k[:, head] - one.key_shift[head]) / one.key_scale[head], True)
        values = magnitudes(twin, head, (v[:, head] - one.value_shift[head]) / one.value_scale[head], False)
        scores = (np.abs(q[:, h] * one.key_scale[head]).astype(np.float64) @ keys.T).max(axis=1)
        drift = np.expm1(2 * unit * scores * scale) + unit
        worst[:, h] = (drift[:, None] * (values.max(axis=0) * one.value_scale[head])).max(axis=1)
        worst[:, h] += 2.0**-22 * np.abs(one.value_shift[head]).max()
    return worst


def assert_close(got, twin, q, k, v, scale):
    off = np.abs(np.asarray(got, np.float64) - twin.attend(0, q, scale)).max(axis=2)
    assert (off <= bound_of(twin, q, k, v, scale)).all()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=st.sampled_from(CASES), scheme=st.sampled_from(list(SCHEMES)), kv_heads=st.integers(1, 2),
    group=st.integers(1, 9), sizes=st.lists(st.sampled_from([1, 2, 31, 33, 60, 150]), min_size=1, max_size=3),
    multiprocessors=st.integers(1, 5), two_dimensional=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_it_stays_within_the_bound(
    runtime, case, scheme, kv_heads, group, sizes, multiprocessors, two_dimensional, seed
):
    (name, dim), total, start = case, sum(sizes), 0
    runtime.forget()
    runtime.multiprocessors = multiprocessors
    q, k, v = tensors(total, kv_heads * group, kv_heads, dim, np.random.default_rng(seed))
    channels = Channels.of(k, v) if two_dimensional else None
    sizes_of = 1, kv_heads, dim, total, name, scheme, channels
    twin, cache = WindowedKVCache(*sizes_of, "numpy"), cupy_window.WindowedDeviceCache(*sizes_of)
    for tokens in sizes:
        part, last = slice(start, start + tokens), min(tokens, 3)
        twin.append(0, k[part], v[part])
        cache.append(0, runtime.asarray(k[part]), runtime.asarray(v[part]))
        start += tokens
        newest = q[start - last : start]
        for _ in range(2):  # the second finds the scratch as the first left it
            got = cache.attend(0, runtime.asarray(newest), 0.1)
            assert_close(got, twin, newest, k[:start], v[:start], 0.1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_goes_over_pages_and_into_the_callers_memory(runtime, scheme):
    q, k, v = tensors(600, 2, 1, 64, np.random.default_rng(5))
    twin = WindowedKVCache(1, 1, 64, 601, "int4", scheme, None, "numpy")
    cache = cupy_window.WindowedDeviceCache(1, 1, 64, 601, "int4", scheme)
    twin.append(0, k, v)
    cache.append(0, runtime.asarray(k), runtime.asarray(v))
    out = runtime.empty((1, 2, 64), np.float32)
    held = cache.nbytes
    assert cache.attend(0, runtime.asarray(q[-1:]), 0.125, out) is out
    assert_close(out, twin, q[-1:], k, v, 0.125)
    assert cache.nbytes > held  # the scratch is counted
    again = out.copy()
    cache.attend(0, runtime.asarray(q[-1:]), 0.125, out)
    np.testing.assert_array_equal(out, again)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_length_is_the_devices(runtime, scheme):
    """As in a captured step that is played again: nothing of the launch changes but what lies on the device."""
    q, k, v = tensors(40, 1, 1, 64, np.random.default_rng(8))
    twin = WindowedKVCache(1, 1, 64, 40, "int4", scheme, None, "numpy")
    memory = window.allocate(runtime, twin.format, 1, 1, 64, 40, twin.scheme, ())
    scratch = device_cache.attend_scratch(runtime, memory.pages, 1, 1, memory.resident)
    for t in range(40):
        twin.append(0, k[t : t + 1], v[t : t + 1])
        window.append(runtime, memory, 0, runtime.asarray(k[t : t + 1]), runtime.asarray(v[t : t + 1]), 0)
        if t % 13 == 0 or t == 39:
            got = window.attend(runtime, memory, 0, runtime.asarray(q[t : t + 1]), 0.125, scratch)
            assert_close(got, twin, q[t : t + 1], k[: t + 1], v[: t + 1], 0.125)
    memory.pages.lengths[0] = 41  # what an append beyond the capacity leaves
    assert np.isnan(window.attend(runtime, memory, 0, runtime.asarray(q[:1]), 0.125, scratch)).all()


def test_what_lies_behind_the_rounded_tokens_is_never_seen(runtime):
    q, k, v = tensors(50, 2, 1, 64, np.random.default_rng(9))
    for scheme in SCHEMES:
        cache = cupy_window.WindowedDeviceCache(1, 1, 64, 64, "int4", scheme)
        cache.append(0, runtime.asarray(k), runtime.asarray(v))
        before, pages = cache.attend(0, runtime.asarray(q[-1:])).copy(), cache.memory.pages
        until = SCHEMES[scheme].rounded_until(50)[1]
        pages.values[:, :, :, until:] = 255
        pages.value_params[:, :, :, until:] = 0xFFFF  # NaN
        np.testing.assert_array_equal(cache.attend(0, runtime.asarray(q[-1:])), before)


def test_other_head_dimensions_keep_the_order_of_the_definition(runtime):
    q, k, v = tensors(40, 2, 1, 24, np.random.default_rng(4))
    twin = WindowedKVCache(1, 1, 24, 40, "int4", "kivi", None, "numpy")
    cache = cupy_window.WindowedDeviceCache(1, 1, 24, 40, "int4", "kivi")
    twin.append(0, k, v)
    cache.append(0, runtime.asarray(k), runtime.asarray(v))
    out = runtime.empty((1, 2, 24), np.float32)
    cache.attend(0, runtime.asarray(q[-1:]), 0.2, out)
    np.testing.assert_array_equal(out, twin.attend(0, q[-1:], 0.2))
    scratch = device_cache.attend_scratch(runtime, cache.memory.pages, 1, 2, 1)
    with pytest.raises(NearbankError, match="int4 with head dimension 24; supported: int2: 128; int4: 64, 128"):
        window.attend(runtime, cache.memory, 0, runtime.asarray(q[-1:]), 0.2, scratch)


@pytest.mark.parametrize(("group", "arch"), list(zip(GROUPS, ("sm_80", "sm_90a"), strict=True)))
def test_machine_code_has_matrix_instructions_and_spills_nothing(arch, group):
    pytest.importorskip("cupy")
    if cubin.disassembler() is None:
        pytest.skip("nvdisasm is not installed (pip install nvidia-cuda-nvdisasm)")
    compiled = cubin.compile_kernel(sources.attend_window("int4", 128, group), arch)
    found = cubin.instructions(compiled)
    assert (compiled.spill_bytes, compiled.stack_bytes) == (0, 0)
    assert any(name.startswith("HMMA.16816.F32.BF16") for name in found)
    assert any(name.startswith(("LDG.E.NA.128", "LDG.E.128")) for name in found)

"""The CuPy backend's own code without a GPU: the emulation stands in for the device, NumPy for CuPy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from nearbank.errors import NearbankError
from nearbank.kernels import KVCache, PackedMatrix, linear, prepare
from nearbank.kernels import cupy_backend as gpu
from nearbank.kernels.cuda import sources
from nearbank.kernels.levels import LEVELS
from nearbank.kernels.reference import quantise_rows

KERNELS = (
    *(sources.quantise(0, 0), sources.quantise(0, 1), sources.STAGE_CODES),
    *(sources.gemv_rows(bits, 1, sources.ROWS_TWO) for bits in (1, 2)),
    *(sources.gemv_rows(bits, 1, sources.ROWS_SHORT) for bits in (1, 2)),
    *(sources.gemv_one(2, 0, False), sources.gemv_one(2, 3, False), sources.gemv_one(4, 0, True)),
    *(sources.gemv_one(1, 0, False), sources.gemv_one(2, 1, False), sources.gemv_groups(4, 1)),
    *(sources.floats_by_codes(bits) for bits in (1, 2, 4)),
    *(sources.floats_by_floats(2), sources.pack_bits(True), sources.binary_gemm(1, True)),
    *(kernel(fmt) for kernel in (sources.exact_scores, sources.exact_pages) for fmt in ("int4",)),
    *(sources.EXACT_TOTAL, sources.append_rows("int4", 0), sources.append_rows("bf16", 0)),
    *(sources.attend("int4", 64), sources.attend("bf16", 64)),
)


@pytest.fixture
def device(emulated_gpu):
    return emulated_gpu(KERNELS)


def normals(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("spec", ["ternary", "int4", "binary", "bf16"])
def test_linear_on_device_arrays(device, spec):
    packed = PackedMatrix.quantise(normals(70, 200), spec)
    weights, twin = gpu.prepare(packed), prepare(packed, "numpy")
    x = normals(3, 200, seed=1)
    y = gpu.linear(device.asarray(x), weights)
    assert isinstance(y, device.array_type)
    np.testing.assert_array_equal(y, linear(x, twin))
    np.testing.assert_array_equal(gpu.linear(device.asarray(x), weights, activations="fp32"), linear(x, twin, "fp32"))
    if spec == "bf16":
        return
    out = device.empty((3, 70), np.float32)
    workspace = gpu.make_workspace(weights, 3)
    assert gpu.linear(device.asarray(x), weights, out=out, workspace=workspace).ctypes.data == out.ctypes.data
    np.testing.assert_array_equal(out, linear(x, twin))
    half = x.astype(np.float16)
    np.testing.assert_array_equal(gpu.linear(device.asarray(half), weights), linear(half, twin))
    for wrong in (
        device.empty((3, 69), np.float32),
        device.empty((3, 70), np.float16),
        device.empty((70, 3), np.float32).T,
    ):
        with pytest.raises(NearbankError, match="'out' is"):
            gpu.linear(device.asarray(x), weights, out=wrong)


def test_codes_of_many_rows_come_in_the_order_of_columns(device):
    x = normals(130, 90)
    np.testing.assert_array_equal(gpu.quantise_rows(x)[0], quantise_rows(x)[0])


def test_functions_of_the_backend_table(device):
    packed = PackedMatrix.quantise(normals(40, 90), "binary")
    x = normals(2, 90, seed=1)
    codes, scales, sums = gpu.quantise_rows(x)
    assert codes.shape == (2, 90)
    np.testing.assert_array_equal(codes.sum(axis=1), sums)
    state = gpu.prepare(packed)
    expected = linear(x, prepare(packed, "numpy"))
    np.testing.assert_array_equal(gpu.matmul_codes(codes, scales, sums, state), expected)
    np.testing.assert_array_equal(gpu.matmul_floats(x, state), linear(x, prepare(packed, "numpy"), "fp32"))
    signs = np.where(codes < 0, -1, 1).astype(np.int8)
    for levels in ("binary", "ternary"):
        low = gpu.matmul_low(signs, scales, signs.sum(axis=1, dtype=np.int32), state, LEVELS[levels])
        np.testing.assert_array_equal(low, gpu.matmul_codes(signs, scales, sums, state))


@pytest.mark.parametrize(("fmt", "dim"), [("int4", 64), ("int4", 40), ("bf16", 64)])
def test_device_cache(device, fmt, dim):
    cache, twin = gpu.DeviceCache(2, 2, dim, 40, fmt), KVCache(2, 2, dim, 40, fmt, backend="numpy")
    for tokens in (9, 1):
        k, v, q = (normals(tokens, heads, dim, seed=heads) for heads in (2, 2, 6))
        cache.append(1, device.asarray(k), device.asarray(v))
        twin.append(1, k, v)
        np.testing.assert_allclose(cache.attend(1, device.asarray(q)), twin.attend(1, q), atol=1e-3)
    assert cache.length(1) == 10
    assert cache.nbytes >= cache.pages.nbytes
    with pytest.raises(NearbankError, match="10 tokens and 31 more exceed the capacity of 40"):
        cache.append(1, *(device.asarray(normals(31, 2, dim)) for _ in range(2)))
    with pytest.raises(NearbankError, match="whole groups of heads"):
        cache.attend(1, device.asarray(normals(1, 3, dim)))
    cache.clear()
    assert cache.length(1) == 0
    assert not cache.pages.lengths.any()


def test_bad_input_is_named(device):
    weights = gpu.prepare(PackedMatrix.quantise(normals(4, 20), "ternary"))
    with pytest.raises(NearbankError, match="'x' is ndarray in host memory"):
        gpu.linear(normals(1, 20), weights)
    with pytest.raises(NearbankError, match=r"'x' is fp32\[1, 19\]; expected floats \['any', 20\]"):
        gpu.linear(device.asarray(normals(1, 19)), weights)
    with pytest.raises(NearbankError, match="'x' is float64; supported: float32"):
        gpu.linear(device.asarray(np.zeros((1, 20))), weights)
    with pytest.raises(NearbankError, match="unknown norm 'batch'"):
        gpu.linear(device.asarray(normals(1, 20)), weights, norm="batch")
    with pytest.raises(NearbankError, match="gain and bias must be float32"):
        gpu.linear(device.asarray(normals(1, 20)), weights, norm="rms", gain=device.asarray(np.ones(20, np.float16)))
    elsewhere = device.asarray(normals(1, 20)).view(
        type("Elsewhere", (device.array_type,), {"device": SimpleNamespace(id=1)})
    )
    with pytest.raises(NearbankError, match="on device 1, the weights or cache on device 0"):
        gpu.linear(elsewhere, weights)

"""The CUDA backends in the table of backends: what they say where they cannot run, and their bits where they can."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from nearbank.errors import NearbankError
from nearbank.kernels import BACKENDS, KVCache, PackedMatrix, WindowedKVCache, available_backends, linear, prepare
from nearbank.kernels.backends import ON_CUDA, problem_of


@pytest.mark.parametrize("name", ON_CUDA)
def test_an_unusable_backend_says_why(name):
    problem = problem_of(name)
    if problem is None:
        pytest.skip(f"backend {name} can run here")
    packed = PackedMatrix.quantise(np.ones((2, 3), np.float32), "ternary")
    with pytest.raises(NearbankError, match=rf"backend '{name}': .*; available: numpy, numba"):
        prepare(packed, name)
    with pytest.raises(NearbankError, match=f"backend '{name}'"):
        KVCache(1, 1, 8, 8, "int4", backend=name)
    assert name in BACKENDS
    assert name not in available_backends()


def test_importing_the_kernels_loads_no_gpu_package():
    script = "import sys, nearbank.kernels; print([m for m in ('cupy', 'torch', 'numba_cuda') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ON_CUDA)
@pytest.mark.parametrize("spec", ["ternary", "binary", "int8", "int4", "int2", "bf16", "fp16", "fp32"])
def test_matrices_have_the_bits_of_the_definition_on_a_gpu(name, spec):
    if problem_of(name):
        pytest.skip(f"backend {name}: {problem_of(name)}")
    rng = np.random.default_rng(0)
    for rows, cols, tokens in ((1, 1, 1), (257, 1031, 1), (4096, 2048, 8), (300, 777, 200)):
        packed = PackedMatrix.quantise(rng.standard_normal((rows, cols)).astype(np.float32), spec)
        x = rng.standard_normal((tokens, cols)).astype(np.float32)
        np.testing.assert_array_equal(linear(x, prepare(packed, name)), linear(x, prepare(packed, "numpy")))


@pytest.mark.parametrize("name", ON_CUDA)
@pytest.mark.parametrize("fmt", ["int4", "int8", "bf16", "fp32"])
def test_caches_have_the_bits_of_the_definition_on_a_gpu(name, fmt):
    if problem_of(name):
        pytest.skip(f"backend {name}: {problem_of(name)}")
    rng = np.random.default_rng(1)
    caches = [KVCache(1, 2, 64, 600, fmt, backend=backend) for backend in (name, "numpy")]
    for tokens in (300, 1):
        k, v, q = (rng.standard_normal((tokens, heads, 64)).astype(np.float32) for heads in (2, 2, 4))
        for cache in caches:
            cache.append(0, k, v)
        np.testing.assert_array_equal(*(cache.attend(0, q) for cache in caches))


@pytest.mark.parametrize("name", ON_CUDA)
@pytest.mark.parametrize("scheme", ["past", "kivi"])
def test_windowed_caches_have_the_bits_of_the_definition_on_a_gpu(name, scheme):
    if problem_of(name):
        pytest.skip(f"backend {name}: {problem_of(name)}")
    rng = np.random.default_rng(4)
    caches = [WindowedKVCache(1, 2, 64, 600, "int4", scheme, backend=backend) for backend in (name, "numpy")]
    for tokens in (290, 1, 40):
        k, v, q = (rng.standard_normal((tokens, heads, 64)).astype(np.float32) for heads in (2, 2, 4))
        for cache in caches:
            cache.append(0, k, v)
        np.testing.assert_array_equal(*(cache.attend(0, q[-8:]) for cache in caches))


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_norm_has_the_bits_of_the_definition_on_a_gpu(norm):
    if problem_of("cupy"):
        pytest.skip(f"backend cupy: {problem_of('cupy')}")
    import cupy

    rng = np.random.default_rng(5)
    packed = PackedMatrix.quantise(rng.standard_normal((130, 1029)).astype(np.float32), "ternary")
    x, gain = rng.standard_normal((3, 1029)).astype(np.float32), rng.standard_normal(1029).astype(np.float32)
    y = linear(cupy.asarray(x), prepare(packed, "cupy"), norm=norm, gain=cupy.asarray(gain))
    np.testing.assert_array_equal(cupy.asnumpy(y), linear(x, prepare(packed, "numpy"), norm=norm, gain=gain))


def test_device_arrays_stay_on_the_device():
    if problem_of("cupy"):
        pytest.skip(f"backend cupy: {problem_of('cupy')}")
    import cupy

    from nearbank.kernels import cupy_backend

    rng = np.random.default_rng(2)
    packed = PackedMatrix.quantise(rng.standard_normal((130, 300)).astype(np.float32), "ternary")
    x = rng.standard_normal((3, 300)).astype(np.float32)
    weights = cupy_backend.prepare(packed)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        got = cupy_backend.linear(cupy.asarray(x), weights)
    stream.synchronize()
    assert isinstance(got, cupy.ndarray)
    np.testing.assert_array_equal(cupy.asnumpy(got), linear(x, prepare(packed, "numpy")))
    with pytest.raises(NearbankError, match="host memory"):
        cupy_backend.linear(x, weights)
    with pytest.raises(NearbankError, match="expected floats"):
        cupy_backend.linear(cupy.zeros((3, 299), cupy.float32), weights)
    cache = cupy_backend.DeviceCache(1, 2, 128, 300, "int4")
    twin = KVCache(1, 2, 128, 300, "int4", backend="numpy")
    k, v, q = (rng.standard_normal((270, heads, 128)).astype(np.float32) for heads in (2, 2, 4))
    cache.append(0, cupy.asarray(k), cupy.asarray(v))
    twin.append(0, k, v)
    found = cupy.asnumpy(cache.attend(0, cupy.asarray(q[-2:])))
    np.testing.assert_allclose(found, twin.attend(0, q[-2:]), atol=1e-3)


def test_torch_tensors_stay_on_the_device():
    if problem_of("cupy"):
        pytest.skip(f"backend cupy: {problem_of('cupy')}")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    rng = np.random.default_rng(3)
    packed = PackedMatrix.quantise(rng.standard_normal((130, 300)).astype(np.float32), "ternary")
    x = torch.randn(3, 300, device="cuda")
    for given in (x, x.bfloat16(), x.half()):
        y = linear(given, prepare(packed, "cupy"))
        assert y.is_cuda
        expected = linear(given.float().cpu().numpy(), prepare(packed, "numpy"))
        np.testing.assert_array_equal(y.cpu().numpy(), expected)
    with pytest.raises(NearbankError, match="Move it to the CPU, or use"):
        linear(x, prepare(packed, "numba"))

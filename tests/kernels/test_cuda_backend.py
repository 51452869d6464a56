"""The CUDA backends in the table of backends: what they say where they cannot run, and their bits where they can."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from nearbank.errors import NearbankError
from nearbank.kernels import (
    BACKENDS,
    KVCache,
    PackedMatrix,
    PagePool,
    WindowedKVCache,
    available_backends,
    linear,
    prepare,
)
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


@pytest.mark.parametrize("name", ON_CUDA)
def test_sequences_of_a_pool_have_the_bits_of_the_definition_on_a_gpu(name):
    if problem_of(name):
        pytest.skip(f"backend {name}: {problem_of(name)}")
    rng = np.random.default_rng(6)
    prompts, forks = [PagePool(1, 2, 64, 6, "int4", backend).sequence() for backend in (name, "numpy")], []
    for tokens in (250, 20, 1):
        k, v, q = (rng.standard_normal((tokens, heads, 64)).astype(np.float32) for heads in (2, 2, 4))
        for one in (*prompts, *forks):
            one.append(0, k, v)
        forks = forks or [one.fork() for one in prompts]
        for sequences in (prompts, forks):
            np.testing.assert_array_equal(*(one.attend(0, q) for one in sequences))


@pytest.mark.parametrize("name", ["int4", "int2"])
def test_a_captured_step_of_many_sequences_is_replayed_on_a_gpu(name):
    if problem_of("cupy"):
        pytest.skip(f"backend cupy: {problem_of('cupy')}")
    import cupy

    from nearbank.kernels.cupy_pool import DevicePagePool

    rng = np.random.default_rng(7)
    prompt, steps = rng.standard_normal((2, 255, 2, 64)).astype(np.float32), 3
    k, v = rng.standard_normal((2, steps, 3, 2, 64)).astype(np.float32)
    q = rng.standard_normal((3, 4, 64)).astype(np.float32)
    twins = [KVCache(1, 2, 64, 300, name, "numpy") for _ in range(3)]
    for i, twin in enumerate(twins):
        for part_k, part_v in (prompt, (k[:, i], v[:, i])):
            twin.append(0, part_k, part_v)
    fast = name == "int4"
    with cupy.cuda.Stream(non_blocking=True) as stream:
        pool = DevicePagePool(1, 2, 64, 8, name)
        first = pool.sequence()
        first.append(0, *(cupy.asarray(part) for part in prompt))
        sequences = [first, first.fork(), first.fork()]
        new_k, new_v, queries, out = (cupy.asarray(x) for x in (k[0], v[0], q, q))
        for one in sequences:
            one.reserve(steps)
        pool.append_many(0, new_k, new_v, sequences)
        found = pool.attend_many(0, queries, sequences, out=out)
        if fast:
            stream.begin_capture()
            pool.append_many(0, new_k, new_v, sequences)
            pool.attend_many(0, queries, sequences, out=out)
            graph, found = stream.end_capture(), out
        for step in range(1, steps):
            new_k[...], new_v[...] = cupy.asarray(k[step]), cupy.asarray(v[step])
            if fast:
                graph.launch(stream)
            else:
                pool.append_many(0, new_k, new_v, sequences)
                found = pool.attend_many(0, queries, sequences)
        got = cupy.asnumpy(found)
    want = np.concatenate([twin.attend(0, q[i : i + 1]) for i, twin in enumerate(twins)])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 if fast else 0)
    assert pool.free_pages == 8 - 6

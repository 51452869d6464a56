"""The numba-cuda backend in Numba's simulator, held against the NumPy definition; and compiled for a GPU.

The simulator is chosen when Numba is imported, so these checks run in a process of their own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

CHECKS = """
import numpy as np
from nearbank.kernels import KVCache, PackedMatrix, reference, store
from nearbank.kernels.reference import attention
store.PAGE = attention.PAGE = 4  # small pages: the simulator takes milliseconds for every thread
from nearbank.kernels import numba_cuda as device

rng = np.random.default_rng(0)
x = rng.standard_normal((1, 37)).astype(np.float32)
for got, want in zip(device.quantise_rows(x), reference.quantise_rows(x), strict=True):
    np.testing.assert_array_equal(got, want)
x[0, 3] = np.nan
assert np.isnan(device.quantise_rows(x)[1][0])
x[0, 3] = 1.0
codes, scales, sums = reference.quantise_rows(x)
for spec in ("ternary-b3", "binary-tensor", "int8", "int4-g16", "bf16"):
    packed = PackedMatrix.quantise(rng.standard_normal((2, 37)).astype(np.float32), spec)
    state, twin = device.prepare(packed), reference.prepare(packed)
    if not packed.format.is_float:
        got = device.matmul_codes(codes, scales, sums, state)
        np.testing.assert_array_equal(got, reference.matmul_codes(codes, scales, sums, twin), err_msg=spec)
    np.testing.assert_array_equal(device.matmul_floats(x, state), reference.matmul_floats(x, twin), err_msg=spec)
for name in ("bf16", "int8", "int2"):
    twin = KVCache(2, 1, 20, 9, name, backend="numpy")
    pages = device.allocate(twin.format, 2, 1, 20, 9)
    start = 0
    for tokens in (5, 1):
        k, v = (rng.standard_normal((tokens, 1, 20)).astype(np.float32) for _ in range(2))
        twin.append(1, k, v)
        device.append(pages, 1, start, k, v)
        start += tokens
    for part in ("keys", "values", "key_params", "value_params"):
        stored = getattr(twin.store, part)
        found = getattr(pages, part).copy_to_host()[..., : stored.shape[-1]]
        np.testing.assert_array_equal(found, stored, err_msg=name)
    q = rng.standard_normal((1, 2, 20)).astype(np.float32)
    got = device.attend(pages, 1, start - 1, q, np.float32(0.25))
    np.testing.assert_array_equal(got, twin.attend(1, q, 0.25), err_msg=name)
print("every check passed")
"""

POOL = """
import numpy as np
from nearbank.kernels import backends, pages, pool, store
from nearbank.kernels.reference import attention
store.PAGE = attention.PAGE = pages.PAGE = pool.PAGE = 4
backends.problem_of = lambda name: None  # the simulator is no device that the driver knows

rng = np.random.default_rng(0)
pools = [pool.PagePool(1, 1, 20, 5, "int4", backend) for backend in ("numpy", "numba-cuda")]
prompts = [one.sequence() for one in pools]
answers = []
def append(sequences, tokens):
    k, v = rng.standard_normal((2, tokens, 1, 20)).astype(np.float32)
    for sequence in sequences:
        sequence.append(0, k, v)
append(prompts, 6)
answers = [prompt.fork() for prompt in prompts]
append(answers, 3)  # its second page is a copy, its third page new
append(prompts, 1)
for sequences in (prompts, answers):
    q = rng.standard_normal((1, 2, 20)).astype(np.float32)
    np.testing.assert_array_equal(*(sequence.attend(0, q) for sequence in sequences))
assert [one.free_pages for one in pools] == [1, 1]
assert answers[1].held.pages == [0, 2, 3]
print("every check passed")
"""

WINDOWS = """
from dataclasses import replace
import numpy as np
from nearbank import cache_formats
from nearbank.kernels import store
from nearbank.kernels.reference import attention, feedback, windowed
store.PAGE = attention.PAGE = feedback.PAGE = windowed.PAGE = 4
from nearbank.kernels import window, window_host
window_host.PAGE = 4
from nearbank.kernels.numba_cuda import window as device

rng = np.random.default_rng(0)
kivi, past = cache_formats.Scheme("kivi", 2, 3), cache_formats.SCHEMES["past"]
upper = np.triu(rng.standard_normal((2, 1, 20, 20)) / 20 + np.eye(20)).astype(np.float32)
keys, values = map(feedback.Feedback.of, upper)
cases = (kivi, "int4", dict(value_feedback=values)), (kivi, "int2", None), (past, "int8", dict(key_feedback=keys))
for scheme, name, fed in cases:
    k, v = (rng.standard_normal((8, 1, 20)).astype(np.float32) for _ in range(2))
    q = rng.standard_normal((8, 2, 20)).astype(np.float32)
    channels = () if fed is None else (replace(window.Channels.of(k, v), **fed),)
    fmt = window.WindowedKVCache(1, 1, 20, 8, name, backend="numpy").format
    twin, found = (made((fmt, 1, 1, 20, 8), scheme, channels) for made in (windowed.open_window, device.open_window))
    start = 0
    for tokens in (5, 1, 2):
        for one in (twin, found):
            one.write(0, start, k[start : start + tokens], v[start : start + tokens])
        start += tokens
        want, got = (one.read(0, start - 1, q[start - 1 : start], np.float32(0.25)) for one in (twin, found))
        np.testing.assert_array_equal(got, want, err_msg=f"{scheme} {name}")
print("every check passed")
"""

COMPILES = """
from types import SimpleNamespace
from numba import cuda, types
from numba.cuda import dispatcher
# Numba asks the device at hand for which chip to compile the functions that kernels call.
dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=(9, 0))
from nearbank.kernels.numba_cuda import cache, feedback, product, rounding, window

f32, i32, i64 = types.float32, types.int32, types.int64  # a launch hands Python's integers over as int64
def array(kind, dims):
    return types.Array(kind, dims, "C")
weights = (array(types.uint8, 2), array(f32, 2), array(types.uint8, 2), array(i32, 1))
kernels = [
    (product.matmul_codes_kernel, (*weights, array(types.int8, 2), array(f32, 1), array(f32, 2))),
    (product.matmul_floats_kernel, (weights[0], array(f32, 2), *weights[1:], array(f32, 2), array(f32, 2))),
    (rounding.quantise_kernel, (array(f32, 2), array(types.int8, 2), array(f32, 1), array(i32, 1))),
]
for stored in (f32, types.uint16, types.uint8):
    pages, table = (array(stored, 5), array(types.uint16, 5)), array(i64, 1)
    attend = (array(f32, 3), *pages, *pages, table, i64, i64, f32, i64, array(f32, 3), array(f32, 3))
    kernels += [(cache.append_kernel, (array(f32, 3), *pages, table, i64, i64, i64)), (cache.attend_kernel, attend)]
pages, many = (array(types.uint8, 5), array(types.uint16, 5)), array(types.uint16, 6)
exact, bounds = array(f32, 3), array(i64, 2)
kernels += [
    (window.round_groups_kernel, (exact, i64, pages[0], many, i64, i64, i64, i64)),
    (window.scores_kernel, (exact, *pages, many, exact, i64, bounds, i64, i64, i64, f32, i64, exact)),
    (window.context_kernel, (*pages, exact, i64, bounds, i64, i64, i64, exact, exact)),
]
factors = (array(f32, 3), array(f32, 2), array(f32, 2))  # shares, weights, what ranges leave out
memory = (*pages, array(i64, 1))
kernels += [(feedback.feed_back_kernel, (array(f32, 3), *factors, *memory, i64, i64, i64, array(f32, 4)))]
for kernel, signature in kernels:
    ptx, _ = cuda.compile_ptx(kernel.py_func, signature, cc=(9, 0))
    assert ".entry" in ptx, kernel
    for fused in ("fma.", "mad.rn", ".f16", ".ftz", ".approx", "call"):
        assert fused not in ptx, (kernel, fused)
print("every check passed")
"""


def printed(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    return done.stderr + done.stdout.strip()


def test_simulated_kernels_have_the_bits_of_the_definition():
    assert printed(CHECKS, NUMBA_ENABLE_CUDASIM="1").endswith("every check passed")


def test_simulated_sequences_of_a_pool_have_the_bits_of_the_definition():
    assert printed(POOL, NUMBA_ENABLE_CUDASIM="1").endswith("every check passed")


def test_simulated_windows_have_the_bits_of_the_definition():
    assert printed(WINDOWS, NUMBA_ENABLE_CUDASIM="1").endswith("every check passed")


@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="the package numba-cuda is not installed")
def test_kernels_compile_for_a_gpu():
    done = subprocess.run(
        [sys.executable, "-c", "from numba.cuda.cudadrv.nvvm import NVVM; NVVM()"],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("libnvvm is not installed (CUDA toolkit, or pip install nvidia-nvvm)")
    assert printed(COMPILES).endswith("every check passed")


def test_without_a_device_the_error_says_so():
    script = """
import numpy as np
from nearbank.errors import NearbankError
from nearbank.kernels import numba_cuda as device
from numba import cuda
if not cuda.is_available():
    try:
        device.quantise_rows(np.zeros((1, 1), np.float32))
    except NearbankError as error:
        assert "numba-cuda" in str(error) and "numba" in str(error)
    else:
        raise AssertionError("no error")
print("every check passed")
"""
    assert printed(script).endswith("every check passed")

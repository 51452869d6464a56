"""Every rung of the ladders is right, in the emulation; the product to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from nearbank.errors import NearbankError
from nearbank.kernels import KVCache, PackedMatrix, ladder, reference
from nearbank.kernels.cuda import cache, cubin
from nearbank.kernels.cuda.emulation import EmulatedRuntime, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="emulating CUDA needs a C++ compiler (g++, or CXX)")


@pytest.fixture
def runtime() -> EmulatedRuntime:
    return EmulatedRuntime((*ladder.kernels(), *ladder.kernels_in_use()))


@pytest.mark.parametrize("rung", ladder.GEMV, ids=lambda rung: rung.name)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (37, 300), (130, 1111)])
def test_products(runtime, rung, rows, cols):
    rng = np.random.default_rng(0)
    matrix = PackedMatrix.quantise(rng.standard_normal((rows, cols)).astype(np.float32), "ternary")
    codes = rng.integers(-127, 128, cols).astype(np.int8)
    got = ladder.gemv(runtime, rung, ladder.gemv_input(runtime, matrix, codes, 0.37))
    scales, sums = np.array([0.37], np.float32), codes.sum(dtype=np.int32)[None]
    expected = reference.matmul_codes(codes[None], scales, sums, reference.prepare(matrix))
    np.testing.assert_array_equal(got, expected[0])


@pytest.mark.parametrize("rung", ladder.ATTENTION, ids=lambda rung: rung.name)
@pytest.mark.parametrize(("length", "dim"), [(3, 64), (40, 128)])
def test_attention(runtime, rung, length, dim):
    rng = np.random.default_rng(1)
    twin = KVCache(1, 2, dim, 300, "int4", backend="numpy")
    pages = cache.allocate(runtime, twin.format, 1, 2, dim, 300)
    k, v = (rng.standard_normal((length, 2, dim)).astype(np.float32) for _ in range(2))
    twin.append(0, k, v)
    cache.append(runtime, pages, 0, runtime.asarray(k), runtime.asarray(v), 0)
    q = rng.standard_normal((1, 6, dim)).astype(np.float32)
    got = ladder.attend(runtime, rung, pages, length, runtime.asarray(q), dim**-0.5)
    # float32 sums of up to 128 products of size 1, or two-part bfloat16: 2⁻¹⁵ of |values| ≤ 5
    np.testing.assert_allclose(got, twin.attend(0, q), atol=5 * 2.0**-12)


def test_other_formats_are_refused(runtime):
    matrix = PackedMatrix.quantise(np.ones((2, 8), np.float32), "int4")
    with pytest.raises(NearbankError, match="'ternary' weights with a scale per row, not int4"):
        ladder.gemv_input(runtime, matrix, np.ones(8, np.int8), 1.0)


@pytest.mark.skipif(cubin.disassembler() is None, reason="nvdisasm is not installed")
def test_rungs_compile_for_a_gpu():
    pytest.importorskip("cupy")
    for kernel in ladder.kernels():
        assert cubin.compile_kernel(kernel, "sm_90a").spill_bytes == 0, kernel.expression

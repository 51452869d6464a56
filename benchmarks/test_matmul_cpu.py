"""Matrix multiplication on the CPU: packed weights against the memory's bandwidth, and torch beside them."""

from __future__ import annotations

import pytest

from nearbank.kernels.bench.cases import FORMATS, MODEL_SHAPES, SHAPES, matmul_case
from nearbank.kernels.cpu.paths import available_paths

BEST, *OTHERS = available_paths()


@pytest.mark.parametrize("shape", SHAPES + MODEL_SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("fmt", FORMATS)
def test_gemv(timed, threads, fmt, shape):
    timed(matmul_case(fmt, *shape, 1, BEST, threads))


@pytest.mark.parametrize("fmt", ["ternary", "binary"])
def test_gemv_in_the_cache(timed, threads, fmt):
    timed(matmul_case(fmt, *SHAPES[-1], 1, BEST, threads, cold=False))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("path", OTHERS)
@pytest.mark.parametrize("fmt", ["ternary", "binary"])
def test_gemv_on_other_paths(timed, threads, fmt, path, shape):
    timed(matmul_case(fmt, *shape, 1, path, threads))


@pytest.mark.parametrize("m", [2, 4, 8, 32, 128, 512])
@pytest.mark.parametrize("fmt", FORMATS)
def test_gemm(timed, threads, fmt, m):
    timed(matmul_case(fmt, 4096, 4096, m, BEST, threads, cold=m < 32), rounds=50)


@pytest.mark.parametrize("path", OTHERS)
def test_gemm_on_other_paths(timed, threads, path):
    timed(matmul_case("ternary", 4096, 4096, 128, path, threads, cold=False), rounds=30)

"""The CUDA matrix kernels, the very sources, run on the CPU and held against the NumPy definition bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nearbank.errors import NearbankError
from nearbank.formats import FORMATS
from nearbank.kernels import reference
from nearbank.kernels.cuda import host, layout, sources
from nearbank.kernels.cuda.emulation import EmulatedRuntime, compiler
from nearbank.kernels.packed import PackedMatrix

pytestmark = pytest.mark.skipif(compiler() is None, reason="emulating CUDA needs a C++ compiler (g++, or CXX)")

BITS = (1, 2, 4, 8)
SPECS = ("ternary", "binary", "int8", "int4", "int3", "int2", "ternary-b3", "binary-tensor", "ternary-g32", "int4-g48",
         "int8-g100", "int8-g1", "binary-g300")  # fmt: skip
MATRIX_FILES = ("quantise.cuh", "gemv.cuh", "gemv_rows.cuh", "gemm.cuh", "gemm_wide.cuh", "floats.cuh", "bits.cuh")
NORMS_AND_KINDS = ((0, 0), (1, 1), (2, 2))  # of one token: fp32, fp16 after an RMS norm, bf16 after a layer norm
KERNELS = (
    *(kernel for kernel in sources.all_kernels() if kernel.file in MATRIX_FILES),
    *(
        sources.gemv_one(b, 3 * n + kind, grouped)
        for b in BITS
        for n, kind in NORMS_AND_KINDS
        for grouped in (True, False)
    ),
)


@pytest.fixture
def runtime() -> EmulatedRuntime:
    return EmulatedRuntime(KERNELS)


def codes_of(spec: str, rows: int, cols: int, rng: np.random.Generator, extreme: int) -> PackedMatrix:
    """A random matrix of a format; extreme 1: all codes least, 2: all codes greatest."""
    drawn = PackedMatrix.quantise(rng.standard_normal((rows, cols)).astype(np.float32), spec)
    low, high = (-128, 127) if drawn.format.name == "int8" else (drawn.format.low, drawn.format.high)
    codes = (
        rng.integers(low, high + 1, (rows, cols)) if extreme == 0 else np.full((rows, cols), (low, high)[extreme - 1])
    )
    assert drawn.scales is not None
    scales = drawn.scales * np.float32(rng.choice([0.0, 1.0, 1e-30, 1e30]))
    return PackedMatrix.from_codes(drawn.format, codes.astype(drawn.quantised().codes.dtype), scales, drawn.zeros)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spec=st.sampled_from(SPECS),
    rows=st.integers(1, 90),
    cols=st.integers(1, 700),
    tokens=st.integers(1, 18),
    extreme=st.sampled_from([0, 0, 1, 2]),
    multiprocessors=st.integers(1, 7),
    capability=st.sampled_from([90, 70]),
    seed=st.integers(0, 2**32 - 1),
)
def test_integer_products_have_the_bits_of_the_definition(
    runtime, spec, rows, cols, tokens, extreme, multiprocessors, capability, seed
):
    rng = np.random.default_rng(seed)
    packed = codes_of(spec, rows, cols, rng, extreme)
    codes = rng.integers(-128, 128, (tokens, cols)).astype(np.int8)
    scales = rng.random(tokens).astype(np.float32)
    runtime.multiprocessors, runtime.capability = multiprocessors, capability
    tiles = host.upload(runtime, packed)
    staged = host.stage(runtime, runtime.asarray(codes), runtime.asarray(scales), tiles.shape)
    got = host.matmul(runtime, staged, tiles)
    expected = reference.matmul_codes(codes, scales, codes.sum(axis=1, dtype=np.int32), reference.prepare(packed))
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(host.matmul(runtime, staged, tiles), expected)  # scratch was left clean


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spec=st.sampled_from(["ternary", "binary", "int4-row", "int8", "ternary-tensor", "int4", "int4-g48", "int8-g100"]),
    rows=st.integers(1, 400),
    cols=st.integers(1, 2500),
    norm_and_kind=st.sampled_from(NORMS_AND_KINDS),
    multiprocessors=st.integers(1, 3),
    broken=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_one_token_rounded_on_the_way_in_has_the_bits_of_two_kernels(
    runtime, spec, rows, cols, norm_and_kind, multiprocessors, broken, seed
):
    rng, (norm, kind) = np.random.default_rng(seed), norm_and_kind
    tiles = host.upload(runtime, codes_of(spec, rows, cols, rng, 0))
    dtypes = {0: np.float32, 1: np.float16, 2: np.float32}
    x = rng.standard_normal((1, cols)).astype(dtypes[kind])
    if kind == 2:
        x = (x.view(np.uint32) >> 16).astype(np.uint16)  # bfloat16, cut short
    if broken:
        x[0, cols // 2] = {0: np.inf, 1: np.nan, 2: 0x7F80}[kind]
    gain, bias = (runtime.asarray(rng.standard_normal(cols).astype(np.float32)) for _ in range(2))
    given_x, runtime.multiprocessors = runtime.asarray(x), multiprocessors
    staged = host.quantise(runtime, given_x, kind, tiles.shape, norm, gain, bias)
    one = host.linear_one(runtime, given_x, kind, tiles, norm, gain, bias, 1e-5)
    np.testing.assert_array_equal(one, host.matmul(runtime, staged, tiles))


@pytest.mark.parametrize("spec", ["ternary", "int4", "binary", "int8-g64"])
@pytest.mark.parametrize("multiprocessors", [1, 1000])
def test_many_tokens(runtime, spec, multiprocessors):
    runtime.multiprocessors = multiprocessors  # one chooses the large block, many the small one
    check_many_tokens(runtime, spec, 135, wide=False)


@pytest.mark.parametrize("spec", ["ternary", "int8", "int4-row"])
def test_many_tokens_on_warpgroup_instructions(runtime, spec):
    check_many_tokens(runtime, spec, 259, wide=True)


def check_many_tokens(runtime, spec, tokens, wide):
    rng = np.random.default_rng(3)
    packed = codes_of(spec, 140, 330, rng, 0)
    x = rng.standard_normal((tokens, 330)).astype(np.float32)
    runtime.capability = 90 if wide else 89
    tiles = host.upload(runtime, packed)
    staged = host.quantise(runtime, runtime.asarray(x), 0, tiles.shape)
    assert staged.in_steps == wide
    codes, scales, sums = reference.quantise_rows(x)
    expected = reference.matmul_codes(codes, scales, sums, reference.prepare(packed))
    np.testing.assert_array_equal(host.matmul(runtime, staged, tiles), expected)
    again = host.stage(runtime, runtime.asarray(codes), runtime.asarray(scales), tiles.shape)
    np.testing.assert_array_equal(host.matmul(runtime, again, tiles), expected)


def test_a_long_row_is_shared_by_many_blocks(runtime):
    rng = np.random.default_rng(4)
    packed = codes_of("ternary", 16, 30_001, rng, 2)
    codes = np.full((2, 30_001), -128, np.int8)
    runtime.multiprocessors = 11
    tiles = host.upload(runtime, packed)
    staged = host.stage(runtime, runtime.asarray(codes), runtime.asarray(np.ones(2, np.float32)), tiles.shape)
    got = host.matmul(runtime, staged, tiles)
    assert tiles.shape.columns // tiles.shape.tile_columns > host.WARPS  # more than one step
    exact = np.float32(-128 * 30_001)
    np.testing.assert_array_equal(got, np.tile(np.float32(exact) * packed.scales[:, 0], (2, 1)))


@pytest.mark.parametrize("spec", ["fp32", "fp16", "bf16", "ternary", "binary", "int8", "int4", "int3-g16", "int2-g16"])
def test_float_activations_have_the_bits_of_the_definition(runtime, spec):
    rng = np.random.default_rng(5)
    for rows, cols, tokens in ((1, 1, 1), (33, 129, 3), (50, 300, 1)):
        packed = PackedMatrix.quantise(rng.standard_normal((rows, cols)).astype(np.float32), spec)
        x = rng.standard_normal((tokens, cols)).astype(np.float32)
        upload = host.upload_floats if packed.format.is_float else host.upload
        got = host.matmul_floats(runtime, runtime.asarray(x), upload(runtime, packed))
        np.testing.assert_array_equal(got, reference.matmul_floats(x, reference.prepare(packed)))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 40), cols=st.integers(1, 900), tokens=st.integers(1, 40), signed=st.booleans(),
    spec=st.sampled_from(["binary", "binary-tensor"]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_one_bit_activations(runtime, rows, cols, tokens, signed, spec, seed):
    rng = np.random.default_rng(seed)
    packed = codes_of(spec, rows, cols, rng, 0)
    codes = (rng.integers(0, 2, (tokens, cols)) * (2 if signed else 1) - signed).astype(np.int8)
    scales = rng.random(tokens).astype(np.float32)
    tiles = host.upload(runtime, packed)
    got = host.matmul_bits(runtime, runtime.asarray(codes), runtime.asarray(scales), tiles, signed)
    expected = reference.matmul_codes(codes, scales, codes.sum(axis=1, dtype=np.int32), reference.prepare(packed))
    np.testing.assert_array_equal(got, expected)


def test_a_row_with_other_than_one_bit_codes_is_nan(runtime):
    packed = codes_of("binary", 3, 40, np.random.default_rng(6), 0)
    codes = np.ones((2, 40), np.int8)
    codes[1, 7] = 0
    args = host.upload(runtime, packed), True
    got = host.matmul_bits(runtime, runtime.asarray(codes), runtime.asarray(np.ones(2, np.float32)), *args)
    assert np.isfinite(got[0]).all()
    assert np.isnan(got[1]).all()


def normed(x: np.ndarray, norm: int, gain: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    """The fused norm's twin: float32, sums in 256 lanes, then a tree."""

    def fold(terms: np.ndarray) -> np.float32:
        lanes = np.zeros(256, np.float32)
        for first in range(0, len(terms), 256):
            part = terms[first : first + 256]
            lanes[: len(part)] += part
        half = 128
        while half:
            lanes, half = lanes[:half] + lanes[half : 2 * half], half // 2
        return lanes[0]

    out = np.empty_like(x)
    for m, row in enumerate(x):
        centre = np.float32(fold(row) / np.float32(len(row))) if norm == 2 else np.float32(0)
        away = row - centre
        mean = np.float32(fold(away * away) / np.float32(len(row)))
        out[m] = away * (np.float32(1) / np.sqrt(mean + np.float32(epsilon))) * gain + bias
    return out


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_norm_and_rounding_in_one_kernel(runtime, norm, kind):
    rng = np.random.default_rng(7)
    values = (rng.standard_normal((3, 517)) * 5 + 1).astype(np.float32)
    words = FORMATS[("fp32", "fp16", "bf16")[kind]].quantise(values)
    x = FORMATS[("fp32", "fp16", "bf16")[kind]].dequantise(words)
    gain, bias = (rng.standard_normal(517).astype(np.float32) for _ in range(2))
    shape = layout.shape_of(FORMATS["ternary"], 1, 517)
    raw = runtime.asarray(np.asarray(words.codes))
    got = host.quantise(runtime, raw, kind, shape, norm, runtime.asarray(gain), runtime.asarray(bias), 1e-5)
    codes, scales, sums = reference.quantise_rows(normed(x, norm, gain, bias, 1e-5))
    np.testing.assert_array_equal(got.scales, scales)
    np.testing.assert_array_equal(got.codes[:, :517], codes)
    np.testing.assert_array_equal(got.sums[:, 0], sums)
    assert not got.codes[:, 517:].any()


def test_rows_that_are_not_finite_or_zero(runtime):
    x = np.ones((4, 50), np.float32)
    x[0, 3], x[1, 49], x[2] = np.nan, -np.inf, 0.0
    packed = codes_of("ternary", 5, 50, np.random.default_rng(8), 0)
    tiles = host.upload(runtime, packed)
    got = host.matmul(runtime, host.quantise(runtime, runtime.asarray(x), 0, tiles.shape), tiles)
    assert np.isnan(got[:2]).all()
    assert (got[2] == 0).all()
    assert np.isfinite(got[3]).all()


@given(spec=st.sampled_from(SPECS), rows=st.integers(1, 80), cols=st.integers(1, 400), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_tiles_hold_every_code(spec, rows, cols, seed):
    packed = codes_of(spec, rows, cols, np.random.default_rng(seed), 0)
    shape, tiles = layout.tile_matrix(packed)
    assert tiles.nbytes == shape.row_tiles * 16 * shape.columns * shape.bits // 8
    np.testing.assert_array_equal(layout.untile_codes(tiles, shape), packed.quantised().codes.view(np.uint8))


def test_unsupported_devices_and_formats_are_named(runtime):
    tiles = host.upload(runtime, codes_of("ternary", 5, 50, np.random.default_rng(9), 0))
    staged = host.stage(runtime, runtime.asarray(np.zeros((1, 50), np.int8)), runtime.zeros(1, np.float32), tiles.shape)
    runtime.capability = 52
    with pytest.raises(NearbankError, match=r"compute capability 5\.2.*6\.1"):
        host.matmul(runtime, staged, tiles)
    with pytest.raises(NearbankError, match="fp16; supported: ternary"):
        layout.shape_of(FORMATS["fp16"], 4, 4)

"""Matrix multiplication on every backend: exact against integers, bounded against float64, equal in bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.kernels import PackedMatrix, linear, linear_codes, prepare, quantise_rows
from nearbank.kernels.cpu.paths import OVERRIDE, available_paths
from nearbank.kernels.cpu.tiles import CHUNK_BYTES
from nearbank.kernels.levels import LEVELS

# backend, and for the CPU's the instructions it is held to
VARIANTS = [("numpy", ""), *(("numba", path) for path in available_paths())]
INTEGER = [
    "int8",
    "int4",
    "int3",
    "int2",
    "ternary",
    "ternary-b3",
    "binary",
    "int4-g20",
    "int3-g20",
    "ternary-tensor",
    "int8-g32",
]
FLOAT = ["fp32", "fp16", "bf16"]
SHAPES = [(1, 1, 1), (1, 33, 32), (3, 7, 31), (8, 64, 128), (13, 37, 211), (4, 5, 4099)]
LONG = (21, 3, 65_000)  # more columns than 16 rows of activations may have in one go


@pytest.fixture(params=VARIANTS, ids=lambda v: "-".join(filter(None, v)))
def backend(request, monkeypatch):
    name, path = request.param
    if path:
        monkeypatch.setenv(OVERRIDE, path)
    return name


def random_codes(fmt, shape, rng):
    dtype = np.int8 if fmt.name == "int8" else np.uint8
    return rng.integers(fmt.low, fmt.high + 1, shape).astype(dtype)


def random_packed(name, n, k, rng, scale=1.0):
    """A matrix of any codes at all, scales of either sign, zeros anywhere."""
    fmt = format_named(name)
    shape = fmt.scaling.shape(n, k)
    scales = (rng.normal(size=shape) * scale).astype(np.float32)
    zeros = rng.integers(0, fmt.high + 1, shape).astype(np.uint8) if fmt.stores_zeros else None
    return PackedMatrix.from_codes(fmt, random_codes(fmt, (n, k), rng), scales, zeros)


def expected_codes(codes, scales, packed):
    """Exact integers, then the written order of float32 products."""
    levels = packed.levels().astype(np.int64)
    width = packed.format.scaling.group if packed.format.scaling.per == "group" else codes.shape[1]
    y = np.zeros((len(codes), packed.shape[0]), np.float32)
    per_row = np.broadcast_to(packed.scales, (packed.shape[0], -(-codes.shape[1] // width)))
    for g in range(per_row.shape[1]):
        part = slice(g * width, (g + 1) * width)
        exact = codes[:, part].astype(np.int64) @ levels[:, part].T
        y = y + exact.astype(np.float32) * (scales[:, None] * per_row[:, g])
    return y


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", INTEGER)
def test_integer_products_are_exact(backend, name, shape):
    m, n, k = shape
    rng = np.random.default_rng(m * n + k)
    packed = random_packed(name, n, k, rng)
    codes = rng.integers(-128, 128, (m, k)).astype(np.int8)
    scales = rng.random(m).astype(np.float32)
    y = linear_codes(codes, scales, prepare(packed, backend))
    np.testing.assert_array_equal(y, expected_codes(codes, scales, packed))


@pytest.mark.parametrize("name", ["binary", "ternary"])
def test_activations_beyond_the_cache_are_taken_in_chunks(backend, name):
    m, n, k = LONG
    assert m * k > 2 * CHUNK_BYTES
    rng = np.random.default_rng(0)
    packed = random_packed(name, n, k, rng)
    codes, scales = rng.integers(-128, 128, (m, k)).astype(np.int8), rng.random(m).astype(np.float32)
    y = linear_codes(codes, scales, prepare(packed, backend))
    np.testing.assert_array_equal(y, expected_codes(codes, scales, packed))


@pytest.mark.parametrize("name", ["int8", "int4-row", "int2-tensor", "ternary", "binary"])
@pytest.mark.parametrize("extreme", [-128, 127])
def test_the_largest_sums_do_not_overflow(backend, name, extreme):
    """Every code and activation at its end, over a long K: where int16 sums would break first."""
    fmt, k = format_named(name), 8192
    for code in (fmt.low, fmt.high):
        codes = np.full((33, k), code, np.int8 if fmt.name == "int8" else np.uint8)
        zeros = np.zeros(fmt.scaling.shape(33, k), np.uint8) if fmt.stores_zeros else None
        packed = PackedMatrix.from_codes(fmt, codes, np.ones(fmt.scaling.shape(33, k), np.float32), zeros)
        x = np.full((9, k), extreme, np.int8)
        y = linear_codes(x, np.ones(9, np.float32), prepare(packed, backend))
        np.testing.assert_array_equal(y, expected_codes(x, np.ones(9, np.float32), packed))


@settings(max_examples=40, deadline=None)
@given(
    m=st.one_of(st.integers(1, 17), st.integers(18, 150)), n=st.integers(1, 70), k=st.integers(1, 900),
    name=st.sampled_from(["int8", "int8-g32", "int4-row", "int4", "int4-g20", "int2-tensor", "ternary", "binary"]),
    top=st.floats(0, 1), end=st.floats(0, 1), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_any_rows_with_many_values_at_their_ends_are_exact(m, n, k, name, top, end, seed):
    """A share `top` of the codes is the largest there is, a share `end` of the activations −128."""
    rng, fmt = np.random.default_rng(seed), format_named(name)
    codes = np.where(rng.random((n, k)) < top, fmt.high, random_codes(fmt, (n, k), rng))
    packed = random_packed(name, n, k, rng)
    packed = PackedMatrix.from_codes(fmt, codes.astype(packed.quantised().codes.dtype), packed.scales, packed.zeros)
    x = np.where(rng.random((m, k)) < end, -128, rng.integers(-128, 128, (m, k))).astype(np.int8)
    scales = rng.random(m).astype(np.float32)
    for path in available_paths():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(OVERRIDE, path)
            y = linear_codes(x, scales, prepare(packed, "numba"))
            np.testing.assert_array_equal(y, expected_codes(x, scales, packed), path)


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(1, 19), n=st.integers(1, 70), k=st.integers(1, 300), name=st.sampled_from(INTEGER + FLOAT),
    activations=st.sampled_from(["auto", "fp32"]), exponent=st.integers(-30, 30), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_all_backends_return_the_same_bits(m, n, k, name, activations, exponent, seed):
    rng = np.random.default_rng(seed)
    size = 1.0 if name == "fp16" else 10.0**exponent
    weights = (rng.normal(size=(n, k)) * size).astype(np.float32)
    x = rng.normal(size=(m, k)).astype(np.float32)
    packed = PackedMatrix.quantise(weights, name)
    expected = linear(x, prepare(packed, "numpy"), activations)
    for path in available_paths():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(OVERRIDE, path)
            np.testing.assert_array_equal(linear(x, prepare(packed, "numba"), activations), expected, path)


@pytest.mark.parametrize("name", INTEGER + FLOAT)
@pytest.mark.parametrize("k", [1, 47, 1000])
def test_float_activations_stay_within_the_bound(backend, name, k):
    """n additions in 16 lanes and a tree err by at most (n/16 + 4 + 3) ulp/2 of Σ|x·w|; groups add their own."""
    rng = np.random.default_rng(k)
    packed = PackedMatrix.quantise(rng.normal(size=(21, k)).astype(np.float32), name)
    x = rng.normal(size=(3, k)).astype(np.float32)
    weights = packed.dequantise().astype(np.float64)
    exact = x.astype(np.float64) @ weights.T
    steps = k / 16 + 7 + packed.format.scaling.groups(k)
    bound = steps * 2.0**-23 * (np.abs(x).astype(np.float64) @ np.abs(weights).T)
    assert (np.abs(linear(x, prepare(packed, backend), "fp32") - exact) <= bound + 1e-44).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("levels", ["ternary", "uint2", "binary", "uint1"])
@pytest.mark.parametrize("name", ["binary", "ternary", "int2", "binary-g40", "int4"])
def test_activations_of_few_bits_are_exact(backend, name, levels, shape):
    m, n, k = shape
    rng = np.random.default_rng(m * n * k)
    packed, kind = random_packed(name, n, k, rng), LEVELS[levels]
    codes = rng.choice(np.arange(kind.low, kind.high + 1, kind.step), (m, k)).astype(np.int8)
    scales = rng.random(m).astype(np.float32)
    y = linear_codes(codes, scales, prepare(packed, backend), levels)
    np.testing.assert_array_equal(y, expected_codes(codes, scales, packed))


@pytest.mark.parametrize("levels", ["ternary", "uint2", "binary", "uint1", "bits"])
def test_codes_of_other_levels_are_refused(backend, levels):
    matrix = prepare(PackedMatrix.quantise(np.ones((4, 8), np.float32), "binary"), backend)
    with pytest.raises(NearbankError, match="levels" if levels == "bits" else f"not all {levels}"):
        linear_codes(np.array([[0, 1, 2, -1, 4, 1, 1, 1]], np.int8), np.ones(1, np.float32), matrix, levels)


@pytest.mark.parametrize("activations", ["auto", "fp32"])
@pytest.mark.parametrize("name", ["ternary", "int4", "bf16"])
def test_a_row_does_not_depend_on_its_neighbours(backend, name, activations):
    rng = np.random.default_rng(7)
    matrix = prepare(PackedMatrix.quantise(rng.normal(size=(40, 260)).astype(np.float32), name), backend)
    x = rng.normal(size=(21, 260)).astype(np.float32)
    together = linear(x, matrix, activations)
    for m in (0, 3, 20):
        np.testing.assert_array_equal(linear(x[m : m + 1], matrix, activations)[0], together[m])


def test_int8_activations_are_rounded_to_nearest_even(backend):
    x = np.array([[127.0, 0.5, 1.5, -2.5, 63.0], [0, 0, 0, 0, 0], [1e-45, 0, -1e-45, 0, 0]], np.float32)
    rows = quantise_rows(x, backend)
    np.testing.assert_array_equal(rows.codes[0], [127, 0, 2, -2, 63])
    np.testing.assert_array_equal(rows.codes[1:], np.zeros((2, 5)))
    np.testing.assert_array_equal(rows.sums, rows.codes.sum(axis=1))
    assert rows.scales[0] == 1 and rows.scales[1] == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 90), st.integers(-38, 37), st.integers(0, 999))
def test_int8_activations_stay_within_half_a_step(m, k, exponent, seed):
    x = (np.random.default_rng(seed).normal(size=(m, k)) * 10.0**exponent).astype(np.float32)
    rows = quantise_rows(x, "numba")
    for mine, other in zip(vars(rows).values(), vars(quantise_rows(x, "numpy")).values(), strict=True):
        np.testing.assert_array_equal(mine, other)
    if exponent > -30:
        error = np.abs(rows.codes * rows.scales[:, None].astype(np.float64) - x)
        assert (error <= 0.5001 * rows.scales[:, None]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_activations_are_refused(backend, bad):
    x = np.ones((3, 40), np.float32)
    x[1, 17] = bad
    with pytest.raises(NearbankError, match="row 1 holds NaN or infinity"):
        quantise_rows(x, backend)


def test_bad_shapes_and_types_are_refused(backend):
    matrix = prepare(PackedMatrix.quantise(np.ones((4, 8), np.float32), "ternary"), backend)
    floats = prepare(PackedMatrix.quantise(np.ones((4, 8), np.float32), "fp32"), backend)
    with pytest.raises(NearbankError, match=r"7 columns.*K = 8"):
        linear(np.ones((1, 7), np.float32), matrix)
    with pytest.raises(NearbankError, match="int64"):
        linear(np.ones((1, 8), np.int64), matrix)
    with pytest.raises(NearbankError, match="unknown activations"):
        linear(np.ones((1, 8), np.float32), matrix, "int9")
    with pytest.raises(NearbankError, match="integer weights"):
        linear(np.ones((1, 8), np.float32), floats, "int8")
    with pytest.raises(NearbankError, match="integer weights"):
        linear_codes(np.ones((1, 8), np.int8), np.ones(1, np.float32), floats)
    with pytest.raises(NearbankError, match=r"float32\[1\]"):
        linear_codes(np.ones((1, 8), np.int8), np.ones(2, np.float32), matrix)
    with pytest.raises(NearbankError, match="unknown backend"):
        prepare(PackedMatrix.quantise(np.ones((4, 8), np.float32), "ternary"), "abacus")


def test_bad_packed_matrices_are_refused():
    good = PackedMatrix.quantise(np.ones((4, 8), np.float32), "ternary")
    with pytest.raises(NearbankError, match="scales hold NaN"):
        PackedMatrix(good.format, good.shape, good.packed, np.full((4, 1), np.nan, np.float32))
    with pytest.raises(NearbankError, match="'scales' is nothing"):
        PackedMatrix(good.format, good.shape, good.packed)
    with pytest.raises(NearbankError, match="'packed'"):
        PackedMatrix(good.format, (4, 9), good.packed, good.scales)
    damaged = PackedMatrix(good.format, good.shape, good.packed | np.uint8(0xC0), good.scales)
    with pytest.raises(NearbankError, match="expected 0 to 2"):
        prepare(damaged, "numba")
    with pytest.raises(NearbankError, match="zeros reach 16"):
        four = PackedMatrix.quantise(np.ones((4, 8), np.float32), "int4")
        PackedMatrix(four.format, four.shape, four.packed, four.scales, np.full((4, 1), 16, np.uint8))
    with pytest.raises(NearbankError, match="overflow an int32"):
        wide = np.zeros((1, 140_000), np.int8)
        prepare(PackedMatrix.from_codes("int8", wide, np.ones((1, 1), np.float32)))

"""Formats: round trips, byte counts against bytes really held, rounding bounds, bad input."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearbank.errors import NearbankError
from nearbank.formats import FORMATS, Format, Scaling, format_named, from_bf16, to_bf16

NAMES = list(FORMATS)
SCALED = ["int4-g64", "int8-g32", "ternary-tensor", "ternary-g48", "binary-g7", "int2-row", "int4-tensor", "int3-g20"]
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 301))


def matrix(shape: tuple[int, int], seed: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


@pytest.mark.parametrize("name", NAMES + SCALED)
@settings(max_examples=15, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_pack_and_unpack_are_inverse_and_bytes_are_counted(name, shape, seed):
    fmt = format_named(name)
    rounded = fmt.quantise(matrix(shape, seed))
    packed = fmt.pack(rounded.codes)
    np.testing.assert_array_equal(fmt.unpack(packed, shape[1]), rounded.codes)
    held = [packed, rounded.scales, rounded.zeros]
    stored = sum(part.nbytes for part in held if part is not None)
    assert fmt.bytes_for(*shape) == stored
    assert fmt.bits_per_value(*shape) == 8 * stored / (shape[0] * shape[1])


@pytest.mark.parametrize("name", ["int8", "int4", "int3", "int2", "int8-g32", "int4-g64", "int4-tensor"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_uniform_formats_round_within_one_step(name, scale):
    """Symmetric: half a step. With a zero, the zero itself is rounded too: one step."""
    fmt = format_named(name)
    values = matrix((5, 300), 1, scale)
    rounded = fmt.quantise(values)
    step = fmt.scaling.spread(rounded.scales, 300)
    bound = (1.0 if fmt.stores_zeros else 0.5) * step * (1 + 1e-5)
    assert (np.abs(fmt.dequantise(rounded) - values) <= bound).all()


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_short_floats_round_to_nearest(name):
    fmt = format_named(name)
    values = matrix((4, 400), 2)
    bits = {"fp16": 11, "bf16": 8}[name]
    assert (np.abs(fmt.dequantise(fmt.quantise(values)) - values) <= np.abs(values) * 2.0**-bits).all()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_bf16_rounds_to_an_even_neighbour(values):
    exact = np.array(values, np.float32)
    exact = exact[np.abs(exact) < 3e38]
    back = from_bf16(to_bf16(exact)).astype(np.float64)
    spacing = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(exact.astype(np.float64)), 2.0**-126))) - 7)
    assert (np.abs(back - exact) <= spacing / 2).all()


def test_ternary_is_a_third_of_the_mean_magnitude_away_from_zero():
    values = np.array([[0.0, 1.0, -1.0, 0.5, -0.1, 2.0]], np.float32)
    rounded = FORMATS["ternary"].quantise(values)
    assert rounded.scales[0, 0] == pytest.approx(4 / 3 * 4.6 / 6)
    np.testing.assert_array_equal(rounded.codes, [[1, 2, 0, 1, 1, 2]])


def test_the_bytes_are_where_the_layout_says():
    np.testing.assert_array_equal(FORMATS["ternary"].pack(np.array([[2, 0, 1, 2, 0]], np.uint8)), [[0x92, 0x54]])
    np.testing.assert_array_equal(FORMATS["binary"].pack(np.array([[1, 0, 0, 1]], np.uint8)), [[0xF9]])
    np.testing.assert_array_equal(FORMATS["int4"].pack(np.array([[3, 15, 9]], np.uint8)), [[0xF3, 0x09]])
    eight = np.array([[1, 2, 3, 4, 5, 6, 7, 0, 5]], np.uint8)  # from the low bits: 001 010 011 100 …
    np.testing.assert_array_equal(FORMATS["int3"].pack(eight), [[0b11_010_001, 0b0_101_100_0, 0b000_111_11, 5, 0, 0]])
    np.testing.assert_array_equal(
        FORMATS["ternary-b3"].pack(np.array([[2, 1, 0, 2, 2]], np.uint8)), [[2 + 3 + 2 * 27 + 2 * 81]]
    )
    assert FORMATS["ternary-b3"].code_bits == Fraction(8, 5)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "fp16"])
@pytest.mark.parametrize("value", [0.0, 1e-44, 1e37, -1.0])
def test_constant_matrices_survive(name, value):
    fmt = format_named(name)
    back = fmt.dequantise(fmt.quantise(np.full((3, 50), value, np.float32)))
    assert np.isfinite(back).all()
    if value == 0.0:
        assert (back == 0).all()


def test_names_with_other_scales_come_back():
    for name in SCALED:
        assert format_named(name).spec == name
    assert format_named("int4").bits_per_value(1, 128) == 4 + 40 / 128
    assert format_named("int3").bits_per_value(1, 128) == 3 + 40 / 128
    assert format_named("int4").for_cache().bits_per_value(1, 128) == 4.25


@pytest.mark.parametrize("name", ["int5", "ternary-g", "fp32-row", "int4-g0", ""])
def test_unknown_names_are_refused(name):
    with pytest.raises(NearbankError, match="format"):
        format_named(name)


def test_damage_is_noticed():
    ternary, base3 = FORMATS["ternary"], FORMATS["ternary-b3"]
    with pytest.raises(NearbankError, match="expected 0 to 2"):
        ternary.unpack(np.array([[0b11]], np.uint8), 4)
    with pytest.raises(NearbankError, match="expected 0 to 2"):
        base3.unpack(np.array([[243]], np.uint8), 5)
    with pytest.raises(NearbankError, match="expected uint8"):
        ternary.unpack(np.zeros((1, 2), np.uint8), 4)
    with pytest.raises(NearbankError, match="codes from 0 to 9"):
        FORMATS["int2"].pack(np.array([[0, 9]], np.uint8))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_values_that_are_no_numbers_are_refused(name, bad):
    with pytest.raises(NearbankError, match="NaN or infinity"):
        FORMATS[name].quantise(np.array([[0.0, bad]], np.float32))


def test_other_bad_input():
    with pytest.raises(NearbankError, match="beyond its range"):
        FORMATS["fp16"].quantise(np.array([[1e6]], np.float32))
    with pytest.raises(NearbankError, match="expected floats"):
        FORMATS["int8"].quantise(np.zeros(4, np.float32))
    with pytest.raises(NearbankError, match="cannot be stored"):
        FORMATS["int8"].bytes_for(-1, 4)
    with pytest.raises(NearbankError, match="group size"):
        FORMATS["int8"].with_scaling(Scaling("group", group=0))
    assert isinstance(FORMATS["int8"], Format)

"""Quantities are exact, carry a unit, and say what is wrong with anything else."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearbank import units
from nearbank.errors import NearbankError


@pytest.mark.parametrize(
    ("quantity", "text", "expected"),
    [
        (units.TIME, "12 ns", 12_000),
        (units.TIME, "0.769 ns", 769),
        (units.TIME, "6825 ns", 6_825_000),
        (units.VOLTAGE, "1.25 V", 1_250),
        (units.POWER, "149.29 mW", 149_290_000),
        (units.ENERGY, "0.583 pJ", 583),
        (units.SIZE, "2 KiB", 2048),
        (units.FREQUENCY, "1 GHz", 10**9),
        (units.BIT_RATE, "16 Gb/s", 16 * 10**9),
        (units.CURRENT, "122 mA", 122_000),
    ],
)
def test_parses_the_fields_constants(quantity: units.Quantity, text: str, expected: int) -> None:
    assert quantity.parse(text) == expected


@pytest.mark.parametrize(
    ("quantity", "text", "complaint"),
    [
        (units.TIME, 12, "has no unit"),
        (units.TIME, None, "has no unit"),
        (units.TIME, "12", "expected a number, a space and a unit"),
        (units.TIME, "12ns", "expected a number, a space and a unit"),
        (units.TIME, "12 V", "unknown unit 'V' for time"),
        (units.TIME, "0.5 ps", "not a whole number of ps"),
        (units.TIME, "nan ns", "not a number"),
        (units.TIME, "inf ns", "not a number"),
        (units.SIZE, "0.3 KiB", "not a whole number of B"),
        (units.ENERGY, "x pJ", "not a number"),
    ],
)
def test_refuses_what_is_not_exact(quantity: units.Quantity, text: object, complaint: str) -> None:
    with pytest.raises(NearbankError, match=complaint):
        quantity.parse(text)


@given(st.sampled_from(units.QUANTITIES), st.integers(0, 10**18))
def test_format_and_parse_are_inverse(quantity: units.Quantity, value: int) -> None:
    assert quantity.parse(quantity.format(value)) == value


@given(st.decimals(0, 10**6, places=3))
def test_nanoseconds_to_the_picosecond_are_exact(ns: Decimal) -> None:
    assert units.TIME.parse(f"{ns} ns") == int(ns * 1000)


def test_quantity_is_found_by_its_unit() -> None:
    assert units.quantity_of("3 mW") is units.POWER
    with pytest.raises(NearbankError, match="unknown unit 'furlong'"):
        units.quantity_of("3 furlong")


@given(st.integers(0, 10**12), st.integers(1, 10**6))
def test_ceil_div(a: int, b: int) -> None:
    assert (units.ceil_div(a, b) - 1) * b < a <= units.ceil_div(a, b) * b or a == 0

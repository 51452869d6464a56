"""The ASIC's approximations are as good as their iteration counts claim, and its times follow from its units."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nearbank.errors import NearbankError
from nearbank.mapping import asic
from nearbank.mapping.asic import AsicModel, Work

UNIT = AsicModel(clock_hz=10**9, adders=256, multipliers=128, sram_bytes=131072)


def taylor(x: np.ndarray, terms: int) -> np.ndarray:
    return sum(x**i / math.factorial(i) for i in range(terms + 1))


def test_taylor_terms_stay_below_bf16_rounding() -> None:
    f = np.linspace(-math.log(2) / 2, math.log(2) / 2, 1001)
    assert np.abs(taylor(f, asic.TAYLOR_TERMS) / np.exp(f) - 1).max() < 2**-9 / 4


def test_newton_iterations_stay_below_bf16_rounding() -> None:
    """From first guesses taken from the exponent bits of a float32."""
    x = np.linspace(1, 4, 1001).astype(np.float32)
    y = (np.int32(0x7EF311C7) - x.view(np.int32)).view(np.float32).astype(np.float64)
    for _ in range(asic.RECIPROCAL_ITERATIONS):
        y = y * (2 - x * y)
    assert np.abs(y * x - 1).max() < 2**-9
    r = (np.int32(0x5F3759DF) - (x.view(np.int32) >> 1)).view(np.float32).astype(np.float64)
    for _ in range(asic.ROOT_ITERATIONS):
        r = r * (1.5 - x / 2 * r**2)
    assert np.abs(r * np.sqrt(x) - 1).max() < 2**-9


def test_time_is_that_of_the_busier_units_and_the_passes() -> None:
    tree = 8  # log2(256) levels
    assert UNIT.cycles(Work(adds=2560, multiplies=0, passes=0)) == 10
    assert UNIT.cycles(Work(adds=256, multiplies=1280, passes=0)) == 10
    assert UNIT.cycles(Work(adds=0, multiplies=0, passes=3)) == 3 * tree
    assert UNIT.time_ps(asic.add_work(2048)) == (8 + tree) * 1000


def test_a_slower_clock_takes_longer_in_proportion() -> None:
    slow = AsicModel(10**8, 256, 128, 131072)
    for work in (asic.softmax_work(16, 512), asic.gelu_work(8192), asic.norm_work(2048)):
        assert slow.time_ps(work) == 10 * UNIT.time_ps(work)


def test_softmax_of_long_contexts_is_bound_by_the_multipliers() -> None:
    work = asic.softmax_work(16, 1024)
    assert work.multiplies == 16 * 1024 * (asic.TAYLOR_TERMS + 1)
    assert UNIT.cycles(work) == work.multiplies // 128 + 2 * 8


def test_memory_that_is_too_small_is_an_error_with_the_missing_bytes() -> None:
    UNIT.check_sram(131072, "all", "shrink")
    with pytest.raises(NearbankError, match="131072 bytes of SRAM are 28 too few for scores; shorten"):
        UNIT.check_sram(131100, "scores", "shorten")

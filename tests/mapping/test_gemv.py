"""A matrix product through banks, commands and accumulators equals NumPy's, for any shape."""

from __future__ import annotations

from dataclasses import replace
from math import lcm

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearbank.errors import NearbankError
from nearbank.formats import format_named, from_bf16, to_bf16
from nearbank.mapping.bank_arithmetic import tree_sum
from nearbank.mapping.choices import Choices, MatrixChoice
from nearbank.mapping.functional import BankMemory, execute
from nearbank.mapping.gemv import run_gemv
from nearbank.mapping.matmul import part_unit, scale_parts
from nearbank.mapping.matrix_placement import MatrixPlacement
from nearbank.mapping.placement import place
from nearbank.mapping.plan import MappingOptions, plan
from nearbank.mapping.target import MacLanes, Target, target_of
from nearbank.sim.engine import simulate
from nearbank.sim.machine import load_machine
from nearbank.sim.program import Command, Index, Program, Stream
from nearbank.trace import Matrix, ModelDescription

EXACT = target_of(load_machine("pim-gpt-ternary"))  # reads its accumulators with 4 bytes
PUBLISHED = target_of(load_machine("pim-gpt"))


def placed(n: int, k: int, fmt: str, target: Target) -> MatrixPlacement:
    model = ModelDescription(
        name="one matrix",
        layers=1,
        width=64,
        heads=1,
        kv_heads=1,
        head_dim=64,
        hidden=64,
        vocabulary=64,
        context=16,
        matrices=(Matrix(name="w", n=n, k=k, per_layer=True),),
    )
    return place(model, target, weights=fmt, head="bf16", kv="bf16", inputs=None, max_context=16).matrix("w")


def relative_error(n: int, k: int, fmt: str, target: Target, seed: int) -> float:
    rng = np.random.default_rng(seed)
    form = format_named(fmt)
    weights = form.quantise(rng.normal(size=(n, k)).astype(np.float32))
    vector = rng.normal(size=k) if form.is_float else rng.integers(-127, 128, size=k)
    seen = from_bf16(to_bf16(vector.astype(np.float32))) if form.is_float else vector
    expected = form.dequantise(weights).astype(np.float64) @ seen
    result = run_gemv(placed(n, k, fmt, target), target, weights, vector)
    assert result.shape == (n,)
    return float(np.abs(result - expected).max() / np.abs(expected).max())


SHAPES = {"n": st.integers(1, 700), "k": st.integers(1, 2600), "seed": st.integers(0, 9)}


@given(fmt=st.sampled_from(["int8", "ternary", "ternary-tensor", "binary"]), **SHAPES)
@settings(max_examples=20, deadline=None)
def test_integer_products_are_exact(fmt: str, n: int, k: int, seed: int) -> None:
    assert relative_error(n, k, fmt, EXACT, seed) < 1e-6


@given(fmt=st.sampled_from(["int4", "int2", "int4-g64", "int2-g256"]), **SHAPES)
@settings(max_examples=12, deadline=None)
def test_products_with_scales_and_zeros_per_group(fmt: str, n: int, k: int, seed: int) -> None:
    assert relative_error(n, k, fmt, EXACT, seed) < 1e-5


@given(**SHAPES)
@settings(max_examples=10, deadline=None)
def test_bf16_products_differ_by_float32_rounding(n: int, k: int, seed: int) -> None:
    assert relative_error(n, k, "bf16", EXACT, seed) < 1e-5


@pytest.mark.parametrize("fmt", ["bf16", "int8", "ternary", "binary"])
def test_two_byte_reads_round_each_chunk_to_bf16(fmt: str) -> None:
    error = relative_error(300, 2500, fmt, PUBLISHED, 0)
    assert 1e-4 < error < 2**-7


@pytest.mark.parametrize("n", [768, 2304])
def test_rows_that_begin_inside_an_output(n: int) -> None:
    """768 values in int8 are 24 columns: outputs end, begin and are cut in one row."""
    matrix = placed(n, 768, "int8", EXACT)
    assert matrix.chunks[0].packing.crossing
    assert relative_error(n, 768, "int8", EXACT, 1) < 1e-6


def test_fewer_channels_and_banks() -> None:
    small = replace(EXACT, channels=1, banks=4)
    assert relative_error(37, 500, "ternary", small, 2) < 1e-6


@given(serial=st.sampled_from([1, 2, 3, 8]), accumulators=st.integers(1, 9), per_step=st.integers(16, 160), **SHAPES)
@settings(max_examples=12, deadline=None)
def test_serial_units_and_several_accumulators_add_the_same(
    serial: int, accumulators: int, per_step: int, n: int, k: int, seed: int
) -> None:
    """A unit of any width that takes an activation's bits in `serial` parts, and reads its sums a batch at a time."""
    lanes = tuple((name, MacLanes(per_step, serial, integer=True)) for name in ("ternary", "binary"))
    unit = replace(EXACT, lanes=(*lanes, ("bf16", MacLanes(16))), accumulators=accumulators)
    assert relative_error(n, k, "ternary" if seed % 2 else "binary", unit, seed) < 1e-6


def test_a_damaged_weight_is_seen() -> None:
    rng = np.random.default_rng(0)
    form = format_named("ternary")
    weights = form.quantise(rng.normal(size=(40, 300)).astype(np.float32))
    vector = rng.integers(1, 100, size=300)
    good = run_gemv(placed(40, 300, "ternary", EXACT), EXACT, weights, vector)
    weights.codes[17, 299] = (weights.codes[17, 299] + 1) % 3
    bad = run_gemv(placed(40, 300, "ternary", EXACT), EXACT, weights, vector)
    assert np.flatnonzero(good != bad).tolist() == [17]


def test_tree_sum_adds_everything() -> None:
    terms = np.arange(1, 14, dtype=np.float32).reshape(1, 13)
    assert tree_sum(terms).tolist() == [91.0]


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ((Command("RD", column=Index(0)),), "not open"),
        ((Command("ACT16"), Command("ACT16", row=Index(1))), "another row open"),
        ((Command("ACT16"), Command("RD", row=Index(3))), "RD of row 3"),
        ((Command("ACT16", row=Index(99999)), Command("RD", row=Index(99999))), "outside"),
    ],
)
def test_row_states_are_checked(commands: tuple[Command, ...], expected: str) -> None:
    program = Program("wrong", (Stream(tuple(range(8)), commands),))
    with pytest.raises(NearbankError, match=expected):
        execute(program, BankMemory(EXACT), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("fmt", ["int4-row", "int2-tensor"])
def test_zeros_that_nobody_takes_off_are_refused(fmt: str) -> None:
    with pytest.raises(NearbankError, match=f"takes no zeros off sums of {fmt}"):
        relative_error(20, 200, fmt, target_of(load_machine("pim-gpt-lowbit")), 0)


def test_a_trace_with_other_shapes_is_refused() -> None:
    from tests.mapping.shapes import gpt, steps

    placed_model = plan(gpt("m", 1, 64, 4, vocabulary=50, context=32), load_machine("pim-gpt"))
    with pytest.raises(NearbankError, match=r"is \[384, 128\] in the trace but \[192, 64\]"):
        placed_model.lower(next(steps(gpt("m", 1, 128, 4, vocabulary=50, context=32), 1, 1)))


@given(
    split=st.sampled_from([1, 2, 4, 8]),
    chunk=st.sampled_from([None, 5, 33]),
    crossing=st.sampled_from([None, True, False]),
    early=st.booleans(),
    narrow_first=st.booleans(),
    **SHAPES,
)
@settings(max_examples=16, deadline=None)
def test_every_choice_gives_the_same_product(
    split: int, chunk: int | None, crossing: bool | None, early: bool, narrow_first: bool, n: int, k: int, seed: int
) -> None:
    """Channels that share outputs, narrower chunks in either order, either packing, rows opened before the vector."""
    k = max(k // 32, 1) * 32 if narrow_first else k  # whole columns and bursts
    choice = MatrixChoice(split, chunk, crossing, narrow_first)
    choices = Choices(early_rows=early, pieces=3).with_matrix("w", choice)
    chosen = replace(EXACT, choices=choices)
    assert relative_error(n, k, "int8-tensor" if seed % 2 else "bf16", chosen, seed) < 1e-5


@given(fmt=st.sampled_from(["int8", "ternary", "binary"]), early=st.booleans(), **SHAPES)
@settings(max_examples=12, deadline=None)
def test_outputs_in_parts_give_the_same_product(fmt: str, early: bool, n: int, k: int, seed: int) -> None:
    """An ASIC that holds the scales of a few outputs per bank only, on one channel, so that there are many parts."""
    asic = replace(EXACT.asic, sram_bytes=4 * 16 * 4 * 8)
    small = replace(EXACT, channels=1, asic=asic, choices=Choices(early_rows=early))
    matrix = placed(n, k, fmt, small)
    assert len(scale_parts(matrix, small)) == -(-small.outputs_of(0, n) // lcm(part_unit(matrix), 8))
    assert relative_error(n, k, fmt, small, seed) < 1e-6


@pytest.mark.parametrize("machine", ["pim-gpt", "pim-gpt-lowbit"])
def test_a_head_with_a_scale_per_row_fits_the_asic(machine: str) -> None:
    """50,257 scales are 200 KB, the ASIC's memory 128: it reads and multiplies a part of the outputs at a time."""
    from tests.mapping.shapes import gpt, steps

    model = gpt("m", 1, 2048, 16)
    pim, step = load_machine(machine), next(steps(model, 1, 1))
    plans = [plan(model, pim, MappingOptions(head=head, max_context=64)) for head in ("int8-tensor", "int8")]
    one, rows = (simulate(pim, [placed.lower(step)]) for placed in plans)
    assert one.time_ps < rows.time_ps < 1.15 * one.time_ps

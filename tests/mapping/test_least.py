"""No mapping is quicker than the least: held against simulations, against every layout of a matrix, and by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.mapping.shapes import gpt, steps

from nearbank.mapping import MappingOptions, bounds, plan
from nearbank.mapping.choices import Choices, MatrixChoice
from nearbank.mapping.gemv import gemv_program
from nearbank.mapping.least import Waits, least, matrix_least
from nearbank.mapping.least_rows import Count, Vectors, outputs_least, product_least
from nearbank.mapping.plan import Plan
from nearbank.mapping.search import plan_like
from nearbank.mapping.target import target_of
from nearbank.sim.engine import simulate
from nearbank.sim.machine import load_machine
from nearbank.sim.variant import what_if

PIM = load_machine("pim-gpt")
TARGET = target_of(PIM)
WAITS = Waits.of(PIM)
CHANGE, READ = TARGET.row_change - 1, TARGET.readout


@settings(max_examples=25, deadline=None)
@given(
    heads=st.sampled_from([6, 9, 12, 25]),
    context=st.integers(1, 200),
    kv=st.sampled_from(["bf16", "int8", "int4-past", "int4-kivi"]),
    machine=st.sampled_from(["pim-gpt", "pim-gpt-ternary"]),
    choices=st.builds(
        Choices,
        early_rows=st.booleans(),
        in_place=st.booleans(),
        pieces=st.sampled_from([4, 16]),
        team=st.sampled_from([None, 1, 2, 4]),
        joined=st.sampled_from([None, False]),
    ),
    v_block=st.sampled_from([None, 16, 64]),
    split=st.sampled_from([1, 2, 8]),
    chunk=st.sampled_from([None, 24, 48]),
)
def test_no_simulated_step_is_quicker(
    heads: int,
    context: int,
    kv: str,
    machine: str,
    choices: Choices,
    v_block: int | None,
    split: int,
    chunk: int | None,
) -> None:
    model, target = gpt("m", 2, 64 * heads, heads, vocabulary=2000, context=256), load_machine(machine)
    choices = choices.with_matrix("mlp.fc2", MatrixChoice(split, chunk)).with_matrix("attn.qkv", MatrixChoice(1, chunk))
    if kv == "int4-kivi":
        choices = replace(choices, team=None)
    placed = plan(model, target, MappingOptions(kv=kv, choices=choices, v_block=v_block))
    step = list(steps(model, context, 2))[1]
    # A short step may fall between two refreshes, so the bound's share of them is taken off.
    bound = least(placed, target, [context + 1])
    time_ns = simulate(target, placed.lower(step)).cycles * target.tck_ps / 1e3
    assert time_ns >= bound.total_ns - bound.parts_ns["refresh"]


LAYOUTS = [
    MatrixChoice(split, chunk, crossing, narrow)
    for split in (1, 2, 8)
    for chunk in (None, 25)
    for crossing, narrow in ((None, False), (True, False), (False, False), (None, True))
]


@pytest.mark.parametrize("width", [768, 1024, 1600])
def test_no_layout_of_a_matrix_is_quicker_and_one_comes_near(width: int) -> None:
    """Products alone, simulated: what the least says of rows, sums and vectors, without the change of rows before."""
    machine = what_if(PIM, "no refresh", {"refresh.policy": "none"})
    placed = plan(gpt("m", 1, width, width // 64, vocabulary=5000), machine, MappingOptions(max_context=64))
    for matrix in placed.placement.matrices:
        bound = matrix_least(matrix, TARGET, WAITS)
        in_banks = bound.cycles - bound.dependencies
        nearest = min(_simulated(placed, matrix.name, choice) for choice in LAYOUTS)
        # Beside it: the first row opens, the last sum is on its way, and each of a few chunks waits for its bursts.
        assert in_banks <= nearest <= 1.015 * in_banks + 70


def _simulated(placed: Plan, name: str, choice: MatrixChoice) -> float:
    chosen = replace(placed.options, choices=Choices(early_rows=True).with_matrix(name, choice))
    other = plan_like(placed, chosen)
    program = gemv_program(other.placement.matrix(name), other.target)
    return simulate(placed.machine, program).cycles


def test_rows_and_sums_by_hand() -> None:
    """A full row costs its change; rows of 48 columns are filled and interrupted, or left with 16 columns empty."""
    assert outputs_least(6, 64, 1, TARGET).cycles == 6 * (64 + CHANGE)
    assert outputs_least(8, 48, 1, TARGET).cycles == 8 * 48 + 6 * (CHANGE + READ)
    assert outputs_least(32, 4, 1, TARGET).cycles == 32 * 4 + 2 * (CHANGE + 15 * READ)
    assert outputs_least(32, 4, 1, replace(TARGET, accumulators=8)).cycles == 32 * 4 + 2 * (CHANGE + READ)
    # Of 16 outputs of 36 columns in nine rows, seven cross a row's end: 23 pieces, 14 of them read within rows.
    assert outputs_least(16, 36, 1, TARGET).cycles == 16 * 36 + 9 * CHANGE + 14 * READ


def test_vectors_by_hand() -> None:
    """A chunk's bursts take longer than a change of rows and the bus to turn; sent ahead, some of them less."""
    vectors = Vectors(burst=1, held=64, turn=9, before=30, alone=None)
    assert vectors.first(64, 64, TARGET) == Count(vectors=64 - CHANGE, dependencies=30)
    assert vectors.later(64, 64, 6, TARGET) == vectors.later(64, 16, 6, TARGET) == 64 + 9 - CHANGE
    assert vectors.later(16, 64, 6, TARGET) == 0
    ahead = replace(vectors, ahead=True)
    assert ahead.later(64, 64, 6, TARGET) == 64 + 9 - CHANGE
    assert ahead.later(32, 32, 4, TARGET) == 0  # all but six in the change of rows among the four before
    assert ahead.later(32, 32, 2, TARGET) == 32 + 9 - CHANGE  # which lie in one row
    assert ahead.later(64, 48, 4, TARGET) == 64 - 16 - CHANGE + 9 - CHANGE  # the last of four is cut by a row's end
    wide, narrow = (product_least(6, 80, 1, v, TARGET).cycles for v in (vectors, replace(vectors, held=16)))
    assert wide < narrow
    short = product_least(1, 8, 1, vectors, TARGET)
    assert short.vectors + short.dependencies + CHANGE == 8 + 30


def test_the_quickest_chunks_are_found() -> None:
    """The slow twin: every way to cut some columns, one after another."""
    vectors = Vectors(burst=1, held=20, turn=9, before=None, alone=30, ahead=True)
    target = replace(TARGET, columns=16)

    def cost(widths: tuple[int, ...]) -> float:
        rows = sum(outputs_least(5, w, 1, target).cycles for w in widths)
        later = sum(vectors.later(b, a, 5, target) for a, b in pairwise(widths))
        return rows + later + vectors.first(widths[0], sum(widths), target).cycles

    for columns in (7, 13, 17):
        found = product_least(5, columns, 1, vectors, target).cycles
        assert found == min(cost(widths) for widths in _cuts(columns, vectors.held))


def _cuts(columns: int, held: int) -> Iterator[tuple[int, ...]]:
    if columns == 0:
        yield ()
    for first in range(1, min(columns, held) + 1):
        yield from ((first, *rest) for rest in _cuts(columns - first, held))


def test_the_least_grows_with_the_context_and_lies_above_the_bound_of_rows() -> None:
    placed = plan(gpt("m", 2, 768, 12, context=1024), PIM)
    found = [least(placed, PIM, [context]).total_ns for context in (2, 100, 1000)]
    assert all(a < b for a, b in pairwise(found))
    assert found[2] > bounds(placed, PIM, 1000).row_aware_ns
    assert least(placed, PIM, [100]).most_gain(found[1]) == 0

"""No mapping is quicker than the least: held against simulations, against every layout of a matrix, and by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.mapping.shapes import gpt, paper_models, steps

from nearbank.mapping import MappingOptions, bounds, plan
from nearbank.mapping.bounds import matrix_cycles
from nearbank.mapping.choices import Choices, MatrixChoice
from nearbank.mapping.least import best_chunks, least, matrix_least, one_output
from nearbank.mapping.search import plan_like
from nearbank.mapping.target import target_of
from nearbank.sim.engine import simulate
from nearbank.sim.machine import load_machine

PIM = load_machine("pim-gpt")
TARGET = target_of(PIM)
CHANGE, READ = TARGET.row_change - 1, TARGET.readout


@settings(max_examples=10, deadline=None)
@given(
    heads=st.sampled_from([6, 12, 25]),
    context=st.integers(1, 200),
    kv=st.sampled_from(["bf16", "int8", "int4-past", "int4-kivi"]),
    machine=st.sampled_from(["pim-gpt", "pim-gpt-ternary"]),
    early=st.booleans(),
    split=st.sampled_from([1, 2, 8]),
    pieces=st.sampled_from([4, 16]),
)
def test_no_simulated_step_is_quicker(
    heads: int, context: int, kv: str, machine: str, early: bool, split: int, pieces: int
) -> None:
    model, target = gpt("m", 2, 64 * heads, heads, vocabulary=2000, context=256), load_machine(machine)
    choices = Choices(early_rows=early, pieces=pieces).with_matrix("mlp.fc2", MatrixChoice(split))
    placed = plan(model, target, MappingOptions(kv=kv, choices=choices))
    step = list(steps(model, context, 2))[1]
    # A short step may fall between two refreshes, so the bound's share of them is taken off.
    bound = least(placed, target, context)
    time_ns = simulate(target, placed.lower(step)).cycles * target.tck_ps / 1e3
    assert time_ns >= bound.total_ns - bound.parts_ns["refresh"]


@pytest.mark.parametrize("model", paper_models()[3:4], ids=lambda m: m.name)
def test_no_layout_of_a_matrix_is_quicker(model) -> None:  # type: ignore[no-untyped-def]
    placed = plan(model, PIM)
    for matrix in placed.placement.matrices:
        bound = matrix_least(matrix, TARGET).cycles
        for choice in (MatrixChoice(s, c, x) for s in (1, 2, 8) for c in (None, 25, 50) for x in (None, True, False)):
            chosen = replace(placed.options, choices=Choices().with_matrix(matrix.name, choice))
            other = plan_like(placed, chosen)
            assert matrix_cycles(other.placement.matrix(matrix.name), other.target) >= bound - 1e-9


def test_rows_and_sums_by_hand() -> None:
    """A full row costs its change; rows of 48 columns are filled and interrupted, or left with 16 columns empty."""
    assert one_output(64, 1, TARGET).cycles == 64 + CHANGE
    assert one_output(48, 1, TARGET).cycles == 48 + min((CHANGE + READ) * 0.75, CHANGE)
    assert one_output(4, 1, TARGET).cycles == 4 + (CHANGE + 15 * READ) / 16
    assert one_output(4, 1, replace(TARGET, accumulators=8)).cycles == 4 + (CHANGE + READ) / 16
    assert best_chunks(128, 64, 1, TARGET).cycles == 2 * one_output(64, 1, TARGET).cycles


def test_the_least_grows_with_the_context_and_lies_above_the_bound_of_rows() -> None:
    placed = plan(gpt("m", 2, 768, 12, context=1024), PIM)
    found = [least(placed, PIM, context).total_ns for context in (1, 100, 1000)]
    assert all(a < b for a, b in pairwise(found))
    assert found[2] > bounds(placed, PIM, 1000).row_aware_ns
    assert least(placed, PIM, 100).most_gain(found[1]) == 0

"""The automatic mapper: never slower than the published mapping, the same answer twice, gains where there are some."""

from __future__ import annotations

import pytest
from tests.mapping.shapes import gpt, steps

from nearbank.errors import NearbankError
from nearbank.mapping import MappingOptions, bounds, plan
from nearbank.mapping.bounds import refresh_share
from nearbank.mapping.choices import Choices, MatrixChoice
from nearbank.mapping.kept import longest_closed_ps
from nearbank.mapping.search import Found, plan_best, sample
from nearbank.sim.engine import simulate
from nearbank.sim.machine import load_machine
from nearbank.sim.program import expand
from nearbank.sim.variant import what_if

PIM = load_machine("pim-gpt")
LAYERS = 2


@pytest.fixture(scope="module")
def found() -> Found:
    model = gpt("medium", LAYERS, 1024, 16)
    return plan_best(model, PIM, MappingOptions(max_context=1024), steps(model, 1, 1024))


def test_it_gains_and_says_by_what(found: Found) -> None:
    assert found.best_ns < 0.99 * found.default_ns
    assert found.gains[0].before_ns == found.default_ns
    assert found.gains[-1].after_ns == found.best_ns
    assert all(gain.after_ns < gain.before_ns for gain in found.gains)
    assert any("rows: opened" in gain.choice for gain in found.gains)
    assert any("fc2" in gain.choice for gain in found.gains)


def test_what_it_says_is_what_a_simulation_gives(found: Found) -> None:
    chosen = sample(list(steps(found.plan.model, 1, 1024)))
    again = plan(found.plan.model, PIM, found.plan.options)
    result = simulate(PIM, [again.lower(step) for step in chosen])
    assert result.time_ps / 1e3 / len(chosen) == found.best_ns


def test_the_gap_adds_up_and_lies_above_the_bounds(found: Found) -> None:
    gap = found.gap
    assert sum(gap.parts_ns.values()) == pytest.approx(gap.measured_ns - gap.row_aware_ns)
    assert gap.row_aware_ns < gap.placed_ns < gap.measured_ns == found.best_ns
    published = plan(found.plan.model, PIM, MappingOptions(max_context=1024))
    assert bounds(published, PIM, 512).placed_ns < found.default_ns


@pytest.mark.parametrize(
    ("weights", "kv", "machine"), [("ternary", "int4", "pim-gpt-ternary"), ("int4-g64", "bf16", "pim-gpt-lowbit")]
)
def test_it_is_never_slower_in_any_format(weights: str, kv: str, machine: str) -> None:
    model = gpt("m", 1, 192, 6, vocabulary=300, context=64)
    options = MappingOptions(weights=weights, kv=kv)
    first, second = (plan_best(model, load_machine(machine), options, steps(model, 1, 40)) for _ in range(2))
    assert first.best_ns <= first.default_ns
    assert (first.plan.options, first.best_ns) == (second.plan.options, second.best_ns)


def test_without_refresh_it_gains_what_refresh_took(found: Found) -> None:
    model = found.plan.model
    run = list(steps(model, 1, 1024))
    kept = plan_best(model, PIM, MappingOptions(max_context=1024), run, by_use=True)
    assert kept.best_ns < (1 - refresh_share(PIM)) * found.best_ns * 1.005
    assert kept.plan.machine.refresh.policy == "by_use"
    result = simulate(kept.plan.machine, [kept.plan.lower(run[-1])])
    assert result.command_counts()["REFab"] == 0
    assert kept.closed_ps is not None
    assert result.time_ps <= kept.closed_ps <= 2 * result.time_ps
    assert any("no refresh commands" in line for line in kept.lines())
    assert kept.least.parts_ns["refresh"] == 0
    assert kept.least.total_ns < kept.best_ns


def test_every_row_of_the_model_is_opened_in_every_step(found: Found) -> None:
    """The slow twin: rows of the expanded program against the rows that hold weights."""
    placed = found.plan
    for step in (list(steps(placed.model, 1, 40))[-1], list(steps(placed.model, 1, 1024))[-1]):
        opened = {s.row for s in expand(placed.lower(step)) if s.command == "ACT16"}
        weights = {r for m in placed.placement.matrices for x in range(m.region.copies) for r in m.region.rows_of(x)}
        assert weights <= opened


def test_a_prompt_that_takes_too_long_keeps_refresh() -> None:
    """The LM head is opened at the end of the prompt only."""
    model = gpt("m", 1, 192, 6, vocabulary=300, context=1024)
    slow = what_if(PIM, "slow ASIC", {"asic.clock": "100 kHz"})
    run = list(steps(model, 40, 2))
    with pytest.raises(NearbankError, match="keep the refresh commands"):
        longest_closed_ps(plan(model, slow, MappingOptions(choices=Choices(by_use=True))), run)
    assert plan_best(model, slow, MappingOptions(max_context=1024), run).closed_ps is None


def test_wrong_choices_are_one_clear_line() -> None:
    model = gpt("m", 1, 192, 6, vocabulary=300, context=64)
    for choices, weights, expected in (
        (Choices(team=3), "bf16", "3 channels cannot share a KV head"),
        (Choices().with_matrix("mlp.fc1", MatrixChoice(3)), "bf16", "mlp.fc1: 3 channels cannot share an output"),
        (Choices().with_matrix("mlp.fc1", MatrixChoice(2)), "ternary", "scales per row"),
    ):
        with pytest.raises(NearbankError, match=expected):
            plan(model, PIM, MappingOptions(weights=weights, choices=choices))
    with pytest.raises(NearbankError, match="at least one step"):
        plan_best(model, PIM, None, [])

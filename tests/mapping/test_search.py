"""The automatic mapper: never slower than the published mapping, the same answer twice, gains where there are some."""

from __future__ import annotations

import pytest
from tests.mapping.shapes import gpt, steps

from nearbank.errors import NearbankError
from nearbank.mapping import MappingOptions, bounds, plan
from nearbank.mapping.choices import Choices, MatrixChoice
from nearbank.mapping.search import Found, plan_best, sample
from nearbank.sim.engine import simulate
from nearbank.sim.machine import load_machine

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

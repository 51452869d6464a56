"""Studies of the bank: counts that cross, power that obeys tFAW and a budget, tables and their figures."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from nearbank.design.crossover import Design, Point, crossing, pim_line, pim_point, roofline_ns
from nearbank.design.dequantise import scaled
from nearbank.design.power import PowerRow, power_row
from nearbank.plot import design as plots
from nearbank.sim.machine import load_machine

PIM = Design("pim-gpt bf16", load_machine("pim-gpt"), "bf16", "bf16")


def test_a_batch_is_never_slower_per_token_than_one_by_one() -> None:
    one, two, three = pim_line(PIM, (1, 2, 3))
    assert (one.reuse, two.reuse) == (1, 2)
    assert two.ns_per_token < one.ns_per_token
    assert three.ns_per_token <= 1.001 * one.ns_per_token


def test_the_crossing_is_the_first_count_at_which_the_roofline_is_as_quick() -> None:
    points = pim_line(PIM, (8, 10))
    found = crossing(PIM, points, "t4", "bf16").sequences
    assert found is not None
    assert roofline_ns("t4", found, "bf16") <= pim_point(PIM, found).ns_per_token
    assert roofline_ns("t4", found - 1, "bf16") > pim_point(PIM, found - 1).ns_per_token


def test_a_processor_that_is_never_as_quick_does_not_cross() -> None:
    assert crossing(PIM, [Point(1, 1.0, 1), Point(64, 1.0, 1)], "h100", "bf16").sequences is None


def test_caches_that_do_not_fit_end_the_line() -> None:
    """4 GiB hold GPT3-XL in bf16 and some seventy caches of 128 tokens."""
    assert [p.sequences for p in pim_line(PIM, (1, 4096))] == [1]


@pytest.fixture(scope="module")
def rows() -> dict[str, PowerRow]:
    cases = {"as it is": {}, "tFAW": {"tfaw_ns": 288}, "budget": {"budget": "700 mW"}}
    machine = ("pim-gpt-ternary", "ternary-tensor")
    return {name: power_row(*machine, model="gpt2-small", **case) for name, case in cases.items()}  # type: ignore[arg-type]


@pytest.mark.parametrize("bound", ["tFAW", "budget"])
def test_a_bound_costs_time_and_saves_power(rows: dict[str, PowerRow], bound: str) -> None:
    free, bounded = rows["as it is"], rows[bound]
    assert free.held < 0.01 < 0.3 < bounded.held
    assert bounded.us_per_token > free.us_per_token
    assert bounded.average_w < free.average_w <= free.peak_w
    assert bounded.average_w <= bounded.peak_w


def test_a_budget_is_kept_on_average(rows: dict[str, PowerRow]) -> None:
    assert rows["budget"].average_w <= 0.7


def test_figures_have_axes_with_units(rows: dict[str, PowerRow]) -> None:
    from dataclasses import asdict

    left, right = Figure().subplots(1, 2)
    plots.power([asdict(row) for row in rows.values()], "budget", left)
    points = [
        {"machine": name, "sequences": n, "ns_per_token": 1e6 / n} for name in ("a", "b roofline") for n in (1, 2)
    ]
    plots.crossover(points, right)
    assert (left.get_ylabel(), right.get_ylabel()) == ("W per channel", "µs per token")


def test_scales_per_group_cost_time_and_pins() -> None:
    one, group = (scaled(weights, model="gpt2-small") for weights in ("int4-tensor", "int4"))
    assert one.over_bound == 1.0
    assert group.over_bound > 1.1
    assert group.pin_bytes["results_out"] > one.pin_bytes["results_out"]
    assert group.pin_bytes["values_out"] > one.pin_bytes["values_out"] == 0


def test_scales_in_the_bank_leave_one_sum_per_output_and_no_scales_on_the_pins() -> None:
    one, asic, bank = (
        scaled(weights, dequant, "gpt2-small")
        for weights, dequant in (("int4-tensor", "asic"), ("int4", "asic"), ("int4", "bank"))
    )
    assert bank.pin_bytes["results_out"] == one.pin_bytes["results_out"]
    assert bank.pin_bytes["values_out"] == 0
    assert bank.us_per_token < 0.6 * asic.us_per_token
    assert bank.uj_per_token < asic.uj_per_token
    assert (bank.bits_per_weight, asic.bits_per_weight) == (4 + 24 / 128, 4 + 40 / 128)

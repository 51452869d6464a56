"""Power of a chip while it decodes, against tFAW and against a budget: averages, peaks, and what they cost in speed.

ACT16 opens a row in all sixteen banks and so fills a whole window of tFAW. A longer window keeps such commands apart,
a budget every command that takes energy (`sim.throttle`). The power is the memory's: cells, units, pins, standby.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from nearbank.errors import NearbankError
from nearbank.mapping import MappingOptions, plan
from nearbank.models.zoo import find_shape
from nearbank.sim.engine import Player
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.power import average_nw, peak_nw, profile_power
from nearbank.sim.program import Program
from nearbank.sim.throttle import PREFIX
from nearbank.sim.variant import what_if
from nearbank.units import ceil_div
from nearbank.workload import Workload, shape_workload

MODEL, CONTEXT = "gpt3-xl", 128
CASES = (("pim-gpt", "bf16"), ("pim-gpt-ternary", "ternary-tensor"))
TFAW_NS = (12, 48, 96, 144, 192, 288)
BUDGETS = ("2.5 W", "2 W", "1.5 W", "1 W", "700 mW", "500 mW")
WINDOW = 128  # clocks of the window that a peak is averaged over
CHANNELS_PER_CHIP = 2  # GDDR6, JESD250: two channels a device


@dataclass(frozen=True)
class PowerRow:
    """A decode step: watts of a channel on average and in its busiest window; None for what is left as it is.

    `held` is the share of all cycles in which tFAW or the budget alone kept the next command waiting.
    """

    machine: str
    weights: str
    tfaw_ns: int | None
    budget: str | None
    us_per_token: float
    average_w: float
    peak_w: float
    held: float


@cache
def _load(model: str, weights: str) -> Workload:
    return shape_workload(find_shape(model), CONTEXT - 1, 2, weights, played=slice(1, 2))


def power_row(
    name: str, weights: str, tfaw_ns: int | None = None, budget: str | None = None, *, model: str = MODEL
) -> PowerRow:
    """One decode step on a machine with another tFAW or a budget per channel."""
    machine = _changed(load_machine(name), tfaw_ns, budget)
    load = _load(model, weights)
    placed = plan(load.model, machine, MappingOptions(weights=weights, max_context=CONTEXT))
    programs = [placed.lower(step) for step in load.steps()]
    player = Player(placed.machine, bins=2 * ceil_div(_cycles(placed.machine, programs), 2 * WINDOW))
    for program in programs:
        player.play(program)
    result = player.result()
    windows, channels = profile_power(result, machine), machine.organization.channels
    total = sum(c.cycles * len(c.channels) for c in result.channels)
    held = sum(n for reason, n in result.stalls().items() if reason == "tFAW" or reason.startswith(PREFIX))
    average, peak = (float(nw) / 1e9 / channels for nw in (average_nw(windows), peak_nw(windows)))
    return PowerRow(name, weights, tfaw_ns, budget, result.time_ps / 1e6, average, peak, held / total)


def _cycles(machine: Machine, programs: list[Program]) -> int:
    player = Player(machine)
    for program in programs:
        player.play(program)
    return player.result().cycles


def _changed(machine: Machine, tfaw_ns: int | None, budget: str | None) -> Machine:
    if tfaw_ns is not None:
        machine = what_if(machine, f"tFAW {tfaw_ns} ns", {"timing.tFAW": f"{tfaw_ns} ns"})
    if budget is not None:
        given = {"value": budget, "source": "what if", "verified": False}
        machine = what_if(machine, f"{budget} per channel", {"power.budget_per_channel": given})
    return machine


def tfaw_rows() -> Iterator[PowerRow]:
    """Both machines at every tFAW."""
    return (power_row(name, weights, tfaw_ns=tfaw) for name, weights in CASES for tfaw in TFAW_NS)


def budget_rows() -> Iterator[PowerRow]:
    """Both machines without a budget, and with every one that leaves room for standby and refresh."""
    for name, weights in CASES:
        yield power_row(name, weights)
        for budget in BUDGETS:
            try:
                yield power_row(name, weights, budget=budget)
            except NearbankError:
                break

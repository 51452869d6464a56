"""What it costs that scales are applied by the ASIC: formats with scales per row and group beside one scale per tensor.

Scales lie in the rows and are read over the pins; a group's sum is read by itself and scaled by the ASIC. With one
scale per tensor nothing of that is left, so the same codes with it are the bound of what a unit that scales in the bank
could reach: that would still have to read the scales from its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from nearbank.formats import format_named
from nearbank.mapping import MappingOptions, bytes_off_chip, plan
from nearbank.models.zoo import find_shape
from nearbank.sim.engine import Player
from nearbank.sim.machine import load_machine
from nearbank.workload import Workload, shape_workload

MODEL, CONTEXT, MACHINE, HEAD = "gpt3-xl", 128, "pim-gpt-lowbit", "int8-tensor"
FORMATS = (
    "int8-tensor", "int8", "int4-tensor", "int4-row", "int4-g1024", "int4", "int2-tensor", "int2-g1024", "int2",
    "ternary-tensor", "ternary", "binary-tensor", "binary",
)  # fmt: skip


@dataclass(frozen=True)
class Scaled:
    """A decode step in one format: time, how much of it the banks wait for accumulators, bytes over the pins.

    `bits_per_weight` counts scales. `over_bound` is the time over that of the same codes with one scale.
    """

    weights: str
    bits_per_weight: float
    us_per_token: float
    over_bound: float
    waiting: Mapping[str, float]
    pin_bytes: Mapping[str, int]


@cache
def _load(model: str, weights: str) -> Workload:
    return shape_workload(find_shape(model), CONTEXT - 1, 2, weights, played=slice(1, 2))


def scaled(weights: str, model: str = MODEL) -> Scaled:
    """One decode step, every command played."""
    time_us, waiting, moved = _played(weights, model)
    bound, _, _ = _played(f"{format_named(weights).name}-tensor", model)
    width = find_shape(model).width
    bits = format_named(weights).bits_per_value(width, width)
    return Scaled(weights, bits, time_us, time_us / bound, waiting, moved)


@cache
def _played(weights: str, model: str) -> tuple[float, Mapping[str, float], Mapping[str, int]]:
    machine, load = load_machine(MACHINE), _load(model, weights)
    placed = plan(load.model, machine, MappingOptions(weights=weights, head=HEAD, max_context=CONTEXT))
    player = Player(machine)
    for step in load.steps():
        player.play(placed.lower(step))
    result = player.result()
    total = sum(c.cycles * len(c.channels) for c in result.channels)
    waiting = {reason: cycles / total for reason, cycles in result.stalls().most_common(3)}
    return result.time_ps / 1e6, waiting, bytes_off_chip(result.commands(), machine.organization.column_bytes)


def rows() -> Iterator[Scaled]:
    """Every format."""
    return (scaled(weights) for weights in FORMATS)

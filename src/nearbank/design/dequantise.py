"""What it costs to apply scales at the ASIC or beside the banks: formats with scales per row, per group, and one.

Scales lie in the rows. Either they are read over the pins, and every group's sum too, which the ASIC scales; or a
column of them goes to the bank's own unit, which scales the sum of a group with its last MAC. With one scale per tensor
nothing of that is left, so the same codes with it are the bound of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from nearbank.formats import format_named
from nearbank.mapping import MappingOptions, Plan, bytes_off_chip, plan
from nearbank.mapping.bank_scales import ASIC, BANK
from nearbank.models.zoo import find_shape
from nearbank.sim.energy import energy
from nearbank.sim.engine import Player
from nearbank.sim.machine import load_machine
from nearbank.workload import Workload, shape_workload

MODEL, CONTEXT, MACHINE, HEAD = "gpt3-xl", 128, "pim-gpt-scales", "int8-tensor"
FORMATS = (
    "int8-tensor", "int8", "int8-g128", "int4-tensor", "int4-row", "int4-g1024", "int4", "int4-g64", "int2-tensor",
    "int2-g1024", "int2", "ternary-tensor", "ternary", "binary-tensor", "binary",
)  # fmt: skip


@dataclass(frozen=True)
class Scaled:
    """A decode step in one format: time, energy, how much of it the banks wait for what, bytes over the pins.

    `dequant` says who applies the scales. `bits_per_weight` counts them as they lie in the rows of the layers.
    `over_bound` is the time over that of the same codes with one scale.
    """

    weights: str
    dequant: str
    bits_per_weight: float
    us_per_token: float
    over_bound: float
    uj_per_token: float
    waiting: Mapping[str, float]
    pin_bytes: Mapping[str, int]


@cache
def _load(model: str, weights: str) -> Workload:
    return shape_workload(find_shape(model), CONTEXT - 1, 2, weights, played=slice(1, 2))


def scaled(weights: str, dequant: str = ASIC, model: str = MODEL) -> Scaled:
    """One decode step, every command played."""
    found = _played(weights, dequant, model)
    bound = _played(f"{format_named(weights).name}-tensor", ASIC, model)
    return Scaled(weights, dequant, found.bits, found.us, found.us / bound.us, found.uj, found.waiting, found.pin_bytes)


@dataclass(frozen=True)
class _Played:
    us: float
    uj: float
    bits: float
    waiting: Mapping[str, float]
    pin_bytes: Mapping[str, int]


@cache
def _played(weights: str, dequant: str, model: str) -> _Played:
    machine, load = load_machine(MACHINE), _load(model, weights)
    options = MappingOptions(weights=weights, head=HEAD, max_context=CONTEXT, dequant=dequant)
    placed = plan(load.model, machine, options)
    player = Player(machine)
    for step in load.steps():
        player.play(placed.lower(step))
    result = player.result()
    total = sum(c.cycles * len(c.channels) for c in result.channels)
    waiting = {reason: cycles / total for reason, cycles in result.stalls().most_common(3)}
    moved = bytes_off_chip(result.commands(), machine.organization.column_bytes)
    uj = energy(result, machine).total_fj / 1e9
    return _Played(result.time_ps / 1e6, uj, _bits(placed), waiting, moved)


def _bits(placed: Plan) -> float:
    """Bits per weight of the layers as placed, scales included."""
    layers = [m for m in placed.placement.matrices if m.region.copies > 1]
    stored = sum(m.region.data_bytes + (m.scales.data_bytes if m.scales else 0) for m in layers)
    return 8 * stored / sum(m.n * m.k for m in layers)


def rows() -> Iterator[Scaled]:
    """Every format with scales at the ASIC, and beside the banks where it has more than one."""
    for weights in FORMATS:
        yield scaled(weights)
        if format_named(weights).scaling.per != "tensor":
            yield scaled(weights, BANK)

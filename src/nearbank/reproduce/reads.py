"""What a column's way from its bank to the MAC unit beside it may cost, by source, and the energy that follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nearbank.sim.machine import Machine, load_machine
from nearbank.study import knobs
from nearbank.study.point import Outcome


@dataclass(frozen=True)
class ReadCost:
    """What a column's way from its bank to the MAC unit may cost, by another source than the machine's own."""

    name: str
    fj_per_bit: int | None  # None: the datasheet's currents
    source: str

    def machine(self, base: Machine) -> Machine:
        if self.fj_per_bit is None:
            return load_machine(f"{base.name}-datasheet")
        return knobs.with_mac_read(base, self.name, self.fj_per_bit, self.source)


OWN_READS = "GDDR6-AiM's MACAB (CENT)"
OTHER_READS = (
    ReadCost("in-bank reads of HBM3 (AttAcc)", 440, "AttAcc: 0.55 pJ per bit within a bank, less 0.11 of activation"),
    ReadCost("array to global sense amplifiers of HBM2 (FGDRAM)", 1510, "O'Connor 2017: 1.51 pJ per bit before them"),
    ReadCost("the datasheet's currents", None, "(IDD4R - IDD3N) x VDD for one column's time, in every bank"),
)


def energy_by_reads(ours: Outcome, base: Machine) -> dict[str, dict[str, Any]]:
    """Energy and power by what a column's way to its MAC unit is taken to cost."""
    commands = base.power.commands
    assert commands and commands.mac_read_per_bit
    own = commands.mac_read_per_bit
    found = {OWN_READS: (own.value, own.source, ours.energy_pj)}
    for cost in OTHER_READS:
        value = "currents" if cost.fj_per_bit is None else f"{cost.fj_per_bit} fJ"
        found[cost.name] = (value, cost.source, ours.energy_also_pj[cost.machine(base).name])
    return {
        name: {
            "per_bit": per_bit,
            "source": source,
            "energy_pj_per_token": pj / ours.tokens,
            "power_w": pj / ours.time_ns / 1000,
        }
        for name, (per_bit, source, pj) in found.items()
    }

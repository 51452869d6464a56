"""AttAcc's attention, units at the banks and at the bank groups: its commands are legal here, our program as quick."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from nearbank.errors import NearbankError
from nearbank.sim.attacc import Level, attention
from nearbank.sim.checker import Flat, check
from nearbank.sim.engine import Player, simulate
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.reference import Reference

DATA = Path(__file__).parent / "data"
BANK = {"ACTAB": "ACT16", "MACAB": "MACAB", "PREA": "PREA", "WRGB": "WRGB", "MVGB": "WRGB", "MVSB": "RDMAC"}
GROUP = {**BANK, "ACTSB": "ACT4", "MACSB": "MAC4B", "PRESB": "PRE4", "REFab": "REFab"}
MACHINES: dict[Level, str] = {"bank": "attacc-like", "bank group": "attacc-like-groups"}


# MAC commands every so many clocks, AttAcc's cycles
CASES: list[tuple[Level, int, int]] = [("bank", 6, 3810), ("bank", 4, 2818), ("bank group", 6, 13403)]


def published(level: Level) -> list[Flat]:
    """The first decoder's attention on pseudo-channel 0, row commands first in a cycle; the softmax unit's left out."""
    short, names = ("bank", BANK) if level == "bank" else ("bg", GROUP)
    with gzip.open(DATA / f"commands-{short}.ch0.first4000.csv.gz", "rt") as file:
        rows = [[word.strip() for word in line.split(",")] for line in file]
    flat = [
        Flat(int(r[0]), names[r[1]], 4 * max(int(r[6]), 0) if r[1].endswith("SB") else 0, int(r[7]), int(r[8]))
        for r in rows
        if r[1] in names and r[3] == "0"
    ]
    return sorted(flat, key=lambda c: c.cycle)


def between_refreshes(commands: list[Flat]) -> list[list[Flat]]:
    """Runs of commands from one refresh to the next, without the precharge and refresh between them."""
    starts = [at for at, c in enumerate(commands) if c.command == "REFab"]
    ends = [at - 1 for at in starts]
    return [commands[a:b] for a, b in zip([0, *(at + 1 for at in starts)], [*ends, len(commands)], strict=True)]


def without_refresh(name: str) -> Machine:
    machine = load_machine(name)
    return machine.model_copy(update={"refresh": machine.refresh.model_copy(update={"policy": "none"})})


def test_bank_level_commands_are_legal() -> None:
    commands = published("bank")
    assert (len(commands), commands[-1].cycle) == (695, 3810)
    assert check(load_machine("attacc-like"), commands) is None


def test_group_level_commands_are_legal() -> None:
    """Between refreshes. AttAcc precharges for a refresh before tRAS is over, and refreshes before tRP is."""
    commands = published("bank group")
    found = check(load_machine("attacc-like-groups"), commands)
    assert found is not None
    assert (found.later.cycle, found.rule, found.required, found.actual) == (5070, "tRAS (ACT…→PRE… tRAS)", 45, 34)
    runs = between_refreshes(commands)
    assert [c.command for c in commands].count("MAC4B") == 2048
    assert len(runs) == 3
    for run in runs:
        assert check(without_refresh("attacc-like-groups"), run) is None


def test_one_cycle_earlier_is_refused() -> None:
    """Every MACAB that follows another or its row, and every activation, stands where the rules first allow it."""
    commands = [c for c in published("bank") if c.command in ("ACT16", "MACAB", "PREA")]
    machine = load_machine("attacc-like")
    tight = 0
    for at, command in enumerate(commands[1:120], 1):
        early = [*commands[:at], command._replace(cycle=command.cycle - 1)]
        tight += check(machine, early) is not None
    assert tight >= 110


@pytest.mark.parametrize(("level", "spacing", "cycles"), CASES)
def test_our_program_takes_as_long(level: Level, spacing: int, cycles: int) -> None:
    """Within 1 %; a spacing of 4 clocks is AttAcc without its power limit."""
    assert attention_cycles(level, spacing) == pytest.approx(cycles, rel=0.01)


def attention_cycles(level: Level, spacing: int) -> int:
    """2,048 tokens of a head of 128, with as many MAC commands as AttAcc's."""
    machine = load_machine(MACHINES[level])
    dump = machine.model_dump(mode="json", by_alias=True)
    dump["timing"]["tCCDAB"] = {"value": f"{769 * spacing} ps", "source": "test"}
    result = simulate(Machine.model_validate(dump), attention(machine, 2048, 128, level))
    theirs = [c.command for c in published(level)]
    for name in ("MACAB", "MAC4B"):
        assert result.commands().get((name, "fp16"), 0) == theirs.count(name)
    return result.cycles


@pytest.mark.parametrize("level", ["bank", "bank group"])
def test_our_program_is_legal_and_the_reference_plays_it_alike(level: Level) -> None:
    machine = load_machine(MACHINES[level])
    organization = machine.organization.model_copy(update={"channels": 1})
    machine = machine.model_copy(update={"organization": organization})
    program = attention(machine, 2048, 128, level)
    issued = Player(machine).record(program, 0, 10**5)
    slow = Reference(machine)
    slow.play(program)
    assert [(i.cycle, i.command, i.row) for i in issued] == [(p.cycle, p.name, p.row) for p in slow.channels[0].log]
    assert check(machine, [Flat(i.cycle, i.command, i.bank, i.row, i.column) for i in issued]) is None


def test_half_rows_and_other_machines_are_refused() -> None:
    with pytest.raises(NearbankError, match="whole rows"):
        attention(load_machine("attacc-like"), 2000, 128, "bank")
    with pytest.raises(NearbankError, match="expected attacc"):
        attention(load_machine("hbm-pim"), 2048, 128, "bank")

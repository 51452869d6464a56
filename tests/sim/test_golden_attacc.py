"""AttAcc's commands at the banks under the rules of `attacc-like`: legal, and as early as the rules allow."""

import gzip
from itertools import pairwise
from pathlib import Path

from nearbank.sim.checker import Flat, check
from nearbank.sim.engine import simulate
from nearbank.sim.machine import load_machine
from nearbank.sim.program import Builder, Program, Stream

DATA = Path(__file__).parent / "data" / "commands-bank.ch0.first4000.csv.gz"
NAMES = {"ACTAB": "ACT16", "MACAB": "MACAB", "PREA": "PREA"}


def array_commands() -> list[Flat]:
    """Activations, MACs and precharges of the first decoder's attention on pseudo-channel 0."""
    with gzip.open(DATA, "rt") as file:
        rows = [[word.strip() for word in line.split(",")] for line in file]
    return [Flat(int(r[0]), NAMES[r[1]], 0, int(r[7]), int(r[8])) for r in rows if r[1] in NAMES]


def test_the_commands_are_legal() -> None:
    commands = array_commands()
    assert [c.command for c in commands].count("MACAB") == 512
    assert check(load_machine("attacc-like"), commands) is None


def test_one_cycle_earlier_is_refused() -> None:
    """Every MACAB that follows another or its row, and every activation, stands where the rules first allow it."""
    commands = array_commands()
    machine = load_machine("attacc-like")
    tight = 0
    for at, command in enumerate(commands[1:120], 1):
        early = [*commands[:at], command._replace(cycle=command.cycle - 1)]
        tight += check(machine, early) is not None
    assert tight >= 110


def test_the_engine_plays_a_row_in_the_same_time() -> None:
    """ACTAB, 32 MACAB, PREA: 19 + 31·6 + 8 + 19 = 232 clocks from row to row, as AttAcc issues them."""
    machine = load_machine("attacc-like")
    still = machine.model_copy(update={"refresh": machine.refresh.model_copy(update={"policy": "none"})})
    assert rows_time(still, 9) - rows_time(still, 8) == 232
    commands = array_commands()
    activations = [c.cycle for c in commands if c.command == "ACT16"]
    assert 232 in {b - a for a, b in pairwise(activations)}


def rows_time(machine, rows: int) -> int:  # type: ignore[no-untyped-def]
    b = Builder()
    with b.loop(rows) as row:
        b.command("ACT16", row=row)
        with b.loop(32) as column:
            b.command("MACAB", row=row, column=column)
        b.command("PREA")
    return simulate(machine, Program("rows", (Stream((0,), b.body()),))).cycles

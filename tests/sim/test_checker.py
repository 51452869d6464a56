"""The checker finds what is seeded: timing broken by one clock, rows not open, foreign names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.sim.strategies import Blocks, Builder, changes, machine_with

from nearbank.errors import NearbankError
from nearbank.sim.checker import Flat, check
from nearbank.sim.engine import Player
from nearbank.sim.machine import load_machine
from nearbank.sim.program import Program, Stream
from nearbank.sim.requests.controller import Trace, serve


@st.composite
def played(draw: st.DrawFn) -> tuple[dict[str, Any], list[Flat]]:
    """A machine that never refreshes, and what it issues of a program that never waits for a unit."""
    changed = draw(changes()) | {"policy": "none", "tREFI": 10**6}
    machine = machine_with(**changed)
    blocks, b = Blocks(draw, machine, regular=False), Builder()
    for _ in range(draw(st.integers(1, 4))):
        blocks.block(b, [])
    issued = Player(machine).record(Program("seeded", (Stream((0,), b.body()),)), 0, 10**5)
    return changed, [Flat(i.cycle, i.command, i.bank, i.row, i.column) for i in issued]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(played(), st.data())
def test_one_clock_too_early_is_found(case: tuple[dict[str, Any], list[Flat]], data: st.DataObject) -> None:
    machine, commands = machine_with(**case[0]), case[1]
    assert check(machine, commands) is None
    late = [i for i in range(1, len(commands)) if commands[i].cycle > commands[i - 1].cycle + 1]
    assume(late)
    at = data.draw(st.sampled_from(late))
    seeded = [*commands[:at], commands[at]._replace(cycle=commands[at].cycle - 1), *commands[at + 1 :]]
    violation = check(machine, seeded)
    assert violation is not None
    assert violation.later == seeded[at]
    assert violation.actual is not None
    assert violation.required == violation.actual + 1


def test_row_state_and_bus() -> None:
    machine = machine_with()
    assert "must have an open row" in str(check(machine, [Flat(0, "RD", 2, 5)]))
    opened = [Flat(0, "ACT", 2, 5)]
    assert "row 6 must be open" in str(check(machine, [*opened, Flat(100, "RD", 2, 6)]))
    assert "must be closed" in str(check(machine, [*opened, Flat(100, "ACT16", 0, 6)]))
    assert check(machine, [*opened, Flat(100, "RD", 2, 5)]) is None
    assert "one command a cycle" in str(check(machine, [Flat(7, "PREA"), Flat(7, "WRGB")]))


@pytest.mark.parametrize("name", ["hbm2", "hbm3"])
def test_rows_and_columns_have_a_bus_each(name: str) -> None:
    machine = load_machine(name)
    opened = [Flat(1, "ACT", 0, 5), Flat(101, "RD", 0, 5)]
    assert check(machine, [*opened, Flat(101, "ACT", 4, 7)]) is None
    assert check(machine, [opened[0], Flat(101, "ACT", 4, 7), opened[1]]) is None
    assert "on each bus" in str(check(machine, [*opened, Flat(101, "ACT", 4, 7), Flat(101, "RD", 0, 5, 1)]))
    assert "tRTP" in str(check(machine, [*opened, Flat(101, "PRE", 0)]))
    assert "in order" in str(check(machine, [*opened, Flat(100, "ACT", 4, 7)]))


@pytest.mark.parametrize("name", ["hbm2", "hbm3"])
def test_what_the_controller_issues_on_two_buses_is_accepted(name: str) -> None:
    machine = load_machine(name)
    issued = serve(machine, Trace.at_once(np.arange(0, 3000 * 4096, 4096, dtype=np.uint64)), record=4000).issued
    assert issued is not None
    rows = zip(issued.channel, issued.cycle, issued.name, issued.bank, issued.row, issued.column, strict=True)
    commands = [Flat(int(at), name, int(b), int(r), int(c)) for channel, at, name, b, r, c in rows if channel == 0]
    assert len(commands) > len({command.cycle for command in commands})
    assert check(machine, commands) is None


def test_the_message_names_both_commands() -> None:
    text = str(check(machine_with(), [Flat(10, "ACT", 2, 5), Flat(21, "RD", 2, 5)]))
    assert text == (
        "RD at cycle 21 (bank 2, row 5) breaks tRCD (ACT…→RD tRCDRD|tRCD): 11 cycles after ACT at cycle 10 (bank 2), "
        "expected at least 12"
    )


def test_foreign_input_is_named() -> None:
    with pytest.raises(NearbankError, match="cycle 3: unknown command 'FOO'"):
        check(machine_with(), [Flat(3, "FOO")])
    with pytest.raises(NearbankError, match="cycle 3: bank 16; expected 0 to 15"):
        check(machine_with(), [Flat(3, "ACT", 16)])

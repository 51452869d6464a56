"""HBM3 counts half clocks: all but precharges issue on the first half, for engine, reference and checker alike."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim.strategies import machine_with
from tests.sim.test_engine import flat, statistics

from nearbank.sim.checker import Flat, check
from nearbank.sim.engine import Player, simulate
from nearbank.sim.machine import load_machine
from nearbank.sim.program import Builder, Program, Stream
from nearbank.sim.reference import Reference


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """A row of some bank opened, read and written and closed, again and again, in one or two banks at a time."""
    b = Builder()
    for _ in range(draw(st.integers(1, 4))):
        with b.loop(draw(st.integers(1, 12))) as i:
            banks = draw(st.lists(st.integers(0, 63), min_size=1, max_size=2, unique=True))
            for bank in banks:
                b.command("ACT", bank=bank, row=i + 5)
            for bank in banks:
                for name in draw(st.lists(st.sampled_from(("RD", "WR")), max_size=3)):
                    b.command(name, bank=bank, row=i + 5)
            if draw(st.booleans()):
                for bank in banks:
                    b.command("PRE", bank=bank)
            else:
                b.command("PREA", bank=0)
                b.command("PREA", bank=32)
    return Program("random", (Stream((0,), b.body()),))


@settings(max_examples=60, deadline=None)
@given(programs(), st.integers(1, 12), st.integers(0, 9))
def test_engine_is_the_reference(program: Program, short: int, more: int) -> None:
    times = dict.fromkeys(("tRCDRD", "tRCDWR", "tRP", "tRTP", "tRRDS", "tRTW", "tWTRS"), short)
    machine = machine_with("hbm3", **times, tCCDL=4 + more, tRFC=20, tREFI=301 + more)
    fast, slow = Player(machine), Reference(machine)
    issued = [flat(i) for i in fast.record(program, 0, 10**6)]
    assert fast.cycle == slow.play(program)
    assert [(f.cycle, f.command) for f in issued] == [(p.cycle, p.name) for p in slow.channels[0].log]
    assert statistics(simulate(machine, program).channels[0]) == statistics(slow.channels[0])
    assert check(machine, issued) is None
    assert all(f.cycle % 2 for f in issued if f.command not in ("PRE", "PREA"))
    at = max(i for i, f in enumerate(issued) if f.command in ("ACT", "RD", "WR"))
    half_a_clock_later = [*issued[:at], issued[at]._replace(cycle=issued[at].cycle + 1)]
    assert "second half of a clock" in str(check(machine, half_a_clock_later))


def test_precharges_may_come_half_a_clock_later() -> None:
    machine = load_machine("hbm3")
    commands = [Flat(1, "ACT", 0, 5), Flat(101, "RD", 0, 5), Flat(204, "PRE", 0)]
    assert check(machine, commands) is None
    assert "second half" in str(check(machine, [*commands, Flat(304, "ACT", 0, 5)]))


def test_idle_halves_are_named() -> None:
    b = Builder()
    b.command("ACT", bank=0, row=1)
    result = simulate(load_machine("hbm3"), Program("p", (Stream((0,), b.body()),)))
    assert result.stalls()["clock edge"] == 1

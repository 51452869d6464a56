"""Rows kept by use: never a row closed for longer than is said, against a list of every opening."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.sim.strategies import machine_with, programs

from nearbank.errors import NearbankError
from nearbank.sim.engine import Issued, Player
from nearbank.sim.program import Builder, Program, Stream
from nearbank.sim.retention import RETENTION_PS, Uses, kept_by_use
from nearbank.sim.rules import rulebook
from nearbank.sim.standard import Effect

MACHINE = kept_by_use(machine_with())
BOOK = rulebook(MACHINE)


def longest_closed(issued: list[Issued], loaded: range) -> int:
    """Cycles between two openings of a row of a bank of channel 0, or from the start to the first of a loaded one."""
    last: dict[tuple[int, int], int] = {}
    longest = 0
    for command in issued:
        if BOOK.specs[command.command].effect is not Effect.OPENS or command.channel:
            continue
        first = BOOK.first_bank(command.command, command.bank)
        for bank in range(first, first + BOOK.reach[command.command]):
            place = bank, command.row
            before = last.get(place, 0 if command.row in loaded else command.cycle)
            longest = max(longest, command.cycle - before)
            last[place] = command.cycle
    return longest


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(programs(MACHINE), min_size=2, max_size=4), st.integers(2000, 4000))
def test_no_row_stays_closed_for_longer_than_is_said(run: list[Program], end: int) -> None:
    player, uses, loaded = Player(MACHINE), Uses(MACHINE, [range(2000, end)]), range(2000, end)
    for program in run:
        begin = player.cycle
        player.play(program)
        uses.play(program, (player.cycle - begin) * MACHINE.tck_ps)
    assume(player.cycle < 1 << 15)
    again = Player(MACHINE)
    issued = [command for program in run for command in again.record(program, 0, 1 << 15)]
    assert longest_closed(issued, loaded) * MACHINE.tck_ps <= uses.longest_ps


def opens(*rows: int, one_bank: bool = False) -> Program:
    b = Builder()
    for row in rows:
        b.command("ACT" if one_bank else "ACT16", row=row)
        b.command("PREA")
    return Program("opens", (Stream(tuple(range(8)), b.body()),))


def played(*steps: Program, loaded: range = range(0)) -> Uses:
    uses = Uses(MACHINE, [loaded])
    for step in steps:
        uses.play(step, 10)
    return uses


def test_steps_count_whole_and_empty_rows_keep_nothing() -> None:
    assert played(opens(1), opens(2), opens(3)).longest_ps == 10
    assert played(opens(1), opens(2), opens(3), loaded=range(3, 4)).longest_ps == 30
    assert played(opens(1), opens(2), opens(1)).longest_ps == 30
    assert played(opens(1), opens(1), opens(1)).longest_ps == 20


def test_one_bank_alone_refreshes_only_what_was_empty() -> None:
    assert played(opens(1), opens(1, one_bank=True), opens(1)).longest_ps == 30
    assert played(opens(1, one_bank=True), opens(1), opens(1)).longest_ps == 20


def test_a_row_that_is_opened_too_late_is_one_clear_line() -> None:
    uses = Uses(MACHINE, [range(1)])
    uses.play(opens(1), RETENTION_PS // 2)
    uses.check()
    uses.play(opens(0), RETENTION_PS)
    with pytest.raises(NearbankError, match=r"may stay closed for 48\.0 ms, but keeps it for 32 ms"):
        uses.check()

"""Commands of programs written as text, a chunk of cycles at a time, and read back by the checker."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.sim.strategies import machine_with, programs

from nearbank.errors import NearbankError
from nearbank.sim.checker import Flat, check
from nearbank.sim.engine import Issued, Player
from nearbank.sim.program import Builder, Program, Stream
from nearbank.sim.readers.commands import read_commands, write_issued

MACHINE = machine_with(tREFI=900)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(programs(MACHINE), st.integers(1, 700), st.integers(0, 2000), st.integers(1, 4000))
def test_chunks_hold_what_one_window_holds(program: Program, chunk: int, first: int, length: int) -> None:
    player = Player(MACHINE)
    twice = [*player.stream(program, first, first + length, chunk=chunk)]
    twice += player.stream(program, first, first + length, chunk=chunk)
    firsts = {group.channels[0] for group in player.result().channels}
    got = [i for part in twice for i in part if i.channel in firsts]
    other = Player(MACHINE)
    expected = [i for _ in range(2) for i in other.record(program, first, first + length)]
    assert sorted(got, key=order) == sorted(expected, key=order)
    assert player.result() == other.result()


def order(i: Issued) -> tuple[int, int]:
    return i.channel, i.cycle


def gemv(rows: int) -> Program:
    b = Builder()
    b.command("WRGB", column=3)
    with b.loop(rows) as row:
        b.command("ACT16", row=row)
        with b.loop(64) as column:
            b.command("MACAB", row=row, column=column, format="bf16")
        b.command("PREA")
        b.command("RDMAC")
    return Program("gemv", (Stream((0, 2), b.body()),))


def test_the_checker_reads_what_is_written(tmp_path: Path) -> None:
    player, path = Player(MACHINE), tmp_path / "issued.csv"
    lines = write_issued(path, MACHINE, (i for part in player.stream(gemv(40), 0, 1 << 40) for i in part))
    channels = read_commands(path, MACHINE)
    assert lines == sum(map(len, channels.values())) == sum(player.result().command_counts().values())
    assert sorted(channels) == list(range(MACHINE.organization.channels))
    assert channels[0] == channels[2]
    assert all(check(MACHINE, commands) is None for commands in channels.values())
    assert path.read_text().splitlines()[1:3] == ["0,0,WRGB,,,3", "0,2,WRGB,,,3"]
    rows = {(c.row, c.column) for c in channels[0] if c.command == "MACAB"}
    assert rows == {(row, column) for row in range(40) for column in range(64)}


def test_a_command_moved_too_early_is_found_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "issued.csv"
    write_issued(path, MACHINE, (i for part in Player(MACHINE).stream(gemv(2), 0, 1 << 40) for i in part))
    moved = [Flat(c.cycle - (c.command == "PREA"), *c[1:]) for c in read_commands(path, MACHINE)[0]]
    assert check(MACHINE, moved) is not None


@pytest.mark.parametrize("path", ["/dev/full", "/nowhere/issued.csv"])
def test_a_place_that_cannot_be_written_is_one_line(path: str) -> None:
    issued = (i for part in Player(MACHINE).stream(gemv(100), 0, 1 << 40) for i in part)
    with pytest.raises(NearbankError, match=rf"^{path}: cannot be written .*; expected a place for a CSV file$"):
        write_issued(Path(path), MACHINE, issued)

"""HBM-PIM's modes: checker, reference and engine refuse a command outside its mode, the engine before it plays."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearbank.errors import NearbankError
from nearbank.sim.checker import Flat, check
from nearbank.sim.engine import Player
from nearbank.sim.hbm_pim import gemv
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.modes import ModeWalk
from nearbank.sim.program import Builder, Command, Node, Program, Stream, unrolled
from nearbank.sim.reference import Reference
from nearbank.sim.rules import rulebook
from nearbank.sim.standards.hbm_pim import ALL_BANK_ROW, MODES

MACHINE: Machine = load_machine("hbm-pim")
CHANGES = {(change.command, change.bank, change.row) for change in MODES.changes}


def gemv_commands() -> list[Flat]:
    issued = Player(MACHINE).record(gemv(MACHINE, 4096, 256), 0, 10**5)
    return [Flat(i.cycle, i.command, i.bank, i.row, i.column) for i in issued if i.channel == 0]


def followed(commands: list[Flat]) -> int | None:
    """The first command out of its mode, by the table alone."""
    mode = MODES.first
    for at, command in enumerate(commands):
        if not MODES.allows(mode, command.command):
            return at
        mode = MODES.after(mode, command.command, command.bank, command.row)
    return None


def test_every_change_of_mode_that_is_left_out_is_found() -> None:
    commands = gemv_commands()
    assert check(MACHINE, commands) is None
    changes = [at for at, c in enumerate(commands) if (c.command, c.bank, c.row) in CHANGES]
    assert len(changes) == 4  # to all-bank mode, to PIM mode, back, and back
    for at in changes:
        seeded = commands[:at] + commands[at + 1 :]
        violation = check(MACHINE, seeded)
        expected = followed(seeded)
        assert violation is not None
        assert expected is not None
        assert violation.later == seeded[expected]
        assert "mode, but the memory is in" in str(violation)


@pytest.mark.parametrize(
    ("opener", "bank", "name", "message"),
    [
        ("ACTAB", 0, "RDAB", "RDAB is for PIM mode, but the memory is in single-bank mode"),
        ("ACTAB", 8, "WRAB", "WRAB is for PIM mode, but the memory is in single-bank mode"),
        ("ACTAB", 8, "WRREG", "WRREG is for all-bank or PIM mode, but the memory is in single-bank mode"),
    ],
)
def test_all_three_refuse_units_in_single_bank_mode(opener: str, bank: int, name: str, message: str) -> None:
    b = Builder()
    b.command(opener, bank=bank, row=5)
    b.command(name, bank=bank, row=5)
    assert_refused(b, message)


def test_all_three_refuse_a_single_bank_in_pim_mode() -> None:
    b = Builder()
    b.command("ACT", bank=12, row=ALL_BANK_ROW)
    b.command("WR", bank=12, row=ALL_BANK_ROW)
    b.command("RD", bank=12, row=ALL_BANK_ROW)
    assert_refused(b, "RD is for single-bank mode, but the memory is in all-bank mode")


def assert_refused(b: Builder, message: str) -> None:
    program = Program("seeded", (Stream((0,), b.body()),))
    with pytest.raises(NearbankError, match=f"program seeded, stream 0: {message}"):
        Player(MACHINE).play(program)
    with pytest.raises(NearbankError, match=message):
        Reference(MACHINE).play(program)
    nodes = [(node, counters) for node, counters in unrolled(program.streams[0].body) if isinstance(node, Command)]
    flat = [Flat(1000 * i, n.name, n.bank.at(c), n.row.at(c)) for i, (n, c) in enumerate(nodes)]
    assert message in str(check(MACHINE, flat))


def test_the_mode_lives_on_in_every_channel() -> None:
    enter, work = Builder(), Builder()
    enter.command("ACT", bank=12, row=ALL_BANK_ROW)
    enter.command("WR", bank=12, row=ALL_BANK_ROW)
    enter.command("PREA")
    work.command("ACTAB", bank=8, row=7)
    work.command("WRREG", bank=8, row=7)
    work.command("PREA")
    player = Player(MACHINE)
    player.play(Program("enter", (Stream((0, 1), enter.body()),)))
    player.play(Program("work", (Stream((1,), work.body()),)))
    with pytest.raises(NearbankError, match="WRREG is for all-bank or PIM mode"):
        player.play(Program("work elsewhere", (Stream((2,), work.body()),)))


def test_rows_that_move_over_a_reserved_one_are_refused() -> None:
    b = Builder()
    with b.loop(10) as i:
        b.command("ACT", bank=3, row=i + (ALL_BANK_ROW - 5))
        b.command("WR", bank=3, row=i + (ALL_BANK_ROW - 5))
        b.command("PREA")
    with pytest.raises(NearbankError, match="WR moves over rows 6138 to 6147; row 6143 changes the mode"):
        Player(MACHINE).play(Program("p", (Stream((0,), b.body()),)))


@st.composite
def bodies(draw: st.DrawFn, depth: int = 0) -> tuple[Node, ...]:
    """Nested loops of column commands, changes of mode among them; rows are not looked at here."""
    b = Builder()
    if depth == 0 and draw(st.booleans()):
        b.command("WR", bank=12, row=ALL_BANK_ROW)
    for _ in range(draw(st.integers(1, 4))):
        if depth < 3 and draw(st.booleans()):
            with b.loop(draw(st.integers(1, 5))):
                for node in draw(bodies(depth=depth + 1)):
                    b.add(node)
            continue
        name, bank, row = draw(st.sampled_from([*sorted(CHANGES), ("WRREG", 0, 3), ("RDMAC", 0, 0), ("RDAB", 0, 1)]))
        b.command(name, bank=bank, row=row)
    return b.body()


@settings(max_examples=400, deadline=None)
@given(bodies())
def test_the_walk_is_what_every_command_in_turn_says(body: tuple[Node, ...]) -> None:
    nodes = [node for node, _ in unrolled(body) if isinstance(node, Command)]
    flat = [Flat(0, node.name, node.bank.base, node.row.base) for node in nodes]
    walk, refused = ModeWalk(rulebook(MACHINE)), False
    names = frozenset(command.command for command in flat)
    try:
        walk.follow(Program("p", (Stream((0,), body),)), names)
    except NearbankError:
        refused = True
    assert refused == (followed(flat) is not None)
    if not refused and names & MODES.commands:
        last = list(
            itertools.accumulate(flat, lambda m, c: MODES.after(m, c.command, c.bank, c.row), initial="single-bank")
        )
        assert walk._mode[0] == last[-1]

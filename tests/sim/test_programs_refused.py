"""Programs that cannot be: each refused by one line that names program, stream, node, what and what was expected."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.sim.strategies import machine_with

from nearbank.errors import NearbankError
from nearbank.sim.engine import Player, simulate
from nearbank.sim.program import Builder, Command, Index, Loop, Mark, Program, Start, Stream, Wait


def refused(*bodies: tuple, machine: object = None) -> str:  # type: ignore[type-arg]
    streams = tuple(Stream((i,), body) for i, body in enumerate(bodies))
    with pytest.raises(NearbankError) as error:
        simulate(machine or machine_with(), Program("bad", streams))  # type: ignore[arg-type]
    text = str(error.value)
    assert "\n" not in text
    return text


def nested(depth: int) -> Loop | Command:
    return Loop(2, (nested(depth - 1),)) if depth else Command("PREA")


CASES: list[tuple[tuple, str]] = [  # type: ignore[type-arg]
    ((Command("MAC16"),), "program bad, stream 0, node 0: unknown command 'MAC16'; gddr6-aim has ACT"),
    ((Command("PREA"), Command("ACT", bank=Index(16))), "stream 0, node 1: ACT bank 16; the machine has banks 0 to 15"),
    ((Command("ACT", row=Index(-1)),), "node 0: ACT row -1; the machine has rows 0 to 16383"),
    (
        (Loop(3, (Loop(5, (Command("ACT16", row=Index(0, (8000, 100))),)),)),),
        "node 0.0.0: ACT16 row 16400; the machine has rows 0 to 16383",
    ),
    (
        (Command("ACT16"), Command("MACAB", column=Index(64))),
        "node 1: MACAB column 64; the machine has columns 0 to 63",
    ),
    ((Command("ACT4", bank=Index(3)),), "node 0: ACT4 reaches 4 banks; its bank must be a multiple of 4"),
    ((Command("ACT", row=Index(0, (1,))),), "node 0: ACT row depends on a loop at depth 0, but it stands at depth 0"),
    ((Loop(2**63, (Command("PREA"),)),), "node 0: loop of 9223372036854775808 rounds; expected 1 to 2^62 - 1"),
    ((Loop(0, (Command("PREA"),)),), "node 0: loop of 0 rounds"),
    ((Loop(2, ()),), "node 0: loop with an empty body"),
    ((Loop(1, (Command("PREA"),), -1),), "node 0: loop whose counter begins at -1; expected 0 or more"),
    (
        (Loop(2, (Command("ACT", bank=Index(0, (1,))), Command("PREA")), 15),),
        "node 0.0: ACT bank 16; the machine has banks 0 to 15",
    ),
    ((nested(10),), "node 0: loops are nested deeper than 9"),
    ((Start("asic", "x", -1),), "node 0: job 'x' on 'asic' takes -1 ps; expected 0 to 2^60 - 1"),
    ((Command("MACAB", format="fp64"),), "node 0: MACAB in format 'fp64'"),
    ((Command("RD", bank=Index(2)),), "node 0, rounds []: RD needs an open row, but one of its banks has none"),
    (
        (Command("ACT16", row=Index(4)), Command("MACAB", row=Index(5))),
        "node 1, rounds []: MACAB addresses a row that is not the open one",
    ),
    (
        (Loop(3, (Command("ACT", bank=Index(5), row=Index(1, (1,))),)),),
        "node 0.0, rounds [1]: ACT needs its banks closed, but one has an open row",
    ),
]


@pytest.mark.parametrize(("body", "message"), CASES)
def test_faulty_body(body: tuple, message: str) -> None:  # type: ignore[type-arg]
    assert message in refused(body)


def test_a_row_that_runs_away_is_caught_in_the_round_where_it_does() -> None:
    b = Builder()
    b.command("ACT16", row=7)
    with b.loop(1000) as i:
        b.command("MACAB", row=7 + i)
    assert "node 1.0, rounds [1]: MACAB addresses a row that is not the open one" in refused(b.body())


MEETINGS: list[Callable[[], tuple]] = [  # type: ignore[type-arg]
    lambda: (Wait("asic"),),
    lambda: (Start("asic", "b", 1),),
    lambda: (Mark("a"),),
    lambda: (Loop(3, (Start("asic", "a", 1),)),),
    lambda: (),
]


@pytest.mark.parametrize("other", MEETINGS)
def test_streams_that_would_wait_for_ever(other: Callable[[], tuple]) -> None:  # type: ignore[type-arg]
    message = refused((Start("asic", "a", 1),), other())
    assert "stream 1: its starts, waits and marks differ from stream 0's" in message


def test_channels_are_told_once() -> None:
    body = (Command("PREA"),)
    for channels in ((0, 0), (8,), (-1,)):
        with pytest.raises(NearbankError, match="expected each of 0 to 7 at most once"):
            simulate(machine_with(), Program("bad", (Stream(channels, body),)))
    with pytest.raises(NearbankError, match="no channels"):
        simulate(machine_with(), Program("bad", (Stream((), body),)))


def test_a_program_that_outlasts_64_bit_picoseconds_is_refused() -> None:
    assert "runs for more than 2^62 ps" in refused(
        (Loop(2**61, (Command("WRGB"),)),), machine=machine_with(policy="none")
    )


def test_refreshes_without_end_are_refused() -> None:
    machine = machine_with(tRFC=30, tREFI=31, tRP=12, tRCD=12)
    message = refused((Command("ACT16"), Loop(100, (Command("MACAB"),))), machine=machine)
    assert "refreshes every 31 cycles leave no time for commands" in message


def test_too_many_units() -> None:
    body = tuple(Start(f"unit {i}", "x", 1) for i in range(17))
    assert "programs name 17 units" in refused(body)


def test_a_node_object_used_twice_and_after_others_have_gone() -> None:
    player = Player(machine_with(policy="none"))
    shared = Loop(3, (Command("ACT16", row=Index(1)), Command("PREA")))
    for i in range(50):
        player.play(Program("p", (Stream((0,), (shared, Loop(2, (shared, Command("WRGB", column=Index(i)))))),)))
    counts = player.result().command_counts()
    assert (counts["ACT16"], counts["WRGB"]) == (50 * 9, 100)


def test_a_loop_that_begins_later_than_in_the_program_before_is_checked_anew() -> None:
    body = (Command("ACT", bank=Index(0, (1,))), Command("PREA"))
    player = Player(machine_with())
    player.play(Program("p", (Stream((0,), (Loop(2, body),)),)))
    with pytest.raises(NearbankError, match=r"node 0\.0: ACT bank 16; the machine has banks 0 to 15"):
        player.play(Program("p", (Stream((0,), (Loop(2, body, 15),)),)))


def test_what_was_refused_is_refused_again_by_the_same_player():
    player = Player(machine_with())
    program = Program("bad", (Stream((0,), (Command("PREA"), Command("ACT", row=Index(10**7)))),))
    for _ in range(2):
        with pytest.raises(NearbankError, match="ACT row 10000000; the machine has rows 0 to 16383"):
            player.play(program)

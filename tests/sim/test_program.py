"""Programs expand to the commands that the engine issues, in the same order, however large they are."""

from __future__ import annotations

from itertools import islice

from tests.sim.strategies import machine_with

from nearbank.sim.engine import Player
from nearbank.sim.program import Builder, Kept, Loop, Program, Step, Stream, expand


def nest(rounds: int) -> Program:
    b = Builder()
    with b.loop(rounds) as r:
        b.command("ACT16", row=100 + 2 * r)
        with b.loop(3) as c:
            b.command("MACAB", row=100 + 2 * r, column=c, data=10 * r + c, format="bf16")
        b.command("PREA")
    return Program("nest", (Stream((0,), b.body()), Stream((1,), b.body())))


def test_expand_works_addresses_out() -> None:
    steps = list(expand(nest(2)))
    assert len(steps) == 2 * 2 * 5
    assert steps[6] == Step(0, "MACAB", 0, 102, 0, 10, "bf16")
    assert [s.stream for s in steps] == [0] * 10 + [1] * 10


def test_expand_streams() -> None:
    first = list(islice(expand(nest(10**9)), 5))
    assert [s.command for s in first] == ["ACT16", "MACAB", "MACAB", "MACAB", "PREA"]


def test_the_engine_issues_what_expand_lists() -> None:
    issued = Player(machine_with(policy="none")).record(nest(4), 0, 10**4)
    own = [(i.command, i.bank, i.column) for i in issued if i.channel == 1]
    assert own == [(s.command, s.bank, s.column) for s in expand(nest(4)) if s.stream == 1]


def test_a_loop_of_no_rounds_adds_nothing() -> None:
    b = Builder()
    with b.loop(0):
        b.command("PREA")
    with b.loop(1):
        b.command("PREA")
    assert [type(node) for node in b.body()] == [Loop]


def sweep(b: Builder, rows: int) -> None:
    with b.loop(rows) as r:
        b.command("ACT16", row=r)
        b.command("PREA")


def test_what_a_builder_appends_again_is_the_same_node() -> None:
    """Alike by value, or by the key that stands for it; at another depth a key stands for something else."""
    b = Builder()
    sweep(b, 5)
    sweep(b, 5)
    b.again("six", lambda: sweep(b, 6))
    b.again("six", lambda: sweep(b, 7))
    with b.loop(2):
        b.again("six", lambda: sweep(b, 8))
    first, second, third, fourth, outer = b.body()
    assert first is second
    assert third is fourth
    assert isinstance(third, Loop)
    assert isinstance(outer, Loop)
    assert [node.count for node in (third, *outer.body) if isinstance(node, Loop)] == [6, 8]


def test_builders_share_what_they_kept() -> None:
    kept: Kept = {}
    bodies = []
    for _ in range(2):
        b = Builder(kept=kept)
        sweep(b, 5)
        bodies.append(b.body())
    assert bodies[0][0] is bodies[1][0]

"""Passages done again: the same cycles and counts as the reference, however short the ways that are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.sim.strategies import changes, machine_with, programs
from tests.sim.test_engine import reference_of, statistics

from nearbank.sim import passages, vm
from nearbank.sim.compile import Compiler
from nearbank.sim.engine import Player, simulate
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.numbering import Numbering
from nearbank.sim.program import Builder, Index, Mark, Program, Start, Stream, Wait
from nearbank.sim.rules import rulebook

EXAMPLES = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(autouse=True, scope="module")
def short_passages() -> Any:
    """Every way from one meeting to another is worth keeping."""
    least, passages.LEAST = passages.LEAST, 1
    yield
    passages.LEAST = least


@st.composite
def cases(draw: st.DrawFn) -> tuple[Machine, Program]:
    machine = machine_with(**draw(changes()))
    return machine, draw(programs(machine))


@EXAMPLES
@given(cases())
def test_engine_equals_reference(case: tuple[Machine, Program]) -> None:
    machine, program = case
    slow, fast = reference_of(machine, [program] * 3), Player(machine)
    assert [fast.play(program) for _ in range(3)] == slow.ends
    done = fast.result()
    assert [statistics(c) for c in done.channels] == [statistics(c) for c in slow.channels]
    assert dict(done.label_cycles) == {k: v for k, v in slow.labels.items() if v}
    assert {k: busy for k, (busy, _) in done.jobs.items()} == dict(slow.jobs)


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[Machine, list[Program]]:
    """Programs for the same channels, of parts in another order each time, some of them twice."""
    machine = machine_with(**draw(changes()))
    drawn = [draw(programs(machine)) for _ in range(4)]
    parts = [part for part in drawn if channels_of(part) == channels_of(drawn[0])]
    some = st.lists(st.sampled_from(parts), min_size=1, max_size=3)
    return machine, [one_after_another(draw(some)) for _ in range(4)]


def channels_of(program: Program) -> list[tuple[int, ...]]:
    return [stream.channels for stream in program.streams]


def one_after_another(parts: list[Program]) -> Program:
    streams = zip(*(part.streams for part in parts), strict=True)
    return Program("parts", tuple(Stream(s[0].channels, tuple(n for x in s for n in x.body)) for s in streams))


@EXAMPLES
@given(neighbours())
def test_programs_after_each_other_equal_the_reference(case: tuple[Machine, list[Program]]) -> None:
    machine, several = case
    slow, fast = reference_of(machine, several), Player(machine)
    assert [fast.play(program) for program in several] == slow.ends
    assert [statistics(c) for c in fast.result().channels] == [statistics(c) for c in slow.channels]


TOKENS, LAYERS = 15, 20


def layers(*, banks: bool = False) -> Program:
    """Rounds of four products, each summed by the unit beside; `banks`: before the second a bank of each token's."""
    b = Builder()
    with b.loop(TOKENS) as token, b.loop(LAYERS) as layer:
        for product in range(4):
            if banks and product == 1:
                b.command("ACT", bank=token, row=9000)
                b.command("PRE", bank=token)
            _product(b, layer * 40 + 10 * product)
    return Program("layers", (Stream(tuple(range(8)), b.body()),))


def _product(b: Builder, first: Index) -> None:
    b.add(Wait("asic"))
    b.add(Mark("product"))
    with b.loop(10) as r:
        b.command("ACT16", row=first + r)
        with b.loop(64) as c:
            b.command("MACAB", row=first + r, column=c)
        b.command("PREA")
        b.command("RDMAC")
    b.add(Start("asic", "sum", 300_000))


def kept(player: Player) -> int:
    """How many passages are kept."""
    one, all_lanes = map(sum, player._ways._sizes)
    passed, found = player._ways.passed, 0
    for room, size in enumerate((one, one, all_lanes)):
        begin, count = passed[2 * room : 2 * room + 2]
        found += int((passed[begin : begin + count * size].reshape(-1, size)[:, vm.PK_NUMBER] > 0).sum())
    return found


@pytest.mark.parametrize("banks", [False, True])
def test_rounds_that_begin_alike_are_played_once(banks: bool) -> None:
    program, machine = layers(banks=banks), load_machine("pim-gpt")
    fast = Player(machine)
    fast.play(program)
    assert 0 < kept(fast) < TOKENS * LAYERS / 2
    assert fast.result() == simulate(machine, program, fast_forward=False)


def found_in(program: Program) -> list[tuple[int, int]]:
    """First and last meeting of each passage."""
    book = rulebook(load_machine("pim-gpt"))
    meetings = passages.meetings_of(Compiler(book, Numbering(book)).code(program))
    found = passages.passages(meetings, np.full(len(meetings.levels), True))
    return [(p.first, p.last) for p in found]


def test_passages_begin_where_banks_of_a_round_are_forgotten() -> None:
    """Meetings of a round: wait, mark, start for each product, then the end of the loop over layers."""
    assert found_in(layers()) == [(0, 12)]
    assert found_in(layers(banks=True)) == [(0, 2), (5, 12)]


def test_rows_that_move_otherwise_end_a_passage() -> None:
    b = Builder()
    with b.loop(5) as i:
        for stride in (1, 2):
            b.add(Mark("here"))
            b.command("ACT16", row=stride * i)
            b.command("PREA")
        b.add(Mark("there"))
    assert found_in(Program("apart", (Stream((0,), b.body()),))) == [(0, 1), (2, 3)]

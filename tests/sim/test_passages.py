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
from nearbank.sim.passage_texts import PassageTexts, said_by
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


@settings(EXAMPLES, max_examples=200)  # four programs of several parts each
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


def _product(b: Builder, first: Index, rows: int = 10) -> None:
    b.add(Wait("asic"))
    b.add(Mark("product"))
    with b.loop(rows) as r:
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


def products(counts: list[int], streams: int = 1, odd: bool = False) -> Program:
    """Rounds of products with so many rows each; `odd`: the last stream does one row more in the first product."""
    made = []
    for stream in range(streams):
        b = Builder()
        with b.loop(LAYERS) as layer:
            for i, count in enumerate(counts):
                more = int(odd and stream == streams - 1 and i == 0)
                _product(b, layer * 400 + 100 * i, count + more)
        made.append(Stream((stream,), b.body()))
    return Program("products", tuple(made))


def test_passages_are_cut_where_code_is_new() -> None:
    """Meetings of a product: wait, mark, start; what comes before a start is new in the second and third program."""
    book, texts = rulebook(load_machine("pim-gpt")), PassageTexts()
    compiler = Compiler(book, Numbering(book))
    found = []
    for counts in ([9, 9, 9], [9, 8, 9], [9, 7, 9]):
        code = compiler.code(products(counts))
        meetings = passages.meetings_of(code)
        fresh = texts.fresh(said_by(code.rows), meetings.rows[0])
        found.append([(p.first, p.last, p.fresh) for p in passages.passages(meetings, fresh)])
    assert found[0] == [(0, 9, True)]
    assert found[1] == found[2] == [(0, 4, False), (4, 5, True), (5, 9, False)]


def test_programs_with_a_part_in_common_share_its_passages() -> None:
    machine, player = load_machine("pim-gpt"), Player(load_machine("pim-gpt"))
    several = [products([9, count, 9]) for count in (3, 4, 5, 6)]
    for program in several:
        player.play(program)
    assert player.result() == simulate(machine, several, fast_forward=False)
    numbers = player._ways._texts.count
    player.play(products([9, 7, 9]))
    assert player._ways._texts.count == numbers + 1


@pytest.mark.parametrize("odd", [False, True])
def test_lanes_that_are_alike_are_kept_as_one(odd: bool) -> None:
    machine, player = load_machine("pim-gpt"), Player(load_machine("pim-gpt"))
    program = products([9, 9, 9], streams=3, odd=odd)
    player.play(program)
    assert player.result() == simulate(machine, program, fast_forward=False)
    passed, size = player._ways.passed, sum(player._ways._sizes[1])
    begin, count = passed[2 * vm.JOINT_PASSAGE : 2 * vm.JOINT_PASSAGE + 2]
    joint = passed[begin : begin + count * size].reshape(-1, size)[:, vm.PK_NUMBER]
    assert bool(joint.any()) == odd

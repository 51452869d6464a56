"""Programs as text: what is written is read back, and what cannot be read is named by line."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nearbank.errors import NearbankError
from nearbank.sim.program import Command, Index, Loop, Mark, Node, Program, Start, Stream, Wait
from nearbank.sim.text import parse, render

names = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8) | st.just(
    'two "words"'
)
small = st.integers(-(2**40), 2**40)
indices = st.builds(Index, small, st.lists(small, max_size=3).map(tuple))
commands = st.builds(
    Command,
    st.sampled_from(["ACT16", "MACAB", "WRGB"]),
    indices,
    indices,
    indices,
    indices,
    st.sampled_from(["", "bf16"]),
)
leaves: st.SearchStrategy[Node] = (
    commands | st.builds(Start, names, names, st.integers(0, 2**50)) | st.builds(Wait, names) | st.builds(Mark, names)
)
nodes = st.recursive(
    leaves,
    lambda inner: st.builds(
        Loop, st.integers(1, 2**61), st.lists(inner, min_size=1, max_size=3).map(tuple), st.integers(0, 2**60)
    ),
)
streams = st.builds(
    Stream, st.lists(st.integers(0, 31), max_size=4, unique=True).map(tuple), st.lists(nodes, max_size=4).map(tuple)
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.builds(Program, names, st.lists(streams, max_size=3).map(tuple)))
def test_text_round_trips(program: Program) -> None:
    assert parse(render(program)) == program


def test_text_reads_like_the_loop_nest() -> None:
    row = Index(100, (1,))
    body = (Loop(2, (Command("ACT16", row=row), Command("PREA"))), Start("asic", "sum up", 5000), Wait("asic"))
    assert render(Program("gemv", (Stream((0, 1), body),))) == (
        "program gemv\n"
        "stream 0 1\n"
        "  loop 2\n"
        "    ACT16 row=100+1*i0\n"
        "    PREA\n"
        '  start asic "sum up" 5000 ps\n'
        "  wait asic\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p.txt:1: expected 'program NAME'"),
        ("program a\nstrm 0\n", "p.txt:2: expected 'stream CHANNEL"),
        ("program a\nstream 0\n   ACT\n", "p.txt:3: expected 2 spaces"),
        ("program a\nstream 0\n  loop x\n", "p.txt:3: expected 'loop COUNT [from FIRST]'"),
        ("program a\nstream 0\n  ACT row=1*j0\n", "p.txt:3: expected a sum such as 100"),
        ("program a\nstream 0\n  ACT rwo=1\n", "p.txt:3: expected fields such as row="),
        ('program a\nstream 0\n  mark "a\n', "p.txt:3: No closing quotation"),
    ],
)
def test_faults_are_named_by_line(text: str, message: str) -> None:
    with pytest.raises(NearbankError) as error:
        parse(text, "p.txt")
    assert str(error.value).startswith(message)


def test_comments_and_dos_line_ends_are_fine() -> None:
    assert parse("program a # why\r\n\r\nstream 3\r\n  PREA\r\n") == Program("a", (Stream((3,), (Command("PREA"),)),))

"""The engine against the reference: same commands at the same cycles, same statistics, and nothing for the checker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from tests.sim.strategies import changes, machine_with, programs

from nearbank.sim.checker import Flat, check
from nearbank.sim.engine import Issued, Player, simulate
from nearbank.sim.layout import uses_bank
from nearbank.sim.machine import Machine
from nearbank.sim.program import Command, Loop, Node, Program, Stream
from nearbank.sim.reference import Channel, Reference
from nearbank.sim.result import ChannelResult

PARTS = 8  # of 250 programs each, so that several processes can share the work
EXAMPLES = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], list[Program]]:
    """What is changed of the machine, and a program to be played once or twice."""
    changed = draw(changes())
    program = draw(programs(machine_with(**changed)))
    return changed, [program, *draw(st.sampled_from([(), (program,), (begun_later(program, 2),)]))]


def begun_later(program: Program, rounds: int) -> Program:
    """The same with outermost loops that begin later, where addresses have room for it: the same nodes inside."""

    def later(node: Node) -> Node:
        if not isinstance(node, Loop) or node.first + node.count + rounds > 9:
            return node
        begins = node.body[0]  # with a MACAB, it goes on with the row that was opened for its first round
        carries = isinstance(begins, Command) and begins.name == "MACAB"
        return node if carries else replace(node, first=node.first + rounds)

    return Program("later", tuple(Stream(s.channels, tuple(map(later, s.body))) for s in program.streams))


def reference_of(machine: Machine, played: list[Program]) -> Reference:
    streams = played[0].streams
    idle = machine.organization.channels > sum(len(s.channels) for s in streams)
    reference = Reference(machine, len(streams) + idle)
    for program in played:
        reference.play(program)
    return reference


def statistics(channel: Channel | ChannelResult) -> dict[str, object]:
    """The counts that both players keep."""
    names = ("bank_hits", "bank_misses", "open_cycles", "open_bank_cycles", "refreshes")
    same = {name: getattr(channel, name) for name in names}
    if isinstance(channel, Channel):
        same |= {"row_hits": channel.hits, "row_misses": channel.misses, "commands": dict(channel.counts)}
        grouped = {key: n for key, n in channel.group_counts.items() if uses_bank(channel.book, key[0])}
        return {**same, "stalls": {k: v for k, v in channel.stalls.items() if v}, "grouped": grouped}
    same |= {"row_hits": channel.row_hits, "row_misses": channel.row_misses, "commands": dict(channel.commands)}
    groups = {(*key, i): n for key, counts in channel.group_commands.items() for i, n in enumerate(counts) if n}
    return {**same, "stalls": dict(channel.stalls), "grouped": groups}


@pytest.mark.parametrize("part", range(PARTS))
def test_engine_equals_reference(part: int) -> None:
    seed(part)(EXAMPLES(given(cases())(assert_engine_is_reference)))()


def assert_engine_is_reference(case: tuple[dict[str, Any], list[Program]]) -> None:
    machine, played = machine_with(**case[0]), case[1]
    slow = reference_of(machine, played)
    fast = simulate(machine, played)
    assert list(fast.program_ends) == slow.ends
    assert [statistics(c) for c in fast.channels] == [statistics(c) for c in slow.channels]
    assert dict(fast.label_cycles) == {k: v for k, v in slow.labels.items() if v}
    assert {k: busy for k, (busy, _) in fast.jobs.items()} == dict(slow.jobs)
    for channel in fast.channels:
        assert sum(channel.stalls.values()) == channel.idle_cycles
    assert sum(fast.label_cycles.values()) == fast.cycles
    assert_same_commands(machine, played, slow)


def assert_same_commands(machine: Machine, played: list[Program], slow: Reference) -> None:
    recorder = Player(machine)
    issued = [recorder.record(p, 0, end) for p, end in zip(played, slow.ends, strict=True)]
    streams = recorder.result().channels
    for group, channel in zip(streams, slow.channels, strict=True):
        own = [i for part in issued for i in part if i.channel == group.channels[0]]
        assert [flat(i) for i in own] == [Flat(p.cycle, p.name, p.bank, p.row, p.column) for p in channel.log]
        assert check(machine, [flat(i) for i in own]) is None


def flat(issued: Issued) -> Flat:
    return Flat(issued.cycle, issued.command, issued.bank, issued.row, issued.column)

"""The simulator: commands a second of the reference, of the engine without and with fast-forward, by program size.

    python -m pytest benchmarks/test_engine.py --benchmark-enable -s

A GEMV program on `pim-gpt` with refresh on; the sizes are commands of one channel, and all channels do the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from nearbank.sim.engine import Player
from nearbank.sim.machine import load_machine
from nearbank.sim.program import Builder, Program, Stream
from nearbank.sim.reference import Reference

COMMANDS_A_ROW = 67
ROWS = 15_000
SIZES = [10**k for k in range(3, 10)]
# What takes longer than seconds is left to the faster players.
MOST = {"reference": 10**4, "engine": 10**8, "fast-forward": 10**9}


def gemv(commands: int) -> Program:
    """Rows of 64 columns, opened, multiplied, closed and read out, as many as make about so many commands."""
    rows = max(commands // COMMANDS_A_ROW, 1)
    outer = -(-rows // ROWS)
    b = Builder()
    with b.loop(outer), b.loop(-(-rows // outer)) as r:
        b.command("ACT16", row=r)
        with b.loop(64) as c:
            b.command("MACAB", row=r, column=c, format="bf16")
        b.command("PREA")
        b.command("RDMAC")
    return Program(f"gemv of {commands} commands", (Stream(tuple(range(8)), b.body()),))


def player_of(name: str) -> Callable[[Program], int]:
    """Plays a program from power-up; returns its commands per channel."""
    machine = load_machine("pim-gpt")

    def reference(program: Program) -> int:
        slow = Reference(machine)
        slow.play(program)
        return sum(slow.channels[0].counts.values())

    def engine(program: Program) -> int:
        fast = Player(machine, fast_forward=name == "fast-forward")
        fast.play(program)
        return fast.result().channels[0].issued

    return reference if name == "reference" else engine


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MOST)
def test_commands_per_second(benchmark, name, size):
    if size > MOST[name]:
        pytest.skip(f"{name} is measured up to {MOST[name]} commands")
    play, program = player_of(name), gemv(size)
    play(gemv(1000))  # compiled code loads outside the measurement
    started = time.perf_counter()
    commands = benchmark.pedantic(play, args=(program,), rounds=1)
    seconds = time.perf_counter() - started
    benchmark.extra_info.update(player=name, commands=commands, commands_per_s=round(commands / seconds))
    print(f"\n{name}: {commands} commands in {seconds:.3f} s, {commands / seconds:,.0f} a second")
    assert commands > size / 2

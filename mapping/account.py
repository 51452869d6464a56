"""What a program does, counted over its tree: commands, bytes over the pins, multiply-accumulates by format.

These are the counts of a program as written; what a controller adds (refresh, rows closed for it) is the engine's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from fractions import Fraction

from nearbank.mapping.target import Target
from nearbank.sim.program import Command, Loop, Node, Program
from nearbank.sim.standard import MAC_AND_SCALE

# Which way each command that uses the pins moves its burst, seen from the memory.
DIRECTIONS: Mapping[str, str] = {
    "WRGB": "vectors_in",
    "WRBIAS": "vectors_in",
    "WR": "values_in",
    "RDMAC": "results_out",
    "RDAF": "results_out",
    "RD": "values_out",
}


MACS = ("MACAB", MAC_AND_SCALE)


def command_counts(program: Program) -> Counter[tuple[str, str]]:
    """How often each (command, MAC format or "") is issued, over all channels."""
    counts: Counter[tuple[str, str]] = Counter()
    for stream in program.streams:
        for command, times in _walk(stream.body, 1):
            counts[command.name, command.format] += times * len(stream.channels)
    return counts


def _walk(nodes: tuple[Node, ...], times: int) -> Iterator[tuple[Command, int]]:
    for node in nodes:
        if isinstance(node, Command):
            yield node, times
        elif isinstance(node, Loop):
            yield from _walk(node.body, times * node.count)


def nodes(program: Program) -> int:
    """Nodes in all streams of the program."""
    return sum(_nodes(stream.body) for stream in program.streams)


def _nodes(body: tuple[Node, ...]) -> int:
    return sum(1 + (_nodes(node.body) if isinstance(node, Loop) else 0) for node in body)


def bytes_off_chip(counts: Mapping[tuple[str, str], int], column_bytes: int) -> dict[str, int]:
    """Bytes over the pins by direction: input vectors, values written (K, V), results, values read (scales).

    `counts` are those of `command_counts`, or of a simulation.
    """
    moved = dict.fromkeys(DIRECTIONS.values(), 0)
    for (name, _), times in counts.items():
        if name in DIRECTIONS:
            moved[DIRECTIONS[name]] += times * column_bytes
    return moved


def mac_operations(counts: Mapping[tuple[str, str], int], target: Target) -> dict[str, int]:
    """Multiply-accumulates that the banks performed, by format: lanes × banks for every MAC, padding included."""
    lanes = dict(target.lanes)
    each = {fmt: Fraction(have.per_step, have.serial) * target.banks for fmt, have in lanes.items()}
    return {fmt: int(times * each[fmt]) for (name, fmt), times in counts.items() if name in MACS}

"""Code: programs as flat integer tables, a row per node and two per loop, piece by piece and whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nearbank.sim import vm
from nearbank.sim.layout import Ints
from nearbank.sim.program import Node


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows of one node, or of a run of them, at one depth, and what the loops around need to know."""

    node: Node | tuple[Node, ...]
    rows: Ints
    commands: frozenset[tuple[str, str]]
    meets: bool
    moves_rows: bool
    bank_depths: frozenset[int]


def joined(nodes: tuple[Node, ...], pieces: Sequence[Piece], around: int | None = None) -> Piece:
    """The rows of all pieces, end to end, with one more before and one after them for a loop at depth `around`."""
    ends = [] if around is None else [blank(around)]
    rows = np.concatenate([*ends, *[p.rows for p in pieces], *ends])
    commands = frozenset[tuple[str, str]]().union(*[p.commands for p in pieces])
    bank_depths = frozenset[int]().union(*[p.bank_depths for p in pieces])
    meets, moves_rows = any(p.meets for p in pieces), any(p.moves_rows for p in pieces)
    return Piece(nodes, rows, commands, meets, moves_rows, bank_depths)


@dataclass(frozen=True, slots=True)
class Code:
    """A program ready to play: all streams' rows end to end, and the row each starts at.

    The rows hold until the compiler is given the next program.
    """

    rows: Ints
    entries: tuple[int, ...]
    commands: frozenset[str]


def blank(depth: int) -> Ints:
    """One row, at a depth, that says nothing yet."""
    row = np.zeros((1, vm.WIDTH), dtype=np.int64)
    row[0, vm.DEPTH] = depth
    return row

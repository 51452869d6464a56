"""Nodes of programs as rows of code, kept: a node object that comes again costs nothing to encode."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from nearbank.sim import vm
from nearbank.sim.code import Piece, blank, joined
from nearbank.sim.layout import Ints, uses_bank
from nearbank.sim.numbering import Numbering, number
from nearbank.sim.program import Command, Index, Loop, Mark, Node, Start, Wait
from nearbank.sim.rules import RuleBook
from nearbank.sim.standard import Effect, Row

_KEPT_ROWS = 40_000
_LONG = 16
_FAR = 1 << 58
_WIDEST = 1 << 28


class FaultError(Exception):
    """What is wrong with a node, before the place is known."""


@dataclass
class _Kept:
    """Pieces by the identity of their nodes, which they hold; those not asked for lately are let go."""

    young: dict[tuple[int, ...], Piece] = field(default_factory=dict)
    old: dict[tuple[int, ...], Piece] = field(default_factory=dict)
    rows: int = 0

    def get(self, key: tuple[int, ...]) -> Piece | None:
        found = self.young.get(key)
        if found is None and (found := self.old.get(key)):
            self.add(key, found)
        return found

    def drop(self, key: tuple[int, ...]) -> None:
        self.young.pop(key, None)
        self.old.pop(key, None)

    def add(self, key: tuple[int, ...], piece: Piece) -> None:
        self.young[key] = piece
        self.rows += len(piece.rows)
        if self.rows > _KEPT_ROWS:
            self.old, self.young, self.rows = self.young, {}, 0


@dataclass
class Encoder:
    """Encodes nodes for one machine; `FaultError` where a node is wrong."""

    book: RuleBook
    numbering: Numbering
    _kept: _Kept = field(default_factory=_Kept)

    def __post_init__(self) -> None:
        self._numbers = {name: i for i, name in enumerate(self.book.specs)}

    def knows(self, node: Node) -> bool:
        """True where a node of a stream has been encoded before, and is kept."""
        return self._kept.get((0, id(node))) is not None

    def forget(self, node: Node) -> None:
        """A node of a stream that turned out to be wrong is not known."""
        self._kept.drop((0, id(node)))

    def piece(self, node: Node, depth: int) -> Piece:
        """The rows of a node at a depth."""
        key = (depth, id(node))
        known = self._kept.get(key)
        if known is None:
            known = self._loop(node, depth) if isinstance(node, Loop) else self._leaf(node, depth)
            self._kept.add(key, known)
        return known

    def _body(self, nodes: tuple[Node, ...], depth: int) -> list[Piece]:
        """The pieces of a loop's body. A long one is looked up run by run: most of it is often that of a body before.

        A run ends before a mark, so that bodies in which something is left out have the other runs in common.
        """
        if len(nodes) <= _LONG:
            return [self.piece(node, depth) for node in nodes]
        marks = [i for i, node in enumerate(nodes) if isinstance(node, Mark) and i]
        return [self._run(nodes[begin:end], depth) for begin, end in pairwise([0, *marks, len(nodes)])]

    def _run(self, nodes: tuple[Node, ...], depth: int) -> Piece:
        key = (depth, *map(id, nodes), 0)
        known = self._kept.get(key)
        if known is None:
            known = joined(nodes, [self.piece(node, depth) for node in nodes])
            self._kept.add(key, known)
        return known

    def _leaf(self, node: Node, depth: int) -> Piece:
        row = blank(depth)
        if isinstance(node, Command):
            return self._command(node, depth, row)
        row[0, vm.MEETS] = 1
        if isinstance(node, Start):
            _check_duration(node)
            job = number(self.numbering.jobs, (node.unit, node.job))
            row[0, : vm.DEPTH] = vm.START, number(self.numbering.units, node.unit), job, node.duration_ps
        elif isinstance(node, Wait):
            row[0, : vm.DEPTH] = vm.WAIT, number(self.numbering.units, node.unit), 0, 0
        elif isinstance(node, Mark):
            row[0, : vm.DEPTH] = vm.MARK, number(self.numbering.labels, node.label), 0, 0
        else:
            raise FaultError(f"{node!r} is no node; expected Command, Loop, Start, Wait or Mark")
        return Piece(node, row, frozenset(), True, False, frozenset())

    def _command(self, node: Command, depth: int, row: Ints) -> Piece:
        spec = self.book.specs.get(node.name)
        if spec is None:
            raise FaultError(
                f"unknown command {node.name!r}; {self.book.standard.name} has {', '.join(self.book.specs)}"
            )
        slot = self.numbering.slots.get((node.name, node.format))
        if slot is None:
            raise FaultError(f"{node.name} in format {node.format!r}: not among the machine's MAC formats")
        banked = uses_bank(self.book, node.name)
        rowed = spec.row is Row.OPEN or spec.effect is Effect.OPENS
        flags = (depth, 0, 0, int(banked), int(rowed))
        row[0, : vm.BANK] = vm.COMMAND, self._numbers[node.name], slot, 0, *flags
        if banked:
            _put(row, vm.BANK, vm.BANK_STRIDES, node.bank, depth, f"{node.name} bank")
            self._check_alignment(node)
        if rowed:
            _put(row, vm.ROW, vm.ROW_STRIDES, node.row, depth, f"{node.name} row")
        _put(row, vm.COLUMN, vm.COLUMN_STRIDES, node.column, depth, f"{node.name} column")
        depths = frozenset(d for d, stride in enumerate(node.bank.strides) if stride) if banked else frozenset()
        row[0, vm.LOW : vm.HIGH] = row[0, vm.HIGH : vm.STRETCH] = row[0, vm.BANK : vm.BANK_STRIDES]
        return Piece(node, row, frozenset([(node.name, node.format)]), False, spec.effect is not Effect.NONE, depths)

    def _check_alignment(self, node: Command) -> None:
        reach = self.book.reach[node.name]
        if node.bank.base % reach or any(stride % reach for stride in node.bank.strides):
            raise FaultError(f"{node.name} reaches {reach} banks; its bank must be a multiple of {reach}")

    def _loop(self, node: Loop, depth: int) -> Piece:
        _check_loop(node, depth)
        inside = joined(node.body, self._body(node.body, depth + 1), depth)
        body = -1 if depth in inside.bank_depths else number(self.numbering.bodies, inside.commands)
        rows = inside.rows
        flags = (depth, int(inside.meets), int(inside.moves_rows))
        end = node.first + node.count
        rows[0, : vm.HAS_BANK] = vm.LOOP, end, node.first, 0, *flags
        rows[-1, : vm.HAS_BANK] = vm.END, end, len(rows) - 2, body, *flags
        _widen(rows[1:-1], depth, node.first, end - 1)
        return replace(inside, node=node)


def _widen(rows: Ints, depth: int, first: int, last: int) -> None:
    """Let the lowest and highest addresses take in a loop around the rows whose counter goes from `first` to `last`."""
    if not last:
        return
    strides = rows[:, vm.BANK_STRIDES + depth : vm.LOW : vm.MAX_DEPTH]
    if last >= 1 << 32 and last * int(np.abs(strides).max(initial=0)) >= _FAR:
        raise FaultError(f"an address moves over more than 2^58 in a loop up to round {last + 1}")
    begun, ended = strides * first, strides * last
    rows[:, vm.LOW : vm.HIGH] += np.minimum(begun, ended)
    rows[:, vm.HIGH : vm.STRETCH] += np.maximum(begun, ended)


def _put(row: Ints, base: int, strides: int, index: Index, depth: int, what: str) -> None:
    if len(index.strides) > depth and any(index.strides[depth:]):
        raise FaultError(f"{what} depends on a loop at depth {len(index.strides) - 1}, but it stands at depth {depth}")
    values = (index.base, *index.strides)
    if any(not -_WIDEST < v < _WIDEST for v in values):
        raise FaultError(f"{what} is beyond 2^28")
    row[0, base] = index.base
    kept = index.strides[:depth]
    row[0, strides : strides + len(kept)] = kept


def _check_duration(node: Start) -> None:
    if not isinstance(node.duration_ps, int) or not 0 <= node.duration_ps < 1 << 60:
        raise FaultError(f"job {node.job!r} on {node.unit!r} takes {node.duration_ps} ps; expected 0 to 2^60 - 1")


def _check_loop(node: Loop, depth: int) -> None:
    if depth >= vm.MAX_DEPTH:
        raise FaultError(f"loops are nested deeper than {vm.MAX_DEPTH}")
    if not isinstance(node.count, int) or not 0 < node.count < 1 << 62:
        raise FaultError(f"loop of {node.count} rounds; expected 1 to 2^62 - 1")
    if not isinstance(node.first, int) or not 0 <= node.first < (1 << 62) - node.count:
        raise FaultError(f"loop whose counter begins at {node.first}; expected 0 or more, up to 2^62 with its rounds")
    if not node.body:
        raise FaultError("loop with an empty body")

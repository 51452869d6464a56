"""Programs as flat integer tables for the compiled engine, checked at this edge.

Every node becomes a row; a loop becomes a row before and a row after its body, with relative jumps, so the rows of a
node do not depend on where it stands. They are kept: a node object that comes again, in the next program or at
another place, costs nothing to encode, and a run of such nodes in a long body is found at once. Checked here: command
names, formats, addresses over all loop counters, depth and counts of loops, and that all streams meet in the same
order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from nearbank.errors import NearbankError
from nearbank.sim import vm
from nearbank.sim.layout import Ints, uses_bank
from nearbank.sim.program import Command, Index, Loop, Mark, Node, Program, Start, Wait
from nearbank.sim.rules import RuleBook
from nearbank.sim.standard import Effect, Row

_K = TypeVar("_K")
_KEPT_ROWS = 40_000
_RUN = 16
_MOST = 4000  # stretches that are known; numbers are never given again
_LEAST = 4  # rows of a stretch that is worth keeping: a loop with two commands
_FAR = 1 << 58
_WIDEST = 1 << 28


class _FaultError(Exception):
    """What is wrong with a node, before the place is known."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows of one node, or of a run of them, at one depth, and what the loops around need to know."""

    node: Node | tuple[Node, ...]
    rows: Ints
    commands: frozenset[tuple[str, str]]
    meets: bool
    moves_rows: bool
    bank_depths: frozenset[int]


def _joined(nodes: tuple[Node, ...], pieces: Sequence[Piece]) -> Piece:
    rows = pieces[0].rows if len(pieces) == 1 else np.concatenate([p.rows for p in pieces])
    commands = frozenset[tuple[str, str]]().union(*[p.commands for p in pieces])
    bank_depths = frozenset[int]().union(*[p.bank_depths for p in pieces])
    meets, moves_rows = any(p.meets for p in pieces), any(p.moves_rows for p in pieces)
    return Piece(nodes, rows, commands, meets, moves_rows, bank_depths)


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

    def add(self, key: tuple[int, ...], piece: Piece) -> None:
        self.young[key] = piece
        self.rows += len(piece.rows)
        if self.rows > _KEPT_ROWS:
            self.old, self.young, self.rows = self.young, {}, 0


@dataclass(frozen=True, slots=True)
class Code:
    """A program ready to play: all streams' rows end to end, and the row each starts at.

    The rows hold until the compiler is given the next program.
    """

    rows: Ints
    entries: tuple[int, ...]
    commands: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Outermost:
    """An outermost loop in the code: its first and last row, and the rows between whose addresses its counter moves."""

    stream: int
    node: int
    begin: int
    end: int
    moved: Ints
    strides: Ints


@dataclass
class _Laid:
    """The last program, what of it holds for others, and where its outermost loops are."""

    program: Program
    shape: tuple[object, ...]
    code: Code
    loops: list[_Outermost]

    def moved(self, program: Program, least: Ints) -> bool:
        """Make the code that of `program`; False, and the code is of no more use, where it cannot be."""
        if _shape(program) != self.shape:
            return False
        for loop in self.loops:
            before, after = (p.streams[loop.stream].body[loop.node] for p in (self.program, program))
            assert isinstance(before, Loop)
            assert isinstance(after, Loop)
            if before.first != after.first and not self._move(loop, after, after.first - before.first, least):
                return False
        self.program = program
        return True

    def _move(self, loop: _Outermost, node: Loop, rounds: int, least: Ints) -> bool:
        rows, end = self.code.rows, node.first + node.count
        if not rows[loop.begin, vm.MEETS] or not isinstance(node.first, int) or node.first < 0 or end >= 1 << 32:
            return False
        rows[loop.begin, vm.A], rows[loop.begin, vm.B], rows[loop.end, vm.A] = end, node.first, end
        rows[loop.moved, vm.LOW : vm.HIGH] += rounds * loop.strides
        rows[loop.moved, vm.HIGH : vm.STRETCH] += rounds * loop.strides
        moved = rows[loop.moved, vm.LOW : vm.STRETCH]
        return bool((moved[:, :3] >= 0).all() and (moved[:, 3:] < least).all())


def _shape(program: Program) -> tuple[object, ...]:
    """What two programs have in common whose code differs only in where outermost loops begin."""
    return tuple(
        (s.channels, *((id(n.body), n.count) if isinstance(n, Loop) else id(n) for n in s.body))
        for s in program.streams
    )


def _outermost(program: Program, code: Code) -> list[_Outermost]:
    found = []
    for number, stream in enumerate(program.streams):
        at = code.entries[number]
        for place, node in enumerate(stream.body):
            if isinstance(node, Loop):
                begin, at = at, at + _length(code.rows, at)
                strides = code.rows[begin:at, vm.BANK_STRIDES : vm.LOW : vm.MAX_DEPTH]
                moved = begin + np.flatnonzero(strides.any(axis=1))
                found.append(_Outermost(number, place, begin, at - 1, moved, strides[moved - begin]))
            else:
                at += 1
    return found


def _length(rows: Ints, begin: int) -> int:
    """Rows of the outermost loop that begins there: up to the next end of a loop of its depth."""
    ends = (rows[begin:, vm.OP] == vm.END) & (rows[begin:, vm.DEPTH] == rows[begin, vm.DEPTH])
    return int(np.argmax(ends)) + 1


@dataclass
class Compiler:
    """Encodes programs for one machine, and numbers what they name: units, jobs, labels, sets of commands."""

    book: RuleBook
    units: dict[str, int] = field(default_factory=dict)
    jobs: dict[tuple[str, str], int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=lambda: {"": 0})
    bodies: dict[frozenset[tuple[str, str]], int] = field(default_factory=dict)
    slots: dict[tuple[str, str], int] = field(default_factory=dict)
    slot_count: int = 0
    stretches: Stretches = field(init=False)
    _kept: _Kept = field(default_factory=_Kept)
    _last: _Laid | None = None
    _room: Ints = field(default_factory=lambda: np.zeros((0, vm.WIDTH), dtype=np.int64))

    def __post_init__(self) -> None:
        self._numbers = {name: i for i, name in enumerate(self.book.specs)}
        self.stretches = Stretches(self)
        unit = self.book.machine.mac_unit
        for name, spec in self.book.specs.items():
            for number_format in ("", *(unit.formats if unit and spec.macs else ())):
                self.slots[name, number_format] = self.slot_count
                self.slot_count += self.slots_of(name)
        organization, buffer = self.book.machine.organization, self.book.machine.global_buffer
        columns = buffer.bytes // organization.column_bytes if buffer else organization.columns
        self._least = np.array([self.book.banks, organization.rows, min(columns, organization.columns)])

    def slots_of(self, name: str) -> int:
        """How many counters a command has, side by side: one a bank group if it is told a bank."""
        return self.book.banks // self.book.group if uses_bank(self.book, name) else 1

    def code(self, program: Program) -> Code:
        """The program's tables; `NearbankError` names program, stream and node of the first fault.

        A program that differs from the last one only in where outermost loops begin takes over that one's tables.
        """
        if self._last and self._last.moved(program, self._least):
            return self._last.code
        self._last = None
        code = self._encoded(program)
        self._last = _Laid(program, _shape(program), code, _outermost(program, code))
        return code

    def _encoded(self, program: Program) -> Code:
        streams = [self._stream_pieces(program, number) for number in range(len(program.streams))]
        rows = self._laid([block for pieces in streams for block in (*(p.rows for p in pieces), _HALT)])
        ends = np.cumsum([sum(len(p.rows) for p in pieces) + 1 for pieces in streams])
        entries = np.array([0, *ends[:-1]])
        _check_meetings(program, np.split(rows, ends[:-1]))
        self.stretches.mark(rows)
        commands = frozenset(name for pieces in streams for piece in pieces for name, _ in piece.commands)
        return Code(rows, tuple(entries.tolist()), commands)

    def body_of(self, commands: Ints) -> int:
        """The number of the set of commands in some rows and of those of a refresh that may come between them."""
        names = {slot: key for key, slot in self.slots.items()}
        refresh = {(name, "") for name in self.book.refresh.commands}
        return _number(self.bodies, frozenset(names[slot] for slot in commands[:, vm.B].tolist()) | refresh)

    def _laid(self, blocks: list[Ints]) -> Ints:
        """All blocks end to end, in room that the next program takes over: fresh memory is what would cost time."""
        count = sum(map(len, blocks))
        if count > len(self._room):
            self._room = np.zeros((2 * count, vm.WIDTH), dtype=np.int64)
        return np.concatenate(blocks, out=self._room[:count])

    def _stream_pieces(self, program: Program, number: int) -> list[Piece]:
        self._check_channels(program, number, program.streams[number].channels)
        pieces: list[Piece] = []
        for place, node in enumerate(program.streams[number].body):
            try:
                known = self._kept.get((0, id(node))) is not None
                piece = self._piece(node, 0)
            except _FaultError as fault:
                raise NearbankError(f"program {program.name}, stream {number}, node {place}: {fault}") from None
            pieces.append(piece)
            if not known:
                self._check_addresses(program, number, pieces)
        return pieces

    def _piece(self, node: Node, depth: int) -> Piece:
        key = (depth, id(node))
        known = self._kept.get(key)
        if known is None:
            known = self._loop(node, depth) if isinstance(node, Loop) else self._leaf(node, depth)
            self._kept.add(key, known)
        return known

    def _body(self, nodes: tuple[Node, ...], depth: int) -> Piece:
        """All nodes of a loop's body. A long one is looked up run by run: most of it is often that of a body before."""
        if len(nodes) <= _RUN:
            return _joined(nodes, [self._piece(node, depth) for node in nodes])
        return _joined(nodes, [self._run(nodes[i : i + _RUN], depth) for i in range(0, len(nodes), _RUN)])

    def _run(self, nodes: tuple[Node, ...], depth: int) -> Piece:
        key = (depth, *map(id, nodes), 0)
        known = self._kept.get(key)
        if known is None:
            known = _joined(nodes, [self._piece(node, depth) for node in nodes])
            self._kept.add(key, known)
        return known

    def _leaf(self, node: Node, depth: int) -> Piece:
        row = _blank(depth)
        if isinstance(node, Command):
            return self._command(node, depth, row)
        row[0, vm.MEETS] = 1
        if isinstance(node, Start):
            _check_duration(node)
            job = _number(self.jobs, (node.unit, node.job))
            row[0, : vm.DEPTH] = vm.START, _number(self.units, node.unit), job, node.duration_ps
        elif isinstance(node, Wait):
            row[0, : vm.DEPTH] = vm.WAIT, _number(self.units, node.unit), 0, 0
        elif isinstance(node, Mark):
            row[0, : vm.DEPTH] = vm.MARK, _number(self.labels, node.label), 0, 0
        else:
            raise _FaultError(f"{node!r} is no node; expected Command, Loop, Start, Wait or Mark")
        return Piece(node, row, frozenset(), True, False, frozenset())

    def _command(self, node: Command, depth: int, row: Ints) -> Piece:
        spec = self.book.specs.get(node.name)
        if spec is None:
            raise _FaultError(
                f"unknown command {node.name!r}; {self.book.standard.name} has {', '.join(self.book.specs)}"
            )
        if (node.name, node.format) not in self.slots:
            raise _FaultError(f"{node.name} in format {node.format!r}: not among the machine's MAC formats")
        banked = uses_bank(self.book, node.name)
        rowed = spec.row is Row.OPEN or spec.effect is Effect.OPENS
        flags = (depth, 0, 0, int(banked), int(rowed))
        row[0, : vm.BANK] = vm.COMMAND, self._numbers[node.name], self.slots[node.name, node.format], 0, *flags
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
            raise _FaultError(f"{node.name} reaches {reach} banks; its bank must be a multiple of {reach}")

    def _loop(self, node: Loop, depth: int) -> Piece:
        if depth >= vm.MAX_DEPTH:
            raise _FaultError(f"loops are nested deeper than {vm.MAX_DEPTH}")
        if not isinstance(node.count, int) or not 0 < node.count < 1 << 62:
            raise _FaultError(f"loop of {node.count} rounds; expected 1 to 2^62 - 1")
        if not isinstance(node.first, int) or not 0 <= node.first < (1 << 62) - node.count:
            raise _FaultError(
                f"loop whose counter begins at {node.first}; expected 0 or more, up to 2^62 with its rounds"
            )
        if not node.body:
            raise _FaultError("loop with an empty body")
        inside = self._body(node.body, depth + 1)
        body = -1 if depth in inside.bank_depths else _number(self.bodies, inside.commands)
        rows = np.concatenate([_blank(depth), inside.rows, _blank(depth)])
        flags = (depth, int(inside.meets), int(inside.moves_rows))
        end = node.first + node.count
        rows[0, : vm.HAS_BANK] = vm.LOOP, end, node.first, 0, *flags
        rows[-1, : vm.HAS_BANK] = vm.END, end, len(rows) - 2, body, *flags
        _widen(rows[1:-1], depth, node.first, end - 1)
        return replace(inside, node=node, rows=rows)

    def _check_channels(self, program: Program, number: int, channels: tuple[int, ...]) -> None:
        count = self.book.machine.organization.channels
        earlier = {c for s in program.streams[:number] for c in s.channels}
        for channel in channels:
            if not 0 <= channel < count or channel in earlier or channels.count(channel) > 1:
                raise NearbankError(
                    f"program {program.name}, stream {number}: channel {channel}; "
                    f"expected each of 0 to {count - 1} at most once"
                )
        if not channels:
            raise NearbankError(f"program {program.name}, stream {number}: no channels")

    def _check_addresses(self, program: Program, number: int, pieces: list[Piece]) -> None:
        """The last of the stream's pieces so far: all its addresses exist."""
        rows = pieces[-1].rows
        if rows[:, vm.LOW : vm.HIGH].min() >= 0 and (rows[:, vm.HIGH : vm.STRETCH].max(axis=0) < self._least).all():
            return
        organization = self.book.machine.organization
        sizes = (("bank", self.book.banks), ("row", organization.rows), ("column", organization.columns))
        for k, (what, size) in enumerate(sizes):
            low, high = rows[:, vm.LOW + k], rows[:, vm.HIGH + k]
            limits = self._sizes(what, size, rows)
            bad = np.flatnonzero((low < 0) | (high >= limits))
            if len(bad):
                at = int(bad[0])
                value = low[at] if low[at] < 0 else high[at]
                name = list(self.book.specs)[rows[at, vm.A]]
                place, _ = locate(program, number, at + sum(len(p.rows) for p in pieces[:-1]))
                raise NearbankError(
                    f"program {program.name}, stream {number}, node {place}: {name} {what} {value}; "
                    f"the machine has {what}s 0 to {limits[at] - 1}"
                )

    def _sizes(self, what: str, size: int, rows: Ints) -> Ints:
        """How many of `what` there are for each row; a write to the global buffer has the buffer's columns."""
        sizes = np.full(len(rows), size, dtype=np.int64)
        buffer = self.book.machine.global_buffer
        names = list(self.book.specs)
        if what == "column" and buffer is not None and "WRGB" in names:
            sizes[rows[:, vm.A] == names.index("WRGB")] = buffer.bytes // self.book.machine.organization.column_bytes
        return sizes


def _blank(depth: int) -> Ints:
    row = np.zeros((1, vm.WIDTH), dtype=np.int64)
    row[0, vm.DEPTH] = depth
    return row


def _widen(rows: Ints, depth: int, first: int, last: int) -> None:
    """Let the lowest and highest addresses take in a loop around the rows whose counter goes from `first` to `last`."""
    if not last:
        return
    strides = rows[:, vm.BANK_STRIDES + depth : vm.LOW : vm.MAX_DEPTH]
    if last >= 1 << 32 and last * int(np.abs(strides).max(initial=0)) >= _FAR:
        raise _FaultError(f"an address moves over more than 2^58 in a loop up to round {last + 1}")
    begun, ended = strides * first, strides * last
    rows[:, vm.LOW : vm.HIGH] += np.minimum(begun, ended)
    rows[:, vm.HIGH : vm.STRETCH] += np.maximum(begun, ended)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Where a stretch's first command is, counted from its first row, and what that row says of it."""

    at: int
    fields: tuple[int, int, int, int, int]


@dataclass
class Stretches:
    """Numbers the stretches of code between meetings: those that do the same, on whatever rows, have one number.

    Of a stretch that is not worth keeping, or whose banks depend on loops around it, or whose rows do in several ways,
    it is known that it has none.
    """

    compiler: Compiler
    known: dict[bytes, _Stretch | None] = field(default_factory=dict)
    count: int = 0

    def mark(self, rows: Ints) -> None:
        """Write what is known of every stretch to its first command."""
        rows[:, vm.STRETCH :] = 0
        op = rows[:, vm.OP]
        stops = np.flatnonzero((op >= vm.START) | ((rows[:, vm.MEETS] != 0) & (op != vm.COMMAND)))
        begins = np.concatenate([[0], stops[:-1] + 1])
        long = stops - begins >= _LEAST
        begins, stops = begins[long], stops[long]
        texts = self._texts(rows, begins, stops)
        for begin, stop, text in zip(begins.tolist(), stops.tolist(), texts, strict=True):
            if text not in self.known:
                if len(self.known) > _MOST:
                    self.known.clear()
                self.known[text] = self._stretch(rows[begin : stop + 1])
            if found := self.known[text]:
                rows[begin + found.at, vm.STRETCH :] = found.fields

    def _texts(self, rows: Ints, begins: Ints, stops: Ints) -> list[bytes]:
        """All that a stretch's time depends on: its rows without columns, addresses counted from its first."""
        said = rows[:, : vm.COLUMN_STRIDES].copy()
        said[:, vm.COLUMN] = 0
        texts = []
        for begin, stop in zip(begins.tolist(), stops.tolist(), strict=True):
            own = said[begin:stop]
            rowed = own[:, vm.HAS_ROW] != 0
            own[rowed, vm.ROW] -= own[np.argmax(rowed), vm.ROW]
            texts.append(own.tobytes() + bytes([int(rows[stop, vm.DEPTH] + (rows[stop, vm.OP] == vm.END))]))
        return texts

    def _stretch(self, rows: Ints) -> _Stretch | None:
        """Of a stretch's rows and the meeting behind it."""
        own, stop = rows[:-1], rows[-1]
        depth = int(stop[vm.DEPTH] + (stop[vm.OP] == vm.END))
        commands, rowed = own[:, vm.OP] == vm.COMMAND, own[:, vm.HAS_ROW] != 0
        around = own[:, vm.ROW_STRIDES : vm.ROW_STRIDES + depth][rowed]
        banks = own[:, vm.BANK_STRIDES : vm.BANK_STRIDES + depth]
        if not commands.any() or banks.any() or (around != around[:1]).any():
            return None
        at = int(np.argmax(commands))
        self.count += 1
        body = self.compiler.body_of(own[commands])
        first = int(np.argmax(rowed)) - at if rowed.any() else -1
        return _Stretch(at, (self.count, body, len(own) - at, first, depth))


_HALT = _blank(0)
_HALT[0, vm.OP] = vm.HALT


def _put(row: Ints, base: int, strides: int, index: Index, depth: int, what: str) -> None:
    if len(index.strides) > depth and any(index.strides[depth:]):
        raise _FaultError(f"{what} depends on a loop at depth {len(index.strides) - 1}, but it stands at depth {depth}")
    values = (index.base, *index.strides)
    if any(not -_WIDEST < v < _WIDEST for v in values):
        raise _FaultError(f"{what} is beyond 2^28")
    row[0, base] = index.base
    kept = index.strides[:depth]
    row[0, strides : strides + len(kept)] = kept


def _number(numbers: dict[_K, int], key: _K) -> int:
    return numbers.setdefault(key, len(numbers))


def _check_duration(node: Start) -> None:
    if not isinstance(node.duration_ps, int) or not 0 <= node.duration_ps < 1 << 60:
        raise _FaultError(f"job {node.job!r} on {node.unit!r} takes {node.duration_ps} ps; expected 0 to 2^60 - 1")


def _check_meetings(program: Program, parts: list[Ints]) -> None:
    """All streams hold the same meetings, in the same loops."""
    if len(parts) == 1:
        return
    skeletons = [_skeleton(rows) for rows in parts]
    for number, skeleton in enumerate(skeletons[1:], start=1):
        if not np.array_equal(skeleton, skeletons[0]):
            raise NearbankError(
                f"program {program.name}, stream {number}: its starts, waits and marks differ from stream 0's; "
                "the two would wait for each other for ever"
            )


def _skeleton(rows: Ints) -> Ints:
    meetings: Ints = rows[:, [vm.OP, vm.DEPTH, vm.A, vm.B, vm.C]][rows[:, vm.MEETS] == 1]
    meetings[meetings[:, 0] == vm.END, 3:] = 0  # how long the bodies are is each stream's own matter
    return meetings


def locate(program: Program, stream: int, row: int) -> tuple[str, Node | None]:
    """The node that a code row (counted from the stream's first) belongs to, and its path such as "3.0.1"."""
    for at, (path, node) in enumerate(_walk(program.streams[stream].body, "")):
        if at == row:
            return path, node
    return "end", None


def _walk(body: tuple[Node, ...], prefix: str) -> Iterator[tuple[str, Node]]:
    """Nodes in the order of their rows."""
    for i, node in enumerate(body):
        path = f"{prefix}{i}"
        yield path, node
        if isinstance(node, Loop):
            yield from _walk(node.body, f"{path}.")
            yield path, node

"""Compiles programs for the engine: their code, checked at this edge.

Every node becomes a row; a loop becomes a row before and a row after its body, with relative jumps, so the rows of a
node do not depend on where it stands. They are kept (`nearbank.sim.encoder`): a node object that comes again, in the
next program or at another place, costs nothing to encode, and a run of such nodes in a long body is found at once.
Checked here: command names, formats, addresses over all loop counters, depth and counts of loops, and that all streams
meet in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nearbank.errors import NearbankError
from nearbank.sim import vm
from nearbank.sim.code import Code, Piece, blank
from nearbank.sim.encoder import Encoder, FaultError
from nearbank.sim.layout import Ints
from nearbank.sim.moved_code import Laid
from nearbank.sim.numbering import Numbering
from nearbank.sim.program import Program
from nearbank.sim.program_checks import check_addresses, check_channels, check_meetings, least_sizes
from nearbank.sim.rules import RuleBook
from nearbank.sim.stretches import Stretches


@dataclass
class Compiler:
    """Compiles programs for one machine, and has what they name numbered."""

    book: RuleBook
    numbering: Numbering
    _last: Laid | None = None
    _room: Ints = field(default_factory=lambda: np.zeros((0, vm.WIDTH), dtype=np.int64))

    def __post_init__(self) -> None:
        self._encoder = Encoder(self.book, self.numbering)
        self._stretches = Stretches(self.numbering)
        self._least = least_sizes(self.book)

    def code(self, program: Program) -> Code:
        """The program's tables; `NearbankError` names program, stream and node of the first fault.

        A program that differs from the last one only in where outermost loops begin takes over that one's tables.
        """
        if self._last and self._last.moved(program):
            return self._last.code
        self._last = None
        code = self._encoded(program)
        self._last = Laid.of(program, code, self._least)
        return code

    def _encoded(self, program: Program) -> Code:
        streams = [self._stream_pieces(program, number) for number in range(len(program.streams))]
        rows = self._laid([block for pieces in streams for block in (*(p.rows for p in pieces), _HALT)])
        ends = np.cumsum([sum(len(p.rows) for p in pieces) + 1 for pieces in streams])
        entries = np.array([0, *ends[:-1]])
        check_meetings(program, np.split(rows, ends[:-1]))
        self._stretches.mark(rows)
        commands = frozenset(name for pieces in streams for piece in pieces for name, _ in piece.commands)
        return Code(rows, tuple(entries.tolist()), commands)

    def _laid(self, blocks: list[Ints]) -> Ints:
        """All blocks end to end, in room that the next program takes over: fresh memory is what would cost time."""
        count = sum(map(len, blocks))
        if count > len(self._room):
            self._room = np.zeros((2 * count, vm.WIDTH), dtype=np.int64)
        return np.concatenate(blocks, out=self._room[:count])

    def _stream_pieces(self, program: Program, number: int) -> list[Piece]:
        check_channels(self.book, program, number)
        pieces: list[Piece] = []
        for place, node in enumerate(program.streams[number].body):
            try:
                known = self._encoder.knows(node)
                piece = self._encoder.piece(node, 0)
            except FaultError as fault:
                raise NearbankError(f"program {program.name}, stream {number}, node {place}: {fault}") from None
            pieces.append(piece)
            if not known:
                self._check_last(program, number, pieces)
        return pieces

    def _check_last(self, program: Program, number: int, pieces: list[Piece]) -> None:
        """Addresses of the newest node; one that is refused must be refused again when it comes again."""
        try:
            check_addresses(self.book, self._least, program, number, pieces)
        except NearbankError:
            self._encoder.forget(program.streams[number].body[len(pieces) - 1])
            raise


_HALT = blank(0)
_HALT[0, vm.OP] = vm.HALT

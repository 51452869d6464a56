"""The last program's code made that of the next, where the two differ only in where outermost loops begin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nearbank.sim import vm
from nearbank.sim.code import Code
from nearbank.sim.layout import Ints
from nearbank.sim.program import Loop, Program


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
class Laid:
    """The last program, what of it holds for others, and where its outermost loops are."""

    program: Program
    shape: tuple[object, ...]
    code: Code
    loops: list[_Outermost]

    @classmethod
    def of(cls, program: Program, code: Code) -> Laid:
        return cls(program, _shape(program), code, _outermost(program, code))

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

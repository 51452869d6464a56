"""The last program's code made that of the next, where the two differ only in where outermost loops begin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nearbank.sim import vm
from nearbank.sim.code import Code
from nearbank.sim.layout import Ints
from nearbank.sim.program import Loop, Program

_FAR = 1 << 32  # rounds, where no address moves


@dataclass(frozen=True, slots=True)
class _Outermost:
    """An outermost loop in the code: its first and last row, and where it may begin so that all addresses exist."""

    stream: int
    node: int
    begin: int
    end: int
    least_first: int
    most_first: int


@dataclass
class Laid:
    """The last program, what of it holds for others, and where its outermost loops are."""

    program: Program
    shape: tuple[object, ...]
    code: Code
    loops: list[_Outermost]

    @classmethod
    def of(cls, program: Program, code: Code, least: Ints) -> Laid:
        """`least`: banks, rows and columns that every command may address."""
        return cls(program, _shape(program), code, _outermost(program, code, least))

    def moved(self, program: Program) -> bool:
        """Make the code that of `program`; False, and the code is of no more use, where it cannot be."""
        if _shape(program) != self.shape:
            return False
        for loop in self.loops:
            before, after = (p.streams[loop.stream].body[loop.node] for p in (self.program, program))
            assert isinstance(before, Loop)
            assert isinstance(after, Loop)
            if before.first != after.first and not self._move(loop, after):
                return False
        self.program = program
        return True

    def _move(self, loop: _Outermost, node: Loop) -> bool:
        rows, first, end = self.code.rows, node.first, node.first + node.count
        if not rows[loop.begin, vm.MEETS] or not isinstance(first, int) or first < 0 or end >= 1 << 32:
            return False
        rows[loop.begin, vm.A], rows[loop.begin, vm.B], rows[loop.end, vm.A] = end, first, end
        return loop.least_first <= first <= loop.most_first


def _shape(program: Program) -> tuple[object, ...]:
    """What two programs have in common whose code differs only in where outermost loops begin."""
    return tuple(
        (s.channels, *((id(n.body), n.count) if isinstance(n, Loop) else id(n) for n in s.body))
        for s in program.streams
    )


def _outermost(program: Program, code: Code, least: Ints) -> list[_Outermost]:
    found = []
    for number, stream in enumerate(program.streams):
        at = code.entries[number]
        for place, node in enumerate(stream.body):
            if isinstance(node, Loop):
                begin, at = at, at + _length(code.rows, at)
                down, up = _room(code.rows[begin:at], least)
                found.append(_Outermost(number, place, begin, at - 1, node.first - down, node.first + up))
            else:
                at += 1
    return found


def _room(rows: Ints, least: Ints) -> tuple[int, int]:
    """How many rounds earlier and later the outermost loop around the rows may begin: (earlier, later)."""
    strides = rows[:, vm.BANK_STRIDES : vm.LOW : vm.MAX_DEPTH]
    below, above = rows[:, vm.LOW : vm.HIGH], least - 1 - rows[:, vm.HIGH : vm.STRETCH]
    rising, falling = strides > 0, strides < 0
    down = [*(below[rising] // strides[rising]), *(above[falling] // -strides[falling]), _FAR]
    up = [*(above[rising] // strides[rising]), *(below[falling] // -strides[falling]), _FAR]
    return int(min(down)), int(min(up))


def _length(rows: Ints, begin: int) -> int:
    """Rows of the outermost loop that begins there: up to the next end of a loop of its depth."""
    ends = (rows[begin:, vm.OP] == vm.END) & (rows[begin:, vm.DEPTH] == rows[begin, vm.DEPTH])
    return int(np.argmax(ends)) + 1

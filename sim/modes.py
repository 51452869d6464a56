"""Whether a program's commands fit the mode that the memory is in, found out before it is played.

What changes a mode is a command to a reserved row, so no timing is needed to know the mode: loops are walked until
the mode at their end comes again. The mode lives on from one program to the next.
"""

from __future__ import annotations

from collections.abc import Iterable

from nearbank.errors import NearbankError
from nearbank.sim.program import Command, Index, Loop, Node, Program
from nearbank.sim.rules import RuleBook
from nearbank.sim.standard import Modes


class ModeWalk:
    """The mode of every channel, from power-up on."""

    def __init__(self, book: RuleBook) -> None:
        self._book = book
        self._mode: dict[int, str] = {}

    def copy(self) -> ModeWalk:
        """The same, to go on from here again."""
        other = ModeWalk(self._book)
        other._mode.update(self._mode)
        return other

    def follow(self, program: Program, commands: frozenset[str]) -> None:
        """Walk one more program, which has these commands; `NearbankError` names the first that is out of its mode."""
        modes = self._book.standard.modes
        if modes is None or not commands & modes.commands:
            return
        for number, stream in enumerate(program.streams):
            after: dict[str, str] = {}
            for channel in stream.channels:
                before = self._mode.get(channel, modes.first)
                if before not in after:
                    after[before] = self._walked(program, number, stream.body, modes, before)
                self._mode[channel] = after[before]

    def _walked(self, program: Program, number: int, body: tuple[Node, ...], modes: Modes, mode: str) -> str:
        try:
            return _Walk(self._book, modes).body(body, mode, ())
        except NearbankError as error:
            raise NearbankError(f"program {program.name}, stream {number}: {error}") from None


class _Walk:
    """One walk through a stream. A body is walked once for each mode it begins in."""

    def __init__(self, book: RuleBook, modes: Modes) -> None:
        self.book, self.modes = book, modes
        self.known: dict[tuple[int, str], str] = {}

    def body(self, nodes: Iterable[Node], mode: str, counts: tuple[int, ...]) -> str:
        for node in nodes:
            if isinstance(node, Loop):
                mode = self.loop(node, mode, counts)
            elif isinstance(node, Command) and node.name in self.modes.commands:
                mode = self.command(node, mode, counts)
        return mode

    def loop(self, node: Loop, mode: str, counts: tuple[int, ...]) -> str:
        """The mode after all rounds; the modes at the rounds' beginnings repeat, as there are only so many."""
        key = id(node), mode
        if key not in self.known:
            seen = [mode]
            while len(seen) <= node.count:
                seen.append(self.body(node.body, seen[-1], (*counts, node.first + node.count)))
                if seen[-1] in seen[:-1]:
                    break
            self.known[key] = _continued(seen, node.count)
        return self.known[key]

    def command(self, node: Command, mode: str, counts: tuple[int, ...]) -> str:
        if not self.modes.allows(mode, node.name):
            raise NearbankError(self.modes.refusal(mode, node.name))
        for change in self.modes.changes:
            if change.mode == mode and change.command == node.name:
                low, high = _range(node.row, counts)
                if low < high and low <= change.row <= high:
                    raise NearbankError(
                        f"{node.name} moves over rows {low} to {high}; row {change.row} changes the mode, "
                        "expected rows beside it"
                    )
        bank = self.book.first_bank(node.name, node.bank.base)
        return self.modes.after(mode, node.name, bank, node.row.base)


def _continued(seen: list[str], count: int) -> str:
    """The state after `count` steps of a walk that was seen until a state came again."""
    if count < len(seen):
        return seen[count]
    first = seen.index(seen[-1])
    return seen[first + (count - first) % (len(seen) - 1 - first)]


def _range(index: Index, counts: tuple[int, ...]) -> tuple[int, int]:
    """Least and greatest value over the loops around."""
    moved = [stride * (count - 1) for stride, count in zip(index.strides, counts, strict=False)]
    return index.base + sum(min(m, 0) for m in moved), index.base + sum(max(m, 0) for m in moved)

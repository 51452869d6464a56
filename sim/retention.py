"""Rows that keep their data without refresh commands, because a run opens them often enough.

    uses = Uses(machine, loaded=[range(0, 9000)])
    for program, time_ps in steps:
        uses.play(program, time_ps)
    uses.longest_ps <= RETENTION_PS

To open a row is to read its cells and to write them back, which is all that a refresh does. So a program that opens
every row which holds data within the retention time needs no refresh commands (Smart Refresh: Ghosh and Lee, MICRO
2007; Refresh Triggered Computation: Jafri et al., arXiv 1910.06672). JEDEC's standards do not promise it: they ask for
a refresh command every tREFI, whatever else the memory does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine, Refresh
from nearbank.sim.program import Command, Index, Loop, Node, Program
from nearbank.sim.rules import rulebook
from nearbank.sim.standard import Effect

Ints = npt.NDArray[np.int64]
RETENTION_PS = 32 * 10**9  # JESD250 (GDDR6), JESD235 (HBM): every row within 32 ms; DDR4 has 64 ms up to 85 °C
POLICY = Refresh(policy="by_use", source="Smart Refresh (MICRO 2007); outside of what JEDEC promises")
_EMPTY = np.iinfo(np.int64).max  # holds nothing yet: whenever it is opened, nothing was lost


def kept_by_use(machine: Machine) -> Machine:
    """The machine without refresh commands, for programs that `Uses` has found to open their rows often enough."""
    return machine.model_copy(update={"refresh": POLICY})


@dataclass
class Uses:
    """When each row was opened last, step by step. A row is empty until it is opened, unless it was `loaded`.

    `longest_ps` is never below what lies between two openings of a row that holds data, or between the start and the
    first. It may be above: programs are not timed inside, so a row is taken to be opened at the begin of one step and
    at the end of the next; and one bank's opening is no refresh where the row holds data in others, too.
    """

    machine: Machine
    loaded: Iterable[range]
    longest_ps: int = 0
    now_ps: int = 0
    _since: Ints = field(init=False, repr=False)

    def __post_init__(self) -> None:
        organization = self.machine.organization
        self._since = np.full((organization.channels, organization.rows), _EMPTY, np.int64)
        for rows in self.loaded:
            self._since[:, rows.start : rows.stop] = 0

    def play(self, program: Program, time_ps: int) -> None:
        """One step that takes `time_ps`."""
        begin, self.now_ps = self.now_ps, self.now_ps + time_ps
        for stream in program.streams:
            for rows, everywhere in self._opened(stream.body):
                for channel in stream.channels:
                    since = self._since[channel]
                    self.longest_ps = max(self.longest_ps, self.now_ps - int(since[rows].min(initial=begin)))
                    renewed = rows if everywhere else rows[since[rows] == _EMPTY]
                    since[renewed] = begin

    def check(self) -> None:
        """`NearbankError` where a row that holds data may have lost it."""
        if self.longest_ps > RETENTION_PS:
            raise NearbankError(
                f"a row that holds data may stay closed for {self.longest_ps / 1e9:.1f} ms, but keeps it for "
                f"{RETENTION_PS / 1e9:.0f} ms without a refresh; keep the refresh commands (mapping auto)"
            )

    def _opened(self, body: tuple[Node, ...]) -> Iterator[tuple[Ints, bool]]:
        """(rows, whether in all banks) of every command that opens rows, in all rounds of its loops at once."""
        book = rulebook(self.machine)
        for command, rounds in _commands(body, ()):
            if book.specs[command.name].effect is Effect.OPENS:
                yield _values(command.row, rounds), book.reach[command.name] == book.banks


def _commands(body: tuple[Node, ...], rounds: tuple[range, ...]) -> Iterator[tuple[Command, tuple[range, ...]]]:
    """Every command once, with the rounds of the loops around it."""
    for node in body:
        if isinstance(node, Loop):
            yield from _commands(node.body, (*rounds, node.rounds))
        elif isinstance(node, Command):
            yield node, rounds


def _values(index: Index, rounds: tuple[range, ...]) -> Ints:
    """What an address is in all rounds; loops that do not change it are left out."""
    values = np.array([index.base], np.int64)
    for stride, counters in zip(index.strides, rounds, strict=False):
        if stride:
            values = (values[:, None] + stride * np.array(counters, np.int64)).ravel()
    return values

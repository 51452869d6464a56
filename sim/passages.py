"""Passages: long ways of all lanes through code inside a loop, over many meetings, which may be done again as a whole.

What a passage does is the same in every round of the loops around it: no bank depends on them, and all rows do in the
same way. Behind code of which that is not so, a passage begins at the second meeting with commands before it, when the
banks have forgotten that code. It ends at a later meeting of the same body. A loop that holds passages is in
none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby, pairwise
from operator import itemgetter

import numpy as np

from nearbank.sim import vm
from nearbank.sim.code import Code
from nearbank.sim.layout import Ints
from nearbank.sim.passage_texts import PassageTexts, said_by

LEAST = 7  # meetings in a passage that is worth keeping
_FAR = 1 << 60  # beyond all strides
Strides = (
    tuple[int, ...] | None
)  # how rows depend on the loops around; () where nothing has rows, None where they differ


@dataclass(frozen=True, slots=True)
class Meetings:
    """All meetings: their rows by stream, depths of their bodies, whether they end them; what lies before each.

    `banks` is the outermost loop that a bank depends on, `low` and `high` are the least and greatest stride of rows by
    each loop, over all streams.
    """

    rows: Ints
    levels: Ints
    ends: Ints
    banks: Ints
    low: Ints
    high: Ints

    def strides(self, level: int) -> list[Strides]:
        """Of the code before each meeting, by the loops around bodies of that level."""
        low, high = self.low[:, :level], self.high[:, :level]
        same = list(np.all((low == high) | (low > high), axis=1) & (self.banks >= level))
        rowed = list(np.any(low <= high, axis=1))
        found = zip(high.tolist(), rowed, same, strict=True)
        return [(tuple(each) if has else ()) if good else None for each, has, good in found]


@dataclass(frozen=True, slots=True)
class Passage:
    """From one meeting to another, by their numbers; how its rows depend on the loops around.

    `fresh`: the last program had not all of it.
    """

    first: int
    last: int
    strides: tuple[int, ...]
    fresh: bool = True


def through(code: Code, streams: Sequence[int], texts: PassageTexts) -> Ints:
    """The passages as the engine reads them, of lanes that play these streams; `texts` numbers them.

    For each row of code the place of the passage that begins there, or 0; then passages as `vm.P_NUMBER` and what
    follows it say. Empty where there is none.
    """
    meetings, said = meetings_of(code), said_by(code.rows)
    found = passages(meetings, texts.fresh(said, meetings.rows[streams[0]]))
    if not found:
        return np.zeros(0, dtype=np.int64)
    begin, width = len(code.rows), vm.P_ENDS + len(streams)
    table = np.zeros(begin + len(found) * width, dtype=np.int64)
    for k, passage in enumerate(found):
        at = begin + k * width
        table[meetings.rows[streams[0], passage.first]] = at
        ends = meetings.rows[list(streams)][:, [passage.first, passage.last]]
        table[at + vm.P_NUMBER], alike = texts.number(said, ends, passage.strides)
        table[at + vm.P_ROOM] = vm.JOINT_PASSAGE if not alike else vm.NEW_PASSAGE if passage.fresh else vm.OLD_PASSAGE
        table[at + vm.P_STRIDES : at + vm.P_STRIDES + len(passage.strides)] = passage.strides
        table[at + vm.P_ENDS : at + width] = ends[:, 1]
    return table


def passages(meetings: Meetings, fresh: Ints) -> list[Passage]:
    """All passages, those of the innermost loops first, cut where `fresh` code begins or ends.

    `fresh` says of the code before each meeting that the last program did not have it.
    """
    found: list[Passage] = []
    taken = np.zeros(len(meetings.levels), dtype=bool)
    for level in range(int(meetings.levels.max()), 0, -1):
        own = np.flatnonzero(meetings.levels == level)
        for run in list(_of_level(meetings, level, taken)):
            taken[run.first + 1 : run.last + 1] = True
            found += _cut(run, own[(own >= run.first) & (own <= run.last)].tolist(), fresh)
    return found


def _cut(run: Passage, own: list[int], fresh: Ints) -> list[Passage]:
    """A passage cut at those of its own meetings where fresh code begins or ends, into parts worth keeping."""
    steps = [(a, b, bool(fresh[a + 1 : b + 1].any())) for a, b in pairwise(own)]
    edges = [own[0]]
    for new, group in groupby(steps, key=itemgetter(2)):
        ends = [place for a, b, _ in group for place in (a, b)]
        if not new and ends[-1] - ends[0] >= LEAST:
            edges += [ends[0], ends[-1]]
    parts = [(a, b) for a, b in pairwise([*edges, own[-1]]) if b - a >= LEAST]
    return [replace(run, first=a, last=b, fresh=bool(fresh[a + 1 : b + 1].any())) for a, b in parts]


def _of_level(meetings: Meetings, level: int, taken: Ints) -> Iterator[Passage]:
    """Passages in bodies at one depth: runs of meetings with the same strides between them."""
    own = np.flatnonzero(meetings.levels == level).tolist()
    strides = meetings.strides(level)
    run: Passage | None = Passage(own[0], own[0], ()) if own else None
    for a, b in pairwise(own):
        apart = bool(meetings.ends[a]) or bool(taken[a + 1 : b + 1].any())
        between = None if apart else reduce(_both, strides[a + 1 : b + 1])
        joined = _both(run.strides, between) if run else None
        if run and joined is None and run.last - run.first >= LEAST:
            yield run
        if joined is not None:
            run = Passage(run.first if run else b, b, joined)
        else:
            run = Passage(b, b, ()) if apart or between else None
    if run and run.last - run.first >= LEAST:
        yield run


def _both(a: Strides, b: Strides) -> Strides:
    """The strides of two pieces of code together."""
    if a is None or b is None:
        return None
    return a or b if not a or not b or a == b else None


def meetings_of(code: Code) -> Meetings:
    """What the code says of its meetings; all streams hold the same."""
    rows, op = code.rows, code.rows[:, vm.OP]
    stops = np.flatnonzero((op >= vm.START) | ((op == vm.END) & (rows[:, vm.MEETS] != 0)))
    begins = np.concatenate([[0], stops[:-1] + 1])
    by_stream = stops.reshape(len(code.entries), -1)
    first = rows[by_stream[0]]
    ends = first[:, vm.OP] == vm.END
    banks, low, high = _dependences(rows)

    def of_all(function: np.ufunc, values: Ints) -> Ints:
        between = function.reduceat(values, begins)
        gathered: Ints = function.reduce(between.reshape(by_stream.shape + values.shape[1:]), axis=0)
        return gathered

    parts = of_all(np.minimum, banks), of_all(np.minimum, low), of_all(np.maximum, high)
    return Meetings(by_stream, first[:, vm.DEPTH] + ends, ends, *parts)


def _dependences(rows: Ints) -> tuple[Ints, Ints, Ints]:
    """Of every row: the outermost loop that its bank depends on, and the strides of its row as the least and greatest.

    Rows without a bank or without a row do not count in the least, nor in the greatest.
    """
    command = rows[:, vm.OP] == vm.COMMAND
    moved = (rows[:, vm.BANK_STRIDES : vm.ROW_STRIDES] != 0) & command[:, None]
    banks = np.where(moved.any(axis=1), np.argmax(moved, axis=1), vm.MAX_DEPTH)
    rowed = (command & (rows[:, vm.HAS_ROW] != 0))[:, None]
    strides = rows[:, vm.ROW_STRIDES : vm.COLUMN_STRIDES]
    return banks, np.where(rowed, strides, _FAR), np.where(rowed, strides, -_FAR)

"""The least cycles of outputs in rows: what the least of a mapping (`nearbank.mapping.least`) is added up from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from nearbank.mapping.target import Target
from nearbank.units import ceil_div


@dataclass(frozen=True, slots=True)
class Count:
    """Cycles of the busiest channel: MAC commands, changes of rows, sums waited for, vectors that nothing hides,
    K and V written, results that products wait for."""

    columns: float = 0.0
    rows: float = 0.0
    sums: float = 0.0
    vectors: float = 0.0
    writes: float = 0.0
    dependencies: float = 0.0

    def __add__(self, other: Count) -> Count:
        pairs = ((getattr(self, name), getattr(other, name)) for name in Count.__slots__)
        return Count(*(a + b for a, b in pairs))

    def times(self, factor: float) -> Count:
        return Count(*(getattr(self, name) * factor for name in Count.__slots__))

    @property
    def cycles(self) -> float:
        return self.columns + self.rows + self.sums + self.vectors + self.writes + self.dependencies


@lru_cache(maxsize=65536)
def outputs_least(outputs: int, columns: int, steps: int, target: Target) -> Count:
    """`outputs` of one chunk, of so many columns each.

    They fill a whole number of rows. A visit of a row hides one batch of reads, the one while it closes. With one
    accumulator, outputs that a row does not hold whole are at least two pieces; each piece is read before the next.
    """
    idle, fewest = target.row_change - 1, ceil_div(outputs * columns, target.columns)
    whole = target.columns // columns
    most = ceil_div(outputs, whole) if whole else fewest
    ways = [(visits, _waited(outputs, visits, whole, target)) for visits in {fewest, max(most, fewest)}]
    visits, sums = min(ways, key=lambda way: idle * way[0] + target.readout * way[1])
    least = Count(outputs * columns * steps, idle * visits, target.readout * sums)
    share = _rows_of_equal_fill(columns, target)
    return max(least, share.times(outputs) + Count(outputs * columns * steps), key=lambda count: count.cycles)


def _waited(outputs: int, visits: int, whole: int, target: Target) -> int:
    """Batches of sums read within rows, in so many visits of rows that hold at most `whole` outputs each."""
    cut = 2 * outputs - visits * (whole + 1) if target.accumulators == 1 and whole else 0
    return max(ceil_div(outputs, target.accumulators) - visits, cut, 0)


def _rows_of_equal_fill(columns: int, target: Target) -> Count:
    """One output's share of a row: rows with some columns in use hold pieces of at least so many outputs, and all but
    the last batch of them are read within the row."""
    filled = [n * columns for n in range(1, target.columns // columns + 1)]
    ways = []
    for used in (*filled, target.columns):
        reads = ceil_div(ceil_div(used, columns), target.accumulators) - 1
        ways.append(Count(rows=target.row_change - 1, sums=reads * target.readout).times(columns / used))
    return min(ways, key=lambda count: count.cycles)


@dataclass(frozen=True, slots=True)
class Vectors:
    """What sending a product's vectors costs.

    `burst`: bursts per column. `held`: columns that the buffer holds. `before`: cycles from the last MAC of the
    product before to the first burst (None: the results are there). `alone`: the same for a product of one chunk,
    where that differs. `turn`: cycles beside its bursts from a chunk's last MAC to the next one's first.
    `ahead`: bursts may be sent before the sums of the chunk before are read, and where the buffer has room for them
    before it is done.
    """

    burst: float
    held: int
    turn: int
    before: float | None
    alone: float | None
    ahead: bool = False

    def first(self, columns: int, total: int, target: Target) -> Count:
        """Of the first chunk, beyond a change of rows, which happens meanwhile."""
        idle, bursts = target.row_change - 1, int(columns * self.burst)
        waited = self.before if columns < total or self.alone is None else self.alone
        if waited is None:
            return Count(vectors=max(bursts + self.turn - idle, 0))
        return Count(vectors=max(bursts - idle, -waited), dependencies=waited)

    def later(self, columns: int, before: int, outputs: int, target: Target) -> float:
        """Of a chunk behind `outputs` of `before` columns: bursts beyond the change of rows between the two.

        Sent ahead, they find room in the buffer and changes of rows among those outputs; and an output that a row's end
        cuts frees its part there, which pays where more of the row is left than a read takes.
        """
        idle, bursts = target.row_change - 1, int(columns * self.burst)
        if not self.ahead:
            return max(bursts + self.turn - idle, 0)
        left = target.columns % before  # beside the outputs that a row holds whole
        cuts = ceil_div(before, target.columns) - 1 + (left > target.readout)
        within = max(ceil_div(outputs * before, target.columns) - 1, 0) * idle
        bursts -= min(int((self.held - before) * self.burst), within) + cuts * idle
        return max(bursts + self.turn - idle, 0) if bursts > 0 else 0


def product_least(outputs: int, columns: int, steps: int, vectors: Vectors, target: Target) -> Count:
    """Outputs of `columns` columns, cut in chunks in the quickest way: chunk after chunk, each after its vector."""
    widest = min(vectors.held, columns)
    each = [outputs_least(outputs, w, steps, target) if w else Count() for w in range(widest + 1)]
    chunks = quickest_chunks(outputs, columns, each, vectors, target)
    total = sum((each[w] for w in chunks), vectors.first(chunks[0], columns, target))
    later = sum(vectors.later(w, before, outputs, target) for before, w in pairwise(chunks))
    return total + Count(vectors=later)


def quickest_chunks(outputs: int, columns: int, each: list[Count], vectors: Vectors, target: Target) -> list[int]:
    """Widths of chunks. Time of the first `end` columns by the width of their last chunk, all ends in order."""
    cost, widest = np.array([count.cycles for count in each]), len(each) - 1
    later = np.zeros((widest + 1, widest + 1))
    for before in range(1, widest + 1):
        later[before, 1:] = [vectors.later(w, before, outputs, target) for w in range(1, widest + 1)]
    best: npt.NDArray[np.float64] = np.full((columns + 1, widest + 1), np.inf)
    came: npt.NDArray[np.int64] = np.zeros((columns + 1, widest + 1), np.int64)
    for end in range(1, columns + 1):
        widths = np.arange(1, min(widest, end) + 1)
        ways = best[end - widths] + later[:, widths].T
        came[end, widths] = ways.argmin(axis=1)
        best[end, widths] = cost[widths] + ways.min(axis=1)
        if end <= widest:
            best[end, end] = cost[end] + vectors.first(end, columns, target).cycles
    return _traced(best, came, columns)


def _traced(best: npt.NDArray[np.float64], came: npt.NDArray[np.int64], end: int) -> list[int]:
    widths: list[int] = []
    width = int(best[end].argmin())
    while end:
        widths.append(width)
        end, width = end - width, int(came[end, width])
    return widths[::-1]

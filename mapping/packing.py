"""How the outputs of a matrix lie in the rows of a bank: end to end over row boundaries, or a whole number per row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from math import gcd

from nearbank.units import ceil_div


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring columns of one row that belong to one output.

    `offset` is the first of them within the output, `last` says that the output ends here.
    """

    output: int
    offset: int
    column: int
    count: int
    last: bool

    @property
    def whole(self) -> bool:
        """True when the output begins and ends in this run."""
        return self.offset == 0 and self.last


@dataclass(frozen=True, slots=True)
class Packing:
    """Outputs of `columns` columns each in rows of `row_columns`.

    `crossing`: an output may begin in one row and end in the next, which fills every row; otherwise a row holds as
    many whole outputs as fit, and an output longer than a row begins a row.
    """

    columns: int
    row_columns: int
    crossing: bool

    @property
    def per_row(self) -> int:
        """Whole outputs in a row, 0 when one does not fit."""
        return self.row_columns // self.columns

    @property
    def period(self) -> tuple[int, int]:
        """(outputs, rows) after which the pattern begins anew at the start of a row."""
        if self.crossing:
            common = gcd(self.columns, self.row_columns)
            return self.row_columns // common, self.columns // common
        return (self.per_row, 1) if self.per_row else (1, ceil_div(self.columns, self.row_columns))

    def rows(self, outputs: int) -> int:
        """Rows that `outputs` take."""
        if self.crossing:
            return ceil_div(outputs * self.columns, self.row_columns)
        each, rows = self.period
        return ceil_div(outputs, each) * rows

    def place(self, output: int, offset: int = 0) -> tuple[int, int]:
        """(row, column) of a column of an output."""
        if self.crossing:
            return divmod(output * self.columns + offset, self.row_columns)
        each, rows = self.period
        row, column = divmod(output % each * self.columns + offset, self.row_columns)
        return output // each * rows + row, column

    def visits(self, outputs: int) -> list[tuple[int, list[Run]]]:
        """Every row of the first `outputs` outputs with its runs, in order."""
        runs = ((self.place(o, run.offset)[0], run) for o in range(outputs) for run in self._runs(o))
        return [(row, [run for _, run in group]) for row, group in groupby(runs, key=lambda pair: pair[0])]

    def _runs(self, output: int) -> Iterator[Run]:
        offset = 0
        while offset < self.columns:
            column = self.place(output, offset)[1]
            count = min(self.columns - offset, self.row_columns - column)
            yield Run(output, offset, column, count, offset + count == self.columns)
            offset += count

    def cycles_per_output(self, steps: int, row_change: int, readout: int, accumulators: int = 1) -> float:
        """Average cycles for one output: its MAC steps, its share of row changes, reads in the middle of a row."""
        outputs, rows = self.period
        visits = self.visits(outputs)
        inside = sum(ceil_div(len(runs), accumulators) - 1 for _, runs in visits)
        return self.columns * steps + (rows * row_change + inside * readout) / outputs


def best_packing(
    columns: int, row_columns: int, steps: int, row_change: int, readout: int, accumulators: int = 1
) -> Packing:
    """The quicker of the two; whole outputs per row when they are equal."""
    choices = [Packing(columns, row_columns, crossing) for crossing in (False, True)]
    return min(choices, key=lambda p: (p.cycles_per_output(steps, row_change, readout, accumulators), p.crossing))

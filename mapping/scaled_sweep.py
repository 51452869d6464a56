"""The loop nest of a product whose scales the banks apply: a column of scales, then the groups that it is for.

The last MAC command of a group is MACSC, which scales the group's sum and adds it to the accumulator: one result per
output and vector, whatever its groups. The unit holds one column of scales at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from nearbank.mapping.bank_scales import BankScales, Piece
from nearbank.mapping.packing import Run
from nearbank.mapping.sweep import Address, Send, Sweep, multiply, open_row, read_result, repeat
from nearbank.sim.program import Builder
from nearbank.sim.standard import LOAD_SCALES, MAC_AND_SCALE


def scaled_period(
    b: Builder, plan: Sweep, row: Address, outputs: int, result: Address, scales: Address, send: Send | None
) -> None:
    """Append one period of a packing, every row of `outputs` outputs from row address `row` on; no scales leave."""
    for i, (offset, runs) in enumerate(plan.packing.visits(outputs)):
        _visit(b, plan, row + offset, runs, result, None if i else send)


def _visit(b: Builder, plan: Sweep, row: Address, runs: list[Run], result: Address, send: Send | None) -> None:
    """One row: as many outputs as there are accumulators for, which are read; the last of them while the row closes."""
    open_row(b, row, send)
    held = plan.accumulators // plan.queries
    *before, last = [runs[i : i + held] for i in range(0, len(runs), held)]
    unit = _Unit(b, plan, row)
    for batch in before:
        unit.multiply(batch)
        _read(b, plan, batch, result)
    unit.multiply(last)
    b.command("PREA")
    _read(b, plan, last, result)


def _first_register(plan: Sweep, output: int) -> int:
    return output % (plan.accumulators // plan.queries) * plan.queries


def _read(b: Builder, plan: Sweep, batch: list[Run], result: Address) -> None:
    for run in batch:
        if run.last:
            with repeat(b, plan.queries) as q:
                to = result + run.output * plan.output_stride + q * plan.query_stride
                read_result(b, plan.bursts, to, _first_register(plan, run.output) + q)


@dataclass
class _Unit:
    """The commands for the units of an open row, and which column of its scales they hold."""

    b: Builder
    plan: Sweep
    row: Address
    loaded: int = -1

    def multiply(self, batch: list[Run]) -> None:
        for run in batch:
            for piece in self._scales.pieces(self.plan.packing, run):
                self._load(piece)
                self._piece(run, piece)

    @property
    def _scales(self) -> BankScales:
        assert self.plan.scaling is not None
        return self.plan.scaling

    def _load(self, piece: Piece) -> None:
        """The column of scales that a piece needs, where the units do not hold it."""
        if piece.index is None or piece.index // self._scales.per_column == self.loaded:
            return
        self.loaded = piece.index // self._scales.per_column
        self.b.command(LOAD_SCALES, row=self.row, column=self._scales.used + self.loaded)

    def _piece(self, run: Run, piece: Piece) -> None:
        b, plan = self.b, self.plan
        first = run.column + piece.offset - run.offset
        with repeat(b, piece.count) as g, repeat(b, plan.queries) as q:
            column = first + g * piece.columns
            vector = piece.offset * plan.steps + g * (piece.columns * plan.steps) + q * plan.query_vector
            register = _first_register(plan, run.output) + q
            if piece.index is None:
                multiply(b, plan, self.row, column, vector, piece.columns, register)
            else:
                scale = piece.index % self._scales.per_column + g
                self._group(column, vector, piece.columns, register, scale)

    def _group(self, column: Address, vector: Address, columns: int, register: Address, scale: Address) -> None:
        """The MAC commands of a group's end; the very last one scales."""
        b, plan = self.b, self.plan
        multiply(b, plan, self.row, column, vector, columns - 1, register)
        last, begun = column + (columns - 1), vector + (columns - 1) * plan.steps
        if plan.steps > 1:
            with repeat(b, plan.steps - 1) as s:
                where = {"row": self.row, "column": last, "data": begun + s}
                b.command("MACAB", **where, format=plan.format, register=register)
        where = {"row": self.row, "column": last, "data": begun + (plan.steps - 1)}
        b.command(MAC_AND_SCALE, **where, format=plan.format, register=register, scale=scale)

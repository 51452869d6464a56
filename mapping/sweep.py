"""The loop nest all matrix products share: open a row in every bank, multiply its columns, read the sums, close it.

`data` of a command says which burst of the ASIC's memory it sends or receives; each channel has bursts of its own,
and what the areas below hold depends on the label that the command counts to. `data` of a MAC command is the step of
the buffered vector that it multiplies with.

- `VECTOR`: input vectors; those of a matrix chunk by chunk, q by (slot, query), probabilities by (slot, query, block);
- `RESULT`: accumulators, by output; scores by (slot, query, record), context by (slot, query, block, dimension);
- `READ`: scales of a matrix; `CACHE_SCALES`: scale and offset of K and V, by (slot, burst);
- `KEYS`: K to write, by (slot, column); `VALUES`: V to write, by (slot, dimension, bank).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

from nearbank.mapping.packing import Packing, Run
from nearbank.sim.program import Builder, Index

VECTOR = 0
RESULT = 1 << 20
READ = 2 << 20
KEYS = 3 << 20
VALUES = 4 << 20
CACHE_SCALES = 5 << 20

Address = Index | int


@dataclass(frozen=True, slots=True)
class Sweep:
    """How the outputs of one region, weights of `format`, are multiplied and read.

    `used` columns of each of an output's `parts` equal parts are multiplied, from the part's column `skip` on, in
    `steps` MAC commands each. `part_vector` is the step of the vector where a part begins, per part;
    `queries` vectors, `query_vector` steps apart, are multiplied with the same columns. `bursts` read one result;
    results lie `output_stride` bursts apart from output to output, `part_stride` from part to part and
    `query_stride` from query to query. `scale_columns` columns behind the outputs of a row are read over the pins.
    """

    packing: Packing
    format: str
    steps: int
    bursts: int
    parts: int = 1
    used: int | None = None
    skip: int = 0
    part_vector: int = 0
    queries: int = 1
    query_vector: int = 0
    output_stride: int = 0
    part_stride: int = 0
    query_stride: int = 0
    scale_columns: int = 0
    banks: int = 0

    @property
    def part_columns(self) -> int:
        return self.packing.columns // self.parts

    @property
    def used_columns(self) -> int:
        return self.part_columns - self.skip if self.used is None else self.used

    @property
    def period_scales(self) -> int:
        """Bursts of scales read in one period of the packing."""
        return self.packing.period[1] * self.scale_columns * self.banks

    @property
    def simple(self) -> bool:
        """One part, one query, whole outputs: what may also cross rows."""
        whole = self.used_columns == self.packing.columns
        return self.parts == self.queries == 1 and whole and not self.scale_columns


def sweep(b: Builder, plan: Sweep, row: Address, outputs: int, result: Address, scales: Address = READ) -> None:
    """Append the commands that multiply and read the first `outputs` outputs from row address `row` on.

    `result` and `scales` are where their results and the scales in their rows go.
    """
    each, rows = plan.packing.period
    full, rest = divmod(outputs, each)
    with b.loop(full) as period:
        to = result + period * (each * plan.output_stride)
        _period(b, plan, row + period * rows, each, to, scales + period * plan.period_scales)
    rest_to = result + full * each * plan.output_stride
    _period(b, plan, row + full * rows, rest, rest_to, scales + full * plan.period_scales)


def _period(b: Builder, plan: Sweep, row: Address, outputs: int, result: Address, scales: Address) -> None:
    if not outputs:
        return
    if plan.simple:
        for offset, runs in plan.packing.visits(outputs):
            _visit(b, plan, row + offset, runs, result)
    else:
        _nested_visit(b, plan, row, outputs, result, scales)


@contextmanager
def repeat(b: Builder, count: int) -> Iterator[Address]:
    """A loop, or nothing when it has a single round."""
    if count == 1:
        yield 0
    else:
        with b.loop(count) as counter:
            yield counter


def multiply(b: Builder, plan: Sweep, row: Address, column: Address, vector: Address, columns: int) -> None:
    """MAC commands over neighbouring columns; `vector` is the step the first one multiplies with."""
    with repeat(b, columns) as c, repeat(b, plan.steps) as s:
        b.command("MACAB", row=row, column=column + c, data=vector + c * plan.steps + s, format=plan.format)


def read_result(b: Builder, bursts: int, result: Address) -> None:
    """Read the accumulators of all banks, which clears them."""
    for i in range(bursts):
        b.command("RDMAC", data=result + i)


def _visit(b: Builder, plan: Sweep, row: Address, runs: list[Run], result: Address) -> None:
    """One row of whole or cut outputs, in order. The last result of a row is read while the row closes."""
    b.command("ACT16", row=row)
    *before, last = runs
    for whole, group in groupby(before, key=lambda run: run.offset == 0):
        same = list(group)
        if whole and len(same) > 1:
            _whole_outputs(b, plan, row, same, result)
            continue
        for run in same:
            multiply(b, plan, row, run.column, run.offset * plan.steps, run.count)
            read_result(b, plan.bursts, result + run.output * plan.output_stride)
    multiply(b, plan, row, last.column, last.offset * plan.steps, last.count)
    b.command("PREA")
    if last.last:
        read_result(b, plan.bursts, result + last.output * plan.output_stride)


def _whole_outputs(b: Builder, plan: Sweep, row: Address, whole: list[Run], result: Address) -> None:
    first = whole[0]
    with b.loop(len(whole)) as i:
        multiply(b, plan, row, first.column + i * first.count, 0, first.count)
        read_result(b, plan.bursts, result + (first.output + i) * plan.output_stride)


def _nested_visit(b: Builder, plan: Sweep, row: Address, outputs: int, result: Address, scales: Address) -> None:
    """A row of whole outputs of several parts or queries, or of which not all columns are used."""
    alone = outputs * plan.parts * plan.queries == 1 and not plan.scale_columns
    b.command("ACT16", row=row)
    with repeat(b, outputs) as o, repeat(b, plan.parts) as p, repeat(b, plan.queries) as q:
        column = o * plan.packing.columns + p * plan.part_columns + plan.skip
        vector = p * plan.part_vector + q * plan.query_vector
        multiply(b, plan, row, column, vector, plan.used_columns)
        if not alone:
            target = result + o * plan.output_stride + p * plan.part_stride + q * plan.query_stride
            read_result(b, plan.bursts, target)
    with b.loop(plan.scale_columns) as c, b.loop(plan.banks) as bank:
        b.command("RD", bank=bank, row=row, column=plan.packing.row_columns + c, data=scales + c * plan.banks + bank)
    b.command("PREA")
    if alone:
        read_result(b, plan.bursts, result)


def send_vector(b: Builder, bursts: int, data: Address) -> None:
    """Write `bursts` bursts of an input vector from the ASIC to the global buffer."""
    with b.loop(bursts) as i:
        b.command("WRGB", column=i, data=data + i)

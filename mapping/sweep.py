"""The loop nest all matrix products share: open a row in every bank, multiply its columns, read the sums, close it.

`data` of a command says which burst of the ASIC's memory it sends or receives; each channel has bursts of its own,
and what the areas below hold depends on the label that the command counts to. `data` of a MAC command is the step of
the buffered vector that it multiplies with.

- `VECTOR`: input vectors; those of a matrix chunk by chunk, q by (slot, query), probabilities by (slot, query, block);
- `RESULT`: accumulators, by output; scores by (slot, query, record), context by (slot, query, block, dimension);
- `READ`: scales of a matrix; `CACHE_SCALES`: scale and offset of K and V, by (slot, burst);
- `KEYS`: K to write, by (slot, column); `VALUES`: V to write, by (slot, dimension, bank).

Of caches with a window (`nearbank.mapping.key_groups`): `KEY_SCALES`, by (slot, group, burst); `WINDOW` is added to all
areas of the window's own vectors, results and values. When a group leaves the window, `WINDOW_KEYS` and `WINDOW_VALUES`
are read, by (slot, record, column, bank) and (slot, dimension, column, bank), and its codes are written to `KEYS` and
`VALUES` in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from nearbank.mapping.bank_scales import BankScales
from nearbank.mapping.packing import Packing, Run
from nearbank.sim.program import Builder, Index

VECTOR = 0
RESULT = 1 << 20
READ = 2 << 20
KEYS = 3 << 20
VALUES = 4 << 20
CACHE_SCALES = 5 << 20
KEY_SCALES = 6 << 20
WINDOW_KEYS = 7 << 20
WINDOW_VALUES = 8 << 20
WINDOW = 16 << 20

Address = Index | int
Send = Callable[[], None]
# (builder, sweep, row, outputs, result, scales, send)
Period = Callable[[Builder, "Sweep", Address, int, Address, Address, Send | None], None]


@dataclass(frozen=True, slots=True)
class Sweep:
    """How the outputs of one region, weights of `format`, are multiplied and read.

    `used` columns of each of an output's `parts` equal parts are multiplied, from the part's column `skip` on, in
    `steps` MAC commands each. `part_vector` is the step of the vector where a part begins, per part;
    `queries` vectors, `query_vector` steps apart, are multiplied with the same columns. `bursts` read one result;
    results lie `output_stride` bursts apart from output to output, `part_stride` from part to part and
    `query_stride` from query to query. `scale_columns` columns behind the outputs of a row are read over the pins.
    With several `accumulators` as many results wait in the bank before they are read. `period` appends the outputs of
    one period of the packing where they are no plain sums: with `scaling` the banks apply the scales of groups.
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
    accumulators: int = 1
    scaling: BankScales | None = None
    period: Period | None = None

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


def sweep(
    b: Builder,
    plan: Sweep,
    row: Address,
    outputs: int,
    result: Address,
    scales: Address = READ,
    send: Send | None = None,
) -> None:
    """Append the commands that multiply and read the first `outputs` outputs from row address `row` on.

    `result` and `scales` are where their results and the scales in their rows go. `send` appends what makes the
    vector ready once the first row has begun to open.
    """
    one = plan.period or _period
    each, rows = plan.packing.period
    full, rest = divmod(outputs, each)
    apart = int(send is not None and full > 0)
    if apart:
        one(b, plan, row, each, result, scales, send)
    b.again(
        (plan, row, full, apart, result, scales), partial(_whole_periods, b, plan, row, full, apart, result, scales)
    )
    rest_to = result + full * each * plan.output_stride
    last_send = None if apart else send
    one(b, plan, row + full * rows, rest, rest_to, scales + full * plan.period_scales, last_send)


def _whole_periods(
    b: Builder, plan: Sweep, row: Address, full: int, begin: int, result: Address, scales: Address
) -> None:
    """Periods [begin, full) of the packing."""
    each, rows = plan.packing.period
    with repeat(b, full - begin) as i:
        at = i + begin
        to = result + at * (each * plan.output_stride)
        (plan.period or _period)(b, plan, row + at * rows, each, to, scales + at * plan.period_scales, None)


def _period(
    b: Builder, plan: Sweep, row: Address, outputs: int, result: Address, scales: Address, send: Send | None
) -> None:
    if not outputs:
        return
    if plan.simple:
        for i, (offset, runs) in enumerate(plan.packing.visits(outputs)):
            _visit(b, plan, row + offset, runs, result, None if i else send)
    else:
        _nested_visit(b, plan, row, outputs, result, scales, send)


def open_row(b: Builder, row: Address, send: Send | None) -> None:
    """Open a row in every bank, and append what makes the vector ready meanwhile."""
    b.command("ACT16", row=row)
    if send:
        send()


@contextmanager
def repeat(b: Builder, count: int) -> Iterator[Address]:
    """A loop, or nothing when it has a single round."""
    if count == 1:
        yield 0
    else:
        with b.loop(count) as counter:
            yield counter


def multiply(
    b: Builder, plan: Sweep, row: Address, column: Address, vector: Address, columns: int, register: Address = 0
) -> None:
    """MAC commands over neighbouring columns; `vector` is the step the first one multiplies with."""
    with repeat(b, columns) as c, repeat(b, plan.steps) as s:
        step = vector + c * plan.steps + s
        b.command("MACAB", row=row, column=column + c, data=step, format=plan.format, register=register)


def read_result(b: Builder, bursts: int, result: Address, register: Address = 0) -> None:
    """Read one accumulator of all banks, which clears it."""
    for i in range(bursts):
        b.command("RDMAC", data=result + i, register=register)


def _visit(b: Builder, plan: Sweep, row: Address, runs: list[Run], result: Address, send: Send | None) -> None:
    """One row of whole or cut outputs, in order, read a batch at a time; the last one while the row closes."""
    open_row(b, row, send)
    each = plan.accumulators
    *before, last = [runs[i : i + each] for i in range(0, len(runs), each)]
    for whole, group in groupby(before, key=lambda batch: all(run.whole for run in batch)):
        same = list(group)
        if whole:
            with b.loop(len(same)) as i:
                _multiply_batch(b, plan, row, same[0], i * each)
                _read_batch(b, plan, same[0], result, i * each)
            continue
        for batch in same:
            _multiply_batch(b, plan, row, batch)
            _read_batch(b, plan, batch, result)
    _multiply_batch(b, plan, row, last)
    b.command("PREA")
    _read_batch(b, plan, last, result)


def _multiply_batch(b: Builder, plan: Sweep, row: Address, batch: list[Run], shift: Address = 0) -> None:
    """As many outputs as there are accumulators; `shift` whole outputs after those that `batch` names."""
    for same in _stretches(batch, plan.accumulators):
        first = same[0]
        with repeat(b, len(same)) as i:
            column = first.column + (i + shift) * first.count
            register = first.output % plan.accumulators + i
            multiply(b, plan, row, column, first.offset * plan.steps, first.count, register)


def _read_batch(b: Builder, plan: Sweep, batch: list[Run], result: Address, shift: Address = 0) -> None:
    """Read the outputs that end in a batch; one that the row's end cuts stays in its accumulator."""
    for same in _stretches([run for run in batch if run.last], plan.accumulators):
        first = same[0]
        with repeat(b, len(same)) as i:
            to = result + (first.output + i + shift) * plan.output_stride
            read_result(b, plan.bursts, to, first.output % plan.accumulators + i)


def _stretches(batch: list[Run], accumulators: int) -> list[list[Run]]:
    """Neighbouring whole outputs whose accumulators follow each other; cut ones alone."""
    found: list[list[Run]] = []
    for run in batch:
        if found and run.whole and found[-1][-1].whole and run.output % accumulators:
            found[-1].append(run)
        else:
            found.append([run])
    return found


def _nested_visit(
    b: Builder, plan: Sweep, row: Address, outputs: int, result: Address, scales: Address, send: Send | None
) -> None:
    """A row of whole outputs of several parts or queries, or of which not all columns are used."""
    each = plan.parts * plan.queries
    held = min(plan.accumulators // each, outputs)
    if held < 1 or (held * each == 1 and outputs > 1):
        _nested_one_by_one(b, plan, row, outputs, result, scales, send)
        return
    open_row(b, row, send)
    before = (outputs - 1) // held
    with repeat(b, before) as batch:
        _nested_batch(b, plan, row, batch * held, held)
        _read_nested_batch(b, plan, batch * held, held, result)
    rest = outputs - before * held
    _nested_batch(b, plan, row, before * held, rest)
    _read_scale_columns(b, plan, row, scales)
    b.command("PREA")
    _read_nested_batch(b, plan, before * held, rest, result)


def _nested_batch(b: Builder, plan: Sweep, row: Address, first: Address, outputs: int) -> None:
    with repeat(b, outputs) as o, repeat(b, plan.parts) as p, repeat(b, plan.queries) as q:
        column = (first + o) * plan.packing.columns + p * plan.part_columns + plan.skip
        register = (o * plan.parts + p) * plan.queries + q
        vector = p * plan.part_vector + q * plan.query_vector
        multiply(b, plan, row, column, vector, plan.used_columns, register)


def _read_nested_batch(b: Builder, plan: Sweep, first: Address, outputs: int, result: Address) -> None:
    with repeat(b, outputs) as o, repeat(b, plan.parts) as p, repeat(b, plan.queries) as q:
        to = result + (first + o) * plan.output_stride + p * plan.part_stride + q * plan.query_stride
        read_result(b, plan.bursts, to, (o * plan.parts + p) * plan.queries + q)


def _nested_one_by_one(
    b: Builder, plan: Sweep, row: Address, outputs: int, result: Address, scales: Address, send: Send | None
) -> None:
    """The same with one accumulator, or too few for two outputs: every result is read at once."""
    open_row(b, row, send)
    with repeat(b, outputs) as o, repeat(b, plan.parts) as p, repeat(b, plan.queries) as q:
        column = o * plan.packing.columns + p * plan.part_columns + plan.skip
        multiply(b, plan, row, column, p * plan.part_vector + q * plan.query_vector, plan.used_columns)
        to = result + o * plan.output_stride + p * plan.part_stride + q * plan.query_stride
        read_result(b, plan.bursts, to)
    _read_scale_columns(b, plan, row, scales)
    b.command("PREA")


def _read_scale_columns(b: Builder, plan: Sweep, row: Address, scales: Address) -> None:
    with b.loop(plan.scale_columns) as c, b.loop(plan.banks) as bank:
        b.command("RD", bank=bank, row=row, column=plan.packing.row_columns + c, data=scales + c * plan.banks + bank)


def send_vector(b: Builder, bursts: int, data: Address, to: Address = 0) -> None:
    """Write `bursts` bursts of an input vector from the ASIC to the global buffer, from its burst `to` on."""
    with b.loop(bursts) as i:
        b.command("WRGB", column=to + i, data=data + i)

"""A matrix times one vector: chunk by chunk, the vector into the global buffer, every row once, sums to the ASIC.

The ASIC adds a chunk's results while the next chunk runs. Those of the last chunk are handed over in pieces, so that
the ASIC is nearly done when the banks are; an activation that follows is computed piece by piece with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nearbank.mapping import asic
from nearbank.mapping.asic import Work
from nearbank.mapping.matrix_placement import Chunks, MatrixPlacement
from nearbank.mapping.sweep import READ, RESULT, VECTOR, Address, Sweep, send_vector, sweep
from nearbank.mapping.target import Target
from nearbank.sim.program import Builder, Mark, Start, Wait

# Hand-overs of the last chunk: more would hide more of the ASIC's work, but make longer programs.
PIECES = 16

Rows = Callable[[int], Address]


@dataclass(frozen=True, slots=True)
class Follow:
    """A job of the ASIC that can begin with part of a matrix product's results: its name and work per value."""

    job: str
    work: Callable[[int], Work]


def label_of(name: str) -> str:
    """What time spent on the matrix counts towards: the last part of its name, such as "qkv"."""
    return name.rsplit(".", 1)[-1]


def matmul(
    b: Builder, matrix: MatrixPlacement, target: Target, channel: int, rows: Rows, follow: Follow | None
) -> None:
    """Append one GEMV for one channel. `rows` turns a row of layer 0 into that of the current layer."""
    label = label_of(matrix.name)
    if matrix.scales:
        b.add(Mark("scales"))
        _read_scales(b, matrix, target, rows)
        b.add(Mark(label))
    b.add(Wait("asic"))
    b.add(Mark(label))
    outputs = _Outputs.of(matrix, target, channel)
    *before, last = matrix.chunks
    for chunks in before:
        _chunks(b, matrix, chunks, chunks.count, outputs, target, rows)
    _chunks(b, matrix, last, last.count - 1, outputs, target, rows)
    _last_chunk(b, matrix, last, outputs, target, rows, follow)


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Outputs in each bank: of this channel, and the least and most of any channel."""

    here: int
    least: int
    most: int

    @classmethod
    def of(cls, matrix: MatrixPlacement, target: Target, channel: int) -> _Outputs:
        first, last = (target.outputs_of(c, matrix.n) for c in (0, target.channels - 1))
        return cls(target.outputs_of(channel, matrix.n), last, first)


def _read_scales(b: Builder, matrix: MatrixPlacement, target: Target, rows: Rows) -> None:
    """Read the scales of all outputs over the pins, while the ASIC may still be busy."""
    assert matrix.scales is not None
    scale_bytes = matrix.scales.data_bytes // matrix.n
    bursts = target.bursts(target.outputs_of(0, matrix.n) * target.banks * scale_bytes)
    read_rows(b, target, rows(matrix.scales.first_row), bursts, READ)


def read_rows(b: Builder, target: Target, row: Address, bursts: int, data: Address) -> None:
    """Read `bursts` bursts that are dealt out over the banks, then columns, then rows, from row address `row` on."""
    columns = -(-bursts // target.banks)
    full, rest = divmod(columns, target.columns)
    with b.loop(full) as r:
        _read_columns(b, target, row + r, target.columns, data + r * (target.columns * target.banks))
    if rest:
        _read_columns(b, target, row + full, rest, data + full * target.columns * target.banks)


def _read_columns(b: Builder, target: Target, row: Address, columns: int, data: Address) -> None:
    b.command("ACT16", row=row)
    with b.loop(columns) as c, b.loop(target.banks) as bank:
        b.command("RD", bank=bank, row=row, column=c, data=data + c * target.banks + bank)
    b.command("PREA")


def _sweep_of(matrix: MatrixPlacement, chunks: Chunks, target: Target) -> Sweep:
    steps, bursts = chunks.steps(matrix.use), target.read_bursts
    return Sweep(
        chunks.packing,
        matrix.use.mac_format,
        steps,
        bursts,
        parts=chunks.parts,
        part_vector=chunks.packing.columns // chunks.parts * steps,
        output_stride=chunks.parts * bursts,
        part_stride=bursts,
        scale_columns=chunks.scale_columns,
        banks=target.banks,
    )


def _send(b: Builder, matrix: MatrixPlacement, chunks: Chunks, first: Address, target: Target) -> None:
    """The vector of a chunk, with zeros up to the last lane of the last column, where padded weights lie."""
    padded = chunks.packing.columns * matrix.use.multiplied(chunks.steps(matrix.use))
    send_vector(b, target.bursts(padded * matrix.input_bytes), VECTOR + first)


def _chunks(
    b: Builder,
    matrix: MatrixPlacement,
    chunks: Chunks,
    count: int,
    outputs: _Outputs,
    target: Target,
    rows: Rows,
) -> None:
    """`count` equal chunks, each handed to the ASIC as a whole."""
    first = target.bursts(chunks.first * matrix.input_bytes)
    stride = target.bursts(chunks.width * matrix.input_bytes)
    with b.loop(count) as chunk:
        if outputs.here:
            _send(b, matrix, chunks, first + chunk * stride, target)
            row = rows(chunks.first_row) + chunk * chunks.rows
            sweep(b, _sweep_of(matrix, chunks, target), row, outputs.here, RESULT)
        work = _sum_work(matrix, chunks, outputs.most * target.banks * target.channels)
        b.add(Start("asic", f"sum {label_of(matrix.name)}", target.asic.time_ps(work)))


def _sum_work(matrix: MatrixPlacement, chunks: Chunks, results: int) -> Work:
    """What the ASIC does with the results of one chunk."""
    if chunks.scale_columns:
        return asic.group_sum_work(results, chunks.parts, zeros=True)
    return asic.partial_sum_work(results, scaled=matrix.input_format == "int8")


def _last_chunk(
    b: Builder,
    matrix: MatrixPlacement,
    chunks: Chunks,
    outputs: _Outputs,
    target: Target,
    rows: Rows,
    follow: Follow | None,
) -> None:
    """The last chunk in pieces of whole row periods; every channel starts the same jobs."""
    done = chunks.count - 1
    first = target.bursts(chunks.first * matrix.input_bytes) + done * target.bursts(chunks.width * matrix.input_bytes)
    row = rows(chunks.first_row + done * chunks.rows)
    plan = _sweep_of(matrix, chunks, target)
    each, period_rows = chunks.packing.period
    periods = max(outputs.least // each // PIECES, 1)
    size = periods * each
    pieces = outputs.least // size
    if outputs.here:
        _send(b, matrix, chunks, first, target)
    with b.loop(pieces) as i:
        result = RESULT + i * (size * plan.output_stride)
        scales = READ + i * (periods * plan.period_scales)
        sweep(b, plan, row + i * (periods * period_rows), size, result, scales)
        _hand_over(b, matrix, chunks, size, target, follow)
    if outputs.most > pieces * size:
        to = RESULT + pieces * size * plan.output_stride
        left = READ + pieces * periods * plan.period_scales
        sweep(b, plan, row + pieces * periods * period_rows, outputs.here - pieces * size, to, left)
        _hand_over(b, matrix, chunks, outputs.most - pieces * size, target, follow)


def _hand_over(
    b: Builder, matrix: MatrixPlacement, chunks: Chunks, outputs: int, target: Target, follow: Follow | None
) -> None:
    results = min(outputs * target.banks * target.channels, matrix.n)
    work = _sum_work(matrix, chunks, results)
    b.add(Start("asic", f"sum {label_of(matrix.name)}", target.asic.time_ps(work)))
    if follow:
        b.add(Start("asic", follow.job, target.asic.time_ps(follow.work(results))))

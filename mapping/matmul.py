"""A matrix times a vector, or several: chunk by chunk into the global buffer, every row once, sums to the ASIC.

The ASIC adds a chunk's results while the next chunk runs. Those of the last chunk are handed over in pieces, so that
the ASIC is nearly done when the banks are; element-wise work that follows is done piece by piece with them. A slow
ASIC falls behind: what the next matrix needs last is then computed beside that matrix's first chunks (`Feed`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import gcd, lcm

from nearbank.mapping import asic
from nearbank.mapping.asic import Work
from nearbank.mapping.matrix_placement import Chunks, MatrixPlacement
from nearbank.mapping.scaled_sweep import scaled_period
from nearbank.mapping.sweep import READ, RESULT, VECTOR, Address, Send, Sweep, repeat, send_vector, sweep
from nearbank.mapping.target import Target
from nearbank.sim.program import Builder, Mark, Start, Wait
from nearbank.units import ceil_div

Rows = Callable[[int], Address]


@dataclass(frozen=True, slots=True)
class Follow:
    """A job of the ASIC that can begin with part of a matrix product's results: its name and work per value.

    `needed` of the values must be queued when the product ends; None: all.
    """

    job: str
    work: Callable[[int], Work]
    needed: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Outputs [first, end) of every bank; both lie where rows begin, unless `end` is the last."""

    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Feed:
    """A matrix's input that the ASIC has not finished: its job, and how many values are queued already."""

    follow: Follow
    queued: int


def label_of(name: str) -> str:
    """What time spent on the matrix counts towards: the last part of its name, such as "qkv"."""
    return name.rsplit(".", 1)[-1]


def matmul(
    b: Builder,
    matrix: MatrixPlacement,
    target: Target,
    channel: int,
    rows: Rows,
    follow: Follow | None,
    feed: Feed | None = None,
    part: Part | None = None,
    vectors: int = 1,
) -> int:
    """Append one product for one channel; returns how many results have their `follow` queued.

    `rows` turns a row of layer 0 into that of the current layer. With `feed`, the vector is finished chunk by chunk;
    with `part`, only some of the outputs are computed. Several `vectors` are multiplied with each open row, one after
    the other, in the arithmetic of as many products; `follow` is work for all of them.
    """
    parts = scale_parts(matrix, target) if part is None and feed is None else ()
    if len(parts) > 1:
        for each in parts:
            matmul(b, matrix, target, channel, rows, follow, part=each, vectors=vectors)
        return matrix.n
    label = label_of(matrix.name)
    if matrix.scales:
        b.add(Mark("scales"))
        _read_scales(b, matrix, target, rows, part)
        b.add(Mark(label))
    outputs = _Outputs.of(matrix, target, channel, part, vectors)
    waits = part is None or part.first == 0

    def begin() -> None:
        if waits:
            b.add(Wait("asic"))
        b.add(Mark(label))

    early = target.choices.early_rows and not feed and outputs.least > 0
    if not early:
        begin()
    first = begin if early else None
    last = matrix.chunks[-1]
    if feed:
        _fed_chunks(b, matrix, outputs, target, rows, feed)
    else:
        for chunks in matrix.chunks:
            count = chunks.count - (chunks is last)
            _chunks(b, matrix, chunks, count, outputs, target, rows, first)
            first = None if count else first
    return _last_chunk(b, matrix, last, outputs, target, rows, follow, first)


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Outputs in each bank: of this channel, and the least and most of any channel; the first of them is `first`.

    Each is computed for so many `vectors`.
    """

    here: int
    least: int
    most: int
    first: int
    vectors: int

    @classmethod
    def of(cls, matrix: MatrixPlacement, target: Target, channel: int, part: Part | None, vectors: int) -> _Outputs:
        counts = [matrix.outputs_of(c, target) for c in (channel, target.channels - 1, 0)]
        part = part or Part(0, counts[2])
        here, least, most = (max(min(count, part.end) - part.first, 0) for count in counts)
        return cls(here, least, most, part.first, vectors)

    def row(self, chunks: Chunks) -> int:
        """The row of a chunk where the first output lies."""
        each, rows = chunks.packing.period
        return self.first // each * rows


def part_unit(matrix: MatrixPlacement) -> int:
    """Outputs of a bank after which every chunk begins a new row: where a matrix can be cut in parts."""
    return lcm(*(chunks.packing.period[0] for chunks in matrix.chunks))


def _scale_bytes(matrix: MatrixPlacement) -> int:
    """Bytes of one output's scale, 0 where rows have none."""
    return matrix.scales.data_bytes // matrix.n if matrix.scales else 0


def scale_parts(matrix: MatrixPlacement, target: Target) -> tuple[Part, ...]:
    """All outputs, in parts whose scales per row take about a quarter of the ASIC's memory at most.

    Parts begin where rows of weights do and where whole columns of scales do.
    """
    outputs, each = target.outputs_of(0, matrix.n), target.banks * _scale_bytes(matrix)
    if not each:
        return (Part(0, outputs),)
    column = target.banks * target.column_bytes
    unit = lcm(part_unit(matrix), column // gcd(each, column))
    size = max(target.asic.sram_bytes // 4 // (each * target.channels) // unit, 1) * unit
    return tuple(Part(first, min(first + size, outputs)) for first in range(0, outputs, size))


def held_scale_bytes(matrix: MatrixPlacement, target: Target) -> int:
    """Bytes of scales per row that the ASIC holds at once."""
    most = max(part.end - part.first for part in scale_parts(matrix, target))
    return most * target.banks * target.channels * _scale_bytes(matrix)


def _read_scales(b: Builder, matrix: MatrixPlacement, target: Target, rows: Rows, part: Part | None) -> None:
    """Read the scales of all outputs, or a part of them, over the pins, while the ASIC may still be busy."""
    assert matrix.scales is not None
    part = part or Part(0, target.outputs_of(0, matrix.n))
    each, first_row = target.banks * _scale_bytes(matrix), rows(matrix.scales.first_row)
    if part.first == 0:
        read_rows(b, target, first_row, target.bursts(part.end * each), READ)
        return
    column = target.banks * target.column_bytes
    begin, end = part.first * each // column, ceil_div(part.end * each, column)
    for row in range(begin // target.columns, ceil_div(end, target.columns)):
        first, last = max(begin - row * target.columns, 0), min(end - row * target.columns, target.columns)
        data = READ + (row * target.columns + first) * target.banks
        _read_columns(b, target, first_row + row, last - first, data, first)


def read_rows(b: Builder, target: Target, row: Address, bursts: int, data: Address) -> None:
    """Read `bursts` bursts that are dealt out over the banks, then columns, then rows, from row address `row` on."""
    columns = -(-bursts // target.banks)
    full, rest = divmod(columns, target.columns)
    with b.loop(full) as r:
        _read_columns(b, target, row + r, target.columns, data + r * (target.columns * target.banks))
    if rest:
        _read_columns(b, target, row + full, rest, data + full * target.columns * target.banks)


def _read_columns(b: Builder, target: Target, row: Address, columns: int, data: Address, first: int = 0) -> None:
    b.command("ACT16", row=row)
    with b.loop(columns) as c, b.loop(target.banks) as bank:
        b.command("RD", bank=bank, row=row, column=c + first, data=data + c * target.banks + bank)
    b.command("PREA")


def vector_steps(matrix: MatrixPlacement, chunks: Chunks, target: Target) -> int:
    """MAC steps from one vector of a chunk to the next in the global buffer: whole bursts."""
    use, burst = matrix.use, 8 * target.column_bytes
    places = chunks.packing.columns * (chunks.steps(use) // use.serial)
    unit = burst // gcd(use.lanes * matrix.input_bits, burst)
    return ceil_div(places, unit) * unit * use.serial


def result_bursts(matrix: MatrixPlacement, chunks: Chunks, target: Target) -> int:
    """Bursts of all results of one vector, after which those of the next begin."""
    return matrix.outputs_of(0, target) * chunks.parts * target.read_bursts


def all_vector_bursts(matrix: MatrixPlacement, target: Target) -> int:
    """Bursts of one vector in the ASIC's memory, chunk after chunk, and room for what fills the last column."""
    filled = matrix.chunks[-1].packing.columns * matrix.use.values
    held = sum(c.count * target.vector_bursts(c.width, matrix.input_bits) for c in matrix.chunks)
    return held + target.vector_bursts(filled, matrix.input_bits)


def _sweep_of(matrix: MatrixPlacement, chunks: Chunks, target: Target, vectors: int) -> Sweep:
    steps, bursts = chunks.steps(matrix.use), target.read_bursts
    return Sweep(
        chunks.packing,
        matrix.use.mac_format,
        steps,
        bursts,
        parts=chunks.parts,
        part_vector=chunks.packing.columns // chunks.parts * steps,
        queries=vectors,
        query_vector=vector_steps(matrix, chunks, target),
        query_stride=result_bursts(matrix, chunks, target),
        output_stride=chunks.parts * bursts,
        part_stride=bursts,
        scale_columns=chunks.scale_columns,
        banks=target.banks,
        accumulators=target.accumulators,
        scaling=chunks.bank,
        period=scaled_period if chunks.bank else None,
    )


def _send(b: Builder, matrix: MatrixPlacement, chunks: Chunks, first: Address, target: Target, vectors: int) -> None:
    """The vectors of a chunk, with zeros up to the last lane of the last column, where padded weights lie."""
    padded = chunks.packing.columns * matrix.use.multiplied(chunks.steps(matrix.use))
    apart = target.vector_bursts(
        vector_steps(matrix, chunks, target) // matrix.use.serial * matrix.use.lanes, matrix.input_bits
    )
    with repeat(b, vectors) as v:
        data = VECTOR + first + v * all_vector_bursts(matrix, target)
        send_vector(b, target.vector_bursts(padded, matrix.input_bits), data, v * apart)


def _chunks(
    b: Builder,
    matrix: MatrixPlacement,
    chunks: Chunks,
    count: int,
    outputs: _Outputs,
    target: Target,
    rows: Rows,
    begin: Send | None,
) -> None:
    """`count` equal chunks, each handed to the ASIC as a whole; the first row is open when `begin` is appended."""
    apart = int(begin is not None and count > 0)
    if apart:
        _chunk(b, matrix, chunks, 0, outputs, target, rows, begin)
        _sum(b, matrix, chunks, outputs, target)
    with repeat(b, count - apart) as i:
        _chunk(b, matrix, chunks, i + apart, outputs, target, rows)
        _sum(b, matrix, chunks, outputs, target)


def _chunk(
    b: Builder,
    matrix: MatrixPlacement,
    chunks: Chunks,
    chunk: Address,
    outputs: _Outputs,
    target: Target,
    rows: Rows,
    begin: Send | None = None,
) -> None:
    if not outputs.here:
        return
    first = target.vector_bursts(chunks.first, matrix.input_bits)
    stride = target.vector_bursts(chunks.width, matrix.input_bits)
    send = _sender(b, matrix, chunks, first + chunk * stride, target, outputs.vectors, begin)
    plan = _sweep_of(matrix, chunks, target, outputs.vectors)
    row = rows(chunks.first_row + outputs.row(chunks)) + chunk * chunks.rows
    result = RESULT + outputs.first * plan.output_stride
    if target.choices.early_rows:
        sweep(b, plan, row, outputs.here, result, send=send)
    else:
        send()
        sweep(b, plan, row, outputs.here, result)


def _sender(
    b: Builder,
    matrix: MatrixPlacement,
    chunks: Chunks,
    first: Address,
    target: Target,
    vectors: int,
    begin: Send | None,
) -> Send:
    """What appends the vectors of a chunk, after `begin`."""

    def send() -> None:
        if begin:
            begin()
        _send(b, matrix, chunks, first, target, vectors)

    return send


def _sum(b: Builder, matrix: MatrixPlacement, chunks: Chunks, outputs: _Outputs, target: Target) -> None:
    work = _sum_work(matrix, chunks, outputs.most * target.banks * target.channels * outputs.vectors)
    b.add(Start("asic", f"sum {label_of(matrix.name)}", target.asic.time_ps(work.streamed)))


def _fed_chunks(b: Builder, matrix: MatrixPlacement, outputs: _Outputs, target: Target, rows: Rows, feed: Feed) -> None:
    """All chunks but the last, each while the ASIC computes what the next one multiplies."""
    each = [(chunks, i) for chunks in matrix.chunks for i in range(chunks.count)]
    ready = feed.queued
    before: Chunks | None = None
    for (chunks, i), (following, j) in pairwise(each):
        if before:
            _sum(b, matrix, before, outputs, target)
        ready = _supply(
            b, matrix.needs(following.first + (j + 1) * following.width), matrix.k, ready, feed.follow, target
        )
        _chunk(b, matrix, chunks, i, outputs, target, rows)
        b.add(Mark(feed.follow.job))
        b.add(Wait("asic"))
        b.add(Mark(label_of(matrix.name)))
        before = chunks
    if before:
        _sum(b, matrix, before, outputs, target)


def _supply(b: Builder, end: int, total: int, ready: int, follow: Follow, target: Target) -> int:
    """Queue the job for inputs up to `end` of `total` where they are not yet.

    The last of them need some cycles to come out of the units; so much of the next inputs' work is queued with them.
    """
    trip = replace(follow.work(1), adds=0, multiplies=0)
    ahead = target.asic.cycles(trip) * 1000 // max(target.asic.cycles(follow.work(1000).streamed), 1)
    stop = min(end + ahead, total)
    if end <= ready:
        return ready
    work = follow.work(stop - ready)
    b.add(Start("asic", follow.job, target.asic.time_ps(work if stop == total else work.streamed)))
    return stop


def _sum_work(matrix: MatrixPlacement, chunks: Chunks, results: int) -> Work:
    """What the ASIC does with the results of one chunk."""
    if chunks.bank:
        return asic.scaled_sum_work(results)
    if chunks.scale_columns:
        return asic.group_sum_work(results, chunks.parts, zeros=True)
    return asic.partial_sum_work(results, scaled=matrix.integer_inputs)


def _last_chunk(
    b: Builder,
    matrix: MatrixPlacement,
    chunks: Chunks,
    outputs: _Outputs,
    target: Target,
    rows: Rows,
    follow: Follow | None,
    begin: Send | None,
) -> int:
    """The last chunk in pieces of whole row periods; every channel starts the same jobs."""
    done = chunks.count - 1
    first = target.vector_bursts(chunks.first, matrix.input_bits) + done * target.vector_bursts(
        chunks.width, matrix.input_bits
    )
    row = rows(chunks.first_row + outputs.row(chunks) + done * chunks.rows)
    plan = _sweep_of(matrix, chunks, target, outputs.vectors)
    send: Send | None = _sender(b, matrix, chunks, first, target, outputs.vectors, begin)
    if not target.choices.early_rows or not outputs.least:
        if outputs.here:
            _send(b, matrix, chunks, first, target, outputs.vectors)
        send = None
    each, period_rows = chunks.packing.period
    periods = max(outputs.least // each // target.choices.pieces, 1)
    size = periods * each
    whole = max(ceil_div(outputs.most, size) - 1, 0)
    early = _early(matrix, chunks, size, whole, target, follow) if outputs.vectors == 1 else whole

    def piece(i: Address, count: int, here: int, follows: Follow | None, last: bool, send: Send | None = None) -> None:
        result = RESULT + outputs.first * plan.output_stride + i * (size * plan.output_stride)
        scales = READ + i * (periods * plan.period_scales)
        sweep(b, plan, row + i * (periods * period_rows), here, result, scales, send)
        _hand_over(b, matrix, chunks, count, target, follows, last, outputs.vectors)

    apart = int(send is not None and whole > 0)
    if apart:
        piece(0, size, size, follow if early else None, False, send)
    for start, end, follows in ((apart, early, follow), (max(early, apart), whole, None)):
        with repeat(b, max(end - start, 0)) as i:
            piece(start + i, size, size, follows, False)
    last = follow if early == whole else None
    rest, here = outputs.most - whole * size, outputs.here - whole * size
    piece(whole, rest, here, last, True, None if apart else send)
    return matrix.finished(outputs.most if early == whole else early * size, target)


def _early(
    matrix: MatrixPlacement, chunks: Chunks, size: int, whole: int, target: Target, follow: Follow | None
) -> int:
    """How many whole pieces have their follow-up queued before the product ends: what the ASIC can do meanwhile."""
    if follow is None or follow.needed is None or follow.needed >= matrix.n:
        return whole
    results = matrix.finished(size, target)
    work = (_sum_work(matrix, chunks, results * matrix.split) + follow.work(results)).streamed
    cycles = chunks.packing.cycles_per_output(chunks.steps(matrix.use), target.row_change, target.readout)
    pace = size * cycles * target.tck_ps / target.asic.time_ps(work)
    needed = ceil_div(follow.needed, results)
    return whole if needed >= whole else max(needed, min(round(pace * whole), whole - 1))


def _hand_over(
    b: Builder,
    matrix: MatrixPlacement,
    chunks: Chunks,
    outputs: int,
    target: Target,
    follow: Follow | None,
    last: bool,
    vectors: int,
) -> None:
    results = matrix.finished(outputs, target)
    jobs = [(f"sum {label_of(matrix.name)}", _sum_work(matrix, chunks, results * matrix.split * vectors))]
    jobs += [(follow.job, follow.work(results))] if follow else []
    for i, (job, work) in enumerate(jobs):
        ends = last and i == len(jobs) - 1
        b.add(Start("asic", job, target.asic.time_ps(work if ends else work.streamed)))

"""Attention of one new token: K and V written, scores, softmax on the ASIC, context product.

The banks never wait for a softmax when they have other work: V is written while the first one runs, and the context
product of one head of each channel runs beside the softmax of the next. Positions are rounded up to one token in
every bank, so that tokens which fill the same row address share a program; the ASIC masks what is not there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from nearbank.mapping import asic
from nearbank.mapping.cache_placement import CachePlacement
from nearbank.mapping.matmul import Rows, read_rows
from nearbank.mapping.packing import Packing
from nearbank.mapping.sweep import (
    CACHE_SCALES,
    KEYS,
    RESULT,
    VALUES,
    VECTOR,
    Address,
    Sweep,
    repeat,
    send_vector,
    sweep,
)
from nearbank.mapping.target import Target
from nearbank.sim.program import Builder, Mark, Start, Wait
from nearbank.units import ceil_div

Write = Callable[[Builder], None]


@dataclass(frozen=True, slots=True)
class Span:
    """Positions [first, last] that a token attends, widened to multiples of the banks: [begin, end)."""

    begin: int
    end: int

    @classmethod
    def of(cls, first: int, last: int, banks: int) -> Span:
        return cls(first // banks * banks, (last // banks + 1) * banks)

    @property
    def length(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Attention:
    """What the functions below need to know: the cache, the machine, the channel, where its layer's rows are."""

    cache: CachePlacement
    target: Target
    channel: int
    rows: Rows

    @property
    def slots(self) -> int:
        """KV heads of this channel."""
        return self.cache.slots_of(self.channel, self.target.channels)

    @property
    def member(self) -> int:
        """Which of its team the channel is."""
        return self.channel % self.cache.team

    @property
    def quantised(self) -> bool:
        return self.cache.scales is not None


def append_keys(b: Builder, at: Attention, token: int, counter: Address) -> None:
    """Write K of token `token + counter` to its bank; `counter` stays below what the row address still has room for."""
    b.add(Wait("asic"))
    b.add(Mark("append"))
    if at.quantised:
        work = asic.quantise_work(2 * at.cache.kv_heads * at.cache.head_dim)
        b.add(Start("asic", "quantise kv", at.target.asic.time_ps(work)))
        b.add(Wait("asic"))
    record, turn = divmod(token // at.target.banks, at.cache.team)
    if turn != at.member:
        return
    bank = token % at.target.banks + counter
    if at.cache.joined:
        _write_keys(b, at, bank, at.rows(at.cache.keys.first_row), record, at.slots * at.cache.head_columns, KEYS)
    else:
        with b.loop(at.slots) as slot:
            row = at.rows(at.cache.keys.first_row) + slot * at.cache.key_rows
            columns = at.cache.head_columns
            _write_keys(b, at, bank, row, record, columns, KEYS + slot * columns)


def _write_keys(
    b: Builder, at: Attention, bank: Address, row: Address, record: int, columns: int, data: Address
) -> None:
    offset, column = _key_packing(at).place(record)
    b.command("ACT", bank=bank, row=row + offset)
    with b.loop(columns) as c:
        b.command("WR", bank=bank, row=row + offset, column=column + c, data=data + c)
    b.command("PRE", bank=bank)


def _key_packing(at: Attention) -> Packing:
    """Records of the channel's own number of slots."""
    columns = at.cache.head_columns * (at.slots if at.cache.joined else 1)
    return Packing(max(columns, 1), at.target.columns, False)


def append_values(b: Builder, at: Attention, token: int) -> None:
    """Write V of a token: one element in each of many rows. Elements smaller than a byte are read first."""
    cache, block = at.cache, token // at.cache.v_block
    column = token % cache.v_block // cache.use.values
    row = at.rows(cache.values.first_row + block * cache.v_rows)
    full, rest = divmod(cache.v_local, cache.v_dims)
    with b.loop(at.slots) as slot:
        base = row + slot * (cache.v_blocks * cache.v_rows)
        data = VALUES + slot * (cache.v_local * at.target.banks)
        with b.loop(full) as r:
            _write_values(b, at, base + r, cache.v_dims, column, data + r * (cache.v_dims * at.target.banks))
        if rest:
            _write_values(b, at, base + full, rest, column, data + full * cache.v_dims * at.target.banks)
    if at.quantised:
        _append_scales(b, at, token)


def _write_values(b: Builder, at: Attention, row: Address, dims: int, column: int, data: Address) -> None:
    width, banks = at.cache.v_packing.columns, at.target.banks
    below_a_byte = at.cache.use.values > at.target.column_bytes
    b.command("ACT16", row=row)
    for name in ("RD", "WR") if below_a_byte else ("WR",):
        with b.loop(dims) as d, b.loop(banks) as bank:
            b.command(name, bank=bank, row=row, column=d * width + column, data=data + d * banks + bank)
    b.command("PREA")


def _scale_rows(at: Attention) -> int:
    """Rows of the scales of one slot."""
    assert at.cache.scales is not None
    return at.cache.scales.rows // at.cache.slots


def _append_scales(b: Builder, at: Attention, token: int) -> None:
    """Scale and offset of K and V of one token: part of a burst for each slot."""
    assert at.cache.scales is not None
    burst, turn = divmod(token * at.cache.scale_bytes // at.target.column_bytes, at.cache.team)
    if turn != at.member:
        return
    columns, bank = divmod(burst, at.target.banks)
    offset, column = divmod(columns, at.target.columns)
    with b.loop(at.slots) as slot:
        row = at.rows(at.cache.scales.first_row + offset) + slot * _scale_rows(at)
        b.command("ACT", bank=bank, row=row)
        b.command("WR", bank=bank, row=row, column=column, data=CACHE_SCALES + slot)
        b.command("PRE", bank=bank)


def attend(b: Builder, at: Attention, span: Span, token: int | None, values: Write | None = None) -> None:
    """Scores, softmax and context product over `span`; V of `token`, if any, is written while the ASIC is busy.

    `values` appends the product that gives V, where that was put off to run beside the first softmax.
    """
    b.add(Wait("asic"))
    if at.quantised:
        _read_scales(b, at, span)
    if at.cache.joined:
        _attend_joined(b, at, span, token, values)
    else:
        _attend_apart(b, at, span, token, values)


def _attend_joined(b: Builder, at: Attention, span: Span, token: int | None, values: Write | None) -> None:
    """All heads' scores in one pass over the rows, then head after head."""
    _score(b, at, span, 0, at.slots, at.slots)
    _softmax(b, at, span, 0)
    if values:
        values(b)
        _wait_for_softmax(b)
    _write_new_values(b, at, token)
    with b.loop(at.cache.slots - 1) as slot:
        _wait_for_softmax(b)
        _softmax(b, at, span, 1)
        _context(b, at, span, slot)
    _last_context(b, at, span)


def _attend_apart(b: Builder, at: Attention, span: Span, token: int | None, values: Write | None) -> None:
    """Head after head, the scores of the next beside the softmax of this one."""
    _score(b, at, span, 0, 1, at.slots)
    _softmax(b, at, span, 0)
    if values:
        values(b)
    else:
        _write_new_values(b, at, token)
    last = at.cache.slots - 1
    if last and values:
        _score_beside_softmax(b, at, span, 1, last == 1)
        _write_new_values(b, at, token)
        _context_of_slot(b, at, span, 0)
    elif values:
        _wait_for_softmax(b)
        _write_new_values(b, at, token)
    begin = 1 if values else 0
    with b.loop(max(last - 1 - begin, 0)) as i:
        _score_beside_softmax(b, at, span, i + (begin + 1), False)
        _context_of_slot(b, at, span, i + begin)
    if last > begin:
        _score_beside_softmax(b, at, span, last, True)
        _context_of_slot(b, at, span, last - 1)
    _last_context(b, at, span)


def _score_beside_softmax(b: Builder, at: Attention, span: Span, slot: Address, last: bool) -> None:
    """Scores of a slot, and their softmax once that of the slot before has ended.

    Softmaxes that follow each other keep the ASIC's units full: only the last one's passes are waited for.
    """
    _score(b, at, span, slot, 1, at.slots)
    _wait_for_softmax(b)
    _softmax(b, at, span, at.cache.slots - 1 if last else 1, streamed=not last)


def _context_of_slot(b: Builder, at: Attention, span: Span, slot: Address) -> None:
    _context(b, at, span, slot)
    _normalise(b, at, 0, streamed=True)


def _last_context(b: Builder, at: Attention, span: Span) -> None:
    _wait_for_softmax(b)
    last = at.cache.slots - 1
    heads = at.cache.kv_heads * at.cache.queries
    b.add(Start("asic", "normalise", at.target.asic.time_ps(asic.reciprocal_work(heads))))
    _context(b, at, span, last)
    if at.cache.joined:
        work = asic.normalise_work(heads, at.cache.head_dim)
        b.add(Start("asic", "normalise", at.target.asic.time_ps(work)))
    else:
        _normalise(b, at, last, streamed=False)


def _normalise(b: Builder, at: Attention, slot: int, *, streamed: bool) -> None:
    """One slot's results divided by the sums of its softmax."""
    heads = at.cache.heads_in_slot(slot, at.target.channels) * at.cache.queries
    work = asic.normalise_work(heads, at.cache.head_dim)
    b.add(Start("asic", "normalise", at.target.asic.time_ps(work.streamed if streamed else work)))


def _write_new_values(b: Builder, at: Attention, token: int | None) -> None:
    if token is not None:
        b.add(Mark("append"))
        append_values(b, at, token)


def _wait_for_softmax(b: Builder) -> None:
    b.add(Mark("softmax"))
    b.add(Wait("asic"))


def _softmax(b: Builder, at: Attention, span: Span, slot: int, *, streamed: bool = False) -> None:
    """The softmax of one slot's heads; a middle slot stands for all of them, as only the last can have fewer."""
    heads = at.cache.heads_in_slot(slot, at.target.channels) * at.cache.queries
    work = asic.softmax_work(heads, span.length)
    if at.quantised:
        work += asic.cache_scale_work(heads, span.length)
    b.add(Start("asic", "softmax", at.target.asic.time_ps(work.streamed if streamed else work)))


def _read_scales(b: Builder, at: Attention, span: Span) -> None:
    """Scales of K and V of the attended tokens, over the pins."""
    assert at.cache.scales is not None
    b.add(Mark("scales"))
    bursts = scale_bursts(at.cache, at.target, span)
    with b.loop(at.slots) as slot:
        row = at.rows(at.cache.scales.first_row) + slot * _scale_rows(at)
        read_rows(b, at.target, row, bursts, CACHE_SCALES + slot * bursts)


def scale_bursts(cache: CachePlacement, target: Target, span: Span) -> int:
    """Bursts of scales that a channel reads for one slot: whole columns of all banks."""
    bursts = ceil_div(target.bursts(cache.scale_bytes * span.end), cache.team)
    return ceil_div(bursts, target.banks) * target.banks


def _score(b: Builder, at: Attention, span: Span, slot: Address, count: int, held: int) -> None:
    """q·K of `count` slots from `slot` on, for every record of the span. A channel without the last slot skips it."""
    b.add(Mark("score"))
    cache, target = at.cache, at.target
    if not held or (isinstance(slot, int) and slot >= held):
        return
    steps = cache.use.steps_for(cache.head_dim)
    vector = cache.head_columns * cache.use.steps
    bursts = target.bursts(cache.queries * cache.use.multiplied(vector) * cache.input_bytes)
    reads = target.read_bursts
    records = ceil_div(cache.max_context, target.banks * cache.team) * reads
    packing = _key_packing(at)
    plan = Sweep(
        packing,
        cache.use.mac_format,
        steps,
        reads,
        parts=count,
        part_vector=cache.queries * vector,
        queries=cache.queries,
        query_vector=vector,
        output_stride=reads,
        part_stride=cache.queries * records,
        query_stride=records,
        accumulators=target.accumulators,
    )
    first, end = (position // target.banks for position in (span.begin, span.end))
    begin = first // cache.team // packing.per_row * packing.per_row
    row = at.rows(cache.keys.first_row + begin // packing.per_row) + (0 if cache.joined else slot * cache.key_rows)
    result = RESULT + begin * reads + (0 if cache.joined else slot * (cache.queries * records))
    outputs = ceil_div(end, cache.team) - begin
    _sent_and_swept(b, at, plan, row, outputs, result, count * bursts, VECTOR + slot * bursts)


def _sent_and_swept(
    b: Builder, at: Attention, plan: Sweep, row: Address, outputs: int, result: Address, bursts: int, vector: Address
) -> None:
    """A vector of `bursts` bursts sent, before the first row is opened or while it opens, and multiplied."""
    send = partial(send_vector, b, bursts, vector)
    if at.target.choices.early_rows and outputs:
        sweep(b, plan, row, outputs, result, send=send)
        return
    send()
    sweep(b, plan, row, outputs, result)


def _context(b: Builder, at: Attention, span: Span, slot: Address) -> None:
    """Σ p·V of one slot: for each query and block of tokens, probabilities into the buffer, then every dimension."""
    b.add(Mark("context"))
    cache = at.cache
    if isinstance(slot, int) and slot >= at.slots:
        return
    with repeat(b, cache.queries) as query:
        for block in range(span.begin // cache.v_block, ceil_div(span.end, cache.v_block)):
            begin = max(span.begin - block * cache.v_block, 0)
            end = min(span.end - block * cache.v_block, cache.v_block)
            _block(b, at, slot, query, block, begin, end)


def _block(b: Builder, at: Attention, slot: Address, query: Address, block: int, begin: int, end: int) -> None:
    """Tokens [begin, end) of one block of a slot's V."""
    cache, target = at.cache, at.target
    skip = begin // cache.use.values
    used = ceil_div(end, cache.use.values) - skip
    length = target.bursts(cache.v_block * cache.input_bytes)
    vector = slot * (cache.queries * cache.v_blocks * length) + query * (cache.v_blocks * length) + block * length
    sent = target.bursts(used * cache.use.values * cache.input_bytes)
    first = skip * cache.use.values * cache.input_bytes // target.column_bytes
    reads = target.read_bursts
    packing = Packing(cache.v_packing.columns, cache.v_dims * cache.v_packing.columns, False)
    plan = Sweep(
        packing,
        cache.use.mac_format,
        cache.use.steps,
        reads,
        used=used,
        skip=skip,
        output_stride=reads,
        accumulators=target.accumulators,
    )
    row = at.rows(cache.values.first_row + block * cache.v_rows) + slot * (cache.v_blocks * cache.v_rows)
    result = RESULT + slot * (cache.queries * cache.v_blocks * cache.v_local * reads)
    result += query * (cache.v_blocks * cache.v_local * reads) + block * cache.v_local * reads
    _sent_and_swept(b, at, plan, row, cache.v_local, result, sent, VECTOR + vector + first)

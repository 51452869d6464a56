"""Attention of one new token: K and V written, scores, softmax on the ASIC, context product.

The banks never wait for a softmax when they have other work: V is written while the first one runs, and the context
product of one head of each channel runs beside the softmax of the next. Positions are rounded up to one token in
every bank, so that tokens which fill the same row address share a program; the ASIC masks what is not there.

Caches that keep tokens exact for a while: a past-only one leaves the newest token's scores and products to the ASIC,
and writes its K and V behind them; KIVI's window is attended beside the rounded past, as a small cache of its own
(`nearbank.mapping.grouped_attention` has what differs there).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from nearbank.cache_formats import FITTED
from nearbank.mapping import asic
from nearbank.mapping.append import append_values, quantise_new, write_key_columns, write_value_columns
from nearbank.mapping.asic import Work
from nearbank.mapping.grouped_attention import score_groups
from nearbank.mapping.matmul import read_rows
from nearbank.mapping.packing import Packing
from nearbank.mapping.reach import Attention, Reach, Span, key_packing, scale_bursts, scale_rows
from nearbank.mapping.sweep import CACHE_SCALES, RESULT, VECTOR, Address, Send, Sweep, repeat, send_vector, sweep
from nearbank.sim.program import Builder, Mark, Start, Wait
from nearbank.units import ceil_div

Write = Callable[[Builder], None]

# Bursts of a vector that are sent after V is written in place, while the units wait for the write to end.
WRITTEN_LAST = 6


def attend(b: Builder, at: Attention, span: Reach, token: int | None, values: Write | None = None) -> None:
    """Scores, softmax and context product over `span`; V of `token`, if any, is written while the ASIC is busy.

    `values` appends the product that gives V, where that was put off to run beside the first softmax.
    """
    if not at.new:
        b.add(Wait("asic"))
    if at.cache.newest_exact:
        b.add(Mark("append"))
        quantise_new(b, at)
        work = asic.newest_work(at.cache.kv_heads * at.cache.queries, at.cache.head_dim)
        b.add(Start("asic", "newest", at.target.asic.time_ps(work)))
    if at.quantised and span.values.length:
        _read_scales(b, at, span.values)
    if at.cache.joined:
        _attend_joined(b, at, span, token, values)
    else:
        _attend_apart(b, at, span, token, values)


def _attend_joined(b: Builder, at: Attention, span: Reach, token: int | None, values: Write | None) -> None:
    """All heads' scores in one pass over the rows, then head after head."""
    _score(b, at, span, 0, at.slots, at.slots, partial(_wait_for_query, b))
    _softmax(b, at, span, 0)
    if values:
        values(b)
        _wait_for_softmax(b)
    _write_new_values(b, at, token)
    with b.loop(at.cache.slots - 1) as slot:
        _context(b, at, span, slot, partial(_next_softmax, b, at, span, 1))
    _last_context(b, at, span)


def _attend_apart(b: Builder, at: Attention, span: Reach, token: int | None, values: Write | None) -> None:
    """Head after head, the scores of the next beside the softmax of this one."""
    _score(b, at, span, 0, 1, at.slots, partial(_wait_for_query, b))
    _softmax(b, at, span, 0)
    if values:
        values(b)
    else:
        _write_new_values(b, at, token)
    last = at.cache.slots - 1
    if last and values and not at.new:
        _score(b, at, span, 1, 1, at.slots)
        _softmax_of_next(b, at, span, last == 1)
        _write_new_values(b, at, token)
        _context_of_slot(b, at, span, 0)
    elif values and not at.new:
        _wait_for_softmax(b)
        _write_new_values(b, at, token)
    begin = 1 if values and not at.new else 0
    with b.loop(max(last - 1 - begin, 0)) as i:
        _score(b, at, span, i + (begin + 1), 1, at.slots)
        _context_of_slot(b, at, span, i + begin, partial(_softmax_of_next, b, at, span, False))
    if last > begin:
        _score(b, at, span, last, 1, at.slots)
        _context_of_slot(b, at, span, last - 1, partial(_softmax_of_next, b, at, span, True))
    _last_context(b, at, span)


def _softmax_of_next(b: Builder, at: Attention, span: Reach, last: bool) -> None:
    """The softmax of a slot whose scores are there, once that of the slot before has ended.

    Softmaxes that follow each other keep the ASIC's units full: only the last one's passes are waited for.
    """
    _next_softmax(b, at, span, at.cache.slots - 1 if last else 1, streamed=not last)


def _next_softmax(b: Builder, at: Attention, span: Reach, slot: int, *, streamed: bool = False) -> None:
    _wait_for_softmax(b)
    _softmax(b, at, span, slot, streamed=streamed)


def _context_of_slot(b: Builder, at: Attention, span: Reach, slot: Address, ready: Send | None = None) -> None:
    _context(b, at, span, slot, ready)
    _normalise(b, at, 0, streamed=True)


def _last_context(b: Builder, at: Attention, span: Reach) -> None:
    last = at.cache.slots - 1
    heads = at.cache.kv_heads * at.cache.queries

    def ready() -> None:
        _wait_for_softmax(b)
        b.add(Start("asic", "normalise", at.target.asic.time_ps(asic.reciprocal_work(heads))))

    _context(b, at, span, last, ready)
    if at.cache.joined:
        b.add(Start("asic", "normalise", at.target.asic.time_ps(_normalise_work(at, heads))))
    else:
        _normalise(b, at, last, streamed=False)


def _normalise(b: Builder, at: Attention, slot: int, *, streamed: bool) -> None:
    """One slot's results divided by the sums of its softmax."""
    heads = at.cache.heads_in_slot(slot, at.target.channels) * at.cache.queries
    work = _normalise_work(at, heads)
    b.add(Start("asic", "normalise", at.target.asic.time_ps(work.streamed if streamed else work)))


def _normalise_work(at: Attention, heads: int) -> Work:
    """Results divided by the sums of their softmax, the exact token's added before, channels scaled after."""
    work = asic.normalise_work(heads, at.cache.head_dim)
    work_of_scales = asic.normalise_work(heads, at.cache.head_dim).streamed  # of V's channels
    if at.cache.newest_exact:
        work += asic.newest_work(heads, at.cache.head_dim).streamed
    return work + work_of_scales if at.cache.method in FITTED else work


def _write_new_values(b: Builder, at: Attention, token: int | None) -> None:
    if token is not None and not at.new:
        b.add(Mark("append"))
        append_values(b, at, token)


def _wait_for_query(b: Builder) -> None:
    b.add(Mark("score"))
    b.add(Wait("asic"))


def _wait_for_softmax(b: Builder) -> None:
    b.add(Mark("softmax"))
    b.add(Wait("asic"))


def _softmax(b: Builder, at: Attention, span: Reach, slot: int, *, streamed: bool = False) -> None:
    """The softmax of one slot's heads; a middle slot stands for all of them, as only the last can have fewer."""
    heads = at.cache.heads_in_slot(slot, at.target.channels) * at.cache.queries
    work = asic.softmax_work(heads, span.length)
    if at.cache.groups:
        work += asic.value_scale_work(heads, max(span.keys.length, span.values.length))
    elif at.quantised:
        work += asic.cache_scale_work(heads, span.keys.length)
    b.add(Start("asic", "softmax", at.target.asic.time_ps(work.streamed if streamed else work)))


def _read_scales(b: Builder, at: Attention, span: Span) -> None:
    """Scales of K and V of the attended tokens, over the pins."""
    assert at.cache.scales is not None
    b.add(Mark("scales"))
    bursts = scale_bursts(at.cache, at.target, span)
    with b.loop(at.slots) as slot:
        row = at.rows(at.cache.scales.first_row) + slot * scale_rows(at)
        read_rows(b, at.target, row, bursts, CACHE_SCALES + slot * bursts)


def _score(
    b: Builder, at: Attention, span: Reach, slot: Address, count: int, held: int, ready: Send | None = None
) -> None:
    """q·K of `count` slots from `slot` on. A channel without the last slot skips it.

    `ready` appends what the query waits for where K is written in place, into the row that opens first.
    """
    if at.cache.groups:
        near = partial(_score_span, b, at.window, span.window_keys, slot, count, held)
        score_groups(b, at, span.keys, slot, count, held, near)
    else:
        _score_span(b, at, span.keys, slot, count, held, ready if at.new else None)


def _score_span(
    b: Builder, at: Attention, span: Span, slot: Address, count: int, held: int, ready: Send | None = None
) -> None:
    """The same for every record of a span."""
    b.add(Mark("score"))
    cache, target = at.cache, at.target
    if not span.length or not held or (isinstance(slot, int) and slot >= held):
        if ready:
            ready()
        return
    steps = cache.use.steps_for(cache.head_dim)
    vector = cache.head_columns * cache.use.steps
    bursts = target.bursts(cache.queries * cache.use.multiplied(vector) * cache.input_bytes)
    reads = target.read_bursts
    records = ceil_div(cache.max_context, target.banks * cache.team) * reads
    packing = key_packing(at)
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
    result = at.area + RESULT + begin * reads + (0 if cache.joined else slot * (cache.queries * records))
    outputs = ceil_div(end, cache.team) - begin
    query = at.area + VECTOR + slot * bursts
    if not at.new:
        _sent_and_swept(b, at, plan, row, outputs, result, count * bursts, query)
        return
    before = (outputs - 1) // packing.per_row

    def send() -> None:
        if ready:
            ready()
        write_key_columns(b, at, row + before, slot)
        send_vector(b, count * bursts, query)

    first_done = before * packing.per_row
    sweep(b, plan, row + before, outputs - first_done, result + first_done * reads, send=send)
    sweep(b, plan, row, first_done, result)


def _sent_and_swept(
    b: Builder, at: Attention, plan: Sweep, row: Address, outputs: int, result: Address, bursts: int, vector: Address
) -> None:
    """A vector of `bursts` bursts sent, before the first row is opened or while it opens, and multiplied."""
    send = partial(send_vector, b, bursts, vector)
    early = at.target.choices.early_rows and outputs > 0

    def write() -> None:
        if not early:
            send()
        sweep(b, plan, row, outputs, result, send=send if early else None)

    b.again((plan, row, outputs, result, bursts, vector, early), write)


def _context(b: Builder, at: Attention, span: Reach, slot: Address, ready: Send | None = None) -> None:
    """Σ p·V of one slot: for each query and block of tokens, probabilities into the buffer, then every dimension.

    `ready` appends what the probabilities wait for; V is written in place before that.
    """
    if at.new:
        b.add(Mark("context"))
        if not isinstance(slot, int) or slot < at.slots:
            _newest_block_first(b, at, span.values, slot, ready)
        else:
            _make_ready(b, ready)
        return
    _make_ready(b, ready)
    _context_span(b, at, span.values, slot)
    if at.cache.window:
        _context_span(b, at.window, span.window_values, slot)


def _newest_block_first(b: Builder, at: Attention, span: Span, slot: Address, ready: Send | None) -> None:
    """The block that the newest token lies in, whose V is written while its rows are open; then those before it."""
    assert at.new
    cache = at.cache
    block = at.new[0] // cache.v_block
    start = block * cache.v_block
    _block(b, at, slot, 0, block, max(span.begin - start, 0), span.end - start, partial(_make_ready, b, ready))
    before = Span(span.begin, min(start, span.end))
    if before.begin < start:
        _blocks(b, at, before, slot, 0)
    with repeat(b, cache.queries - 1) as query:
        _blocks(b, at, span, slot, query + 1)


def _make_ready(b: Builder, ready: Send | None) -> None:
    if ready:
        ready()
    b.add(Mark("context"))


def _context_span(b: Builder, at: Attention, span: Span, slot: Address) -> None:
    cache = at.cache
    if not span.length or (isinstance(slot, int) and slot >= at.slots):
        return
    with repeat(b, cache.queries) as query:
        _blocks(b, at, span, slot, query)


def _blocks(b: Builder, at: Attention, span: Span, slot: Address, query: Address) -> None:
    """Block after block: those attended whole in a loop, the first and the last also in part."""
    size = at.cache.v_block
    first, end = ceil_div(span.begin, size), span.end // size
    if first > end:
        _block(b, at, slot, query, end, span.begin % size, span.end % size)
        return
    if span.begin % size:
        _block(b, at, slot, query, first - 1, span.begin % size, size)
    with repeat(b, end - first) as whole:
        _block(b, at, slot, query, whole + first, 0, size)
    if span.end % size:
        _block(b, at, slot, query, end, 0, span.end % size)


def _block(
    b: Builder,
    at: Attention,
    slot: Address,
    query: Address,
    block: Address,
    begin: int,
    end: int,
    ready: Send | None = None,
) -> None:
    """Tokens [begin, end) of one block of a slot's V; with `ready`, the newest token's V is written in its rows."""
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
    row = at.rows(cache.values.first_row) + block * cache.v_rows + slot * (cache.v_blocks * cache.v_rows)
    result = at.area + RESULT + slot * (cache.queries * cache.v_blocks * cache.v_local * reads)
    result += query * (cache.v_blocks * cache.v_local * reads) + block * (cache.v_local * reads)
    vector += at.area + VECTOR + first
    if ready is None:
        _sent_and_swept(b, at, plan, row, cache.v_local, result, sent, vector)
        return

    if cache.joined:
        before, after = 0, ready
    else:  # the softmax has ended long ago: the vector is sent while the row opens, but for what hides WR to MAC
        before, after = max(sent - WRITTEN_LAST, 0), None

    def begin_row() -> None:
        if after:
            after()
        send_vector(b, sent - before, vector + before, before)

    def row_opened() -> None:
        if not after:
            ready()
            send_vector(b, before, vector)

    _swept_and_written(b, at, plan, slot, row, result, row_opened, begin_row)


def _swept_and_written(
    b: Builder, at: Attention, plan: Sweep, slot: Address, row: Address, result: Address, opened: Send, send: Send
) -> None:
    """Row by row: opened, the newest token's V written, then multiplied; around the first row's V come `opened` and
    `send`."""
    dims = at.cache.v_dims

    def one(r: Address, count: int, before: Send | None = None, then: Send | None = None) -> None:
        def written() -> None:
            if before:
                before()
            write_value_columns(b, at, slot, row + r, r * dims, count)
            if then:
                then()

        sweep(b, plan, row + r, count, result + r * (dims * plan.output_stride), send=written)

    full, rest = divmod(at.cache.v_local, dims)
    one(0, dims, opened, send)
    with repeat(b, full - 1) as r:
        one(r + 1, dims)
    if rest:
        one(full, rest)

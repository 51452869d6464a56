"""Keys whose channels share scales over a group of tokens (KIVI): scored visit by visit, written a group at a time.

A channel's scale is taken into the query and its offset into a constant, both by the ASIC, while the banks multiply
the visit before. When a group is full, the window that held it exactly is read, the ASIC rounds its keys per channel
and its values per token, and the codes are written to where the rounded past lies.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from nearbank.mapping import asic
from nearbank.mapping.key_groups import KeyGroups
from nearbank.mapping.packing import Packing
from nearbank.mapping.reach import Attention, Span, key_packing, scale_rows
from nearbank.mapping.sweep import (
    CACHE_SCALES,
    KEY_SCALES,
    KEYS,
    RESULT,
    VALUES,
    VECTOR,
    WINDOW_KEYS,
    WINDOW_VALUES,
    Address,
    Sweep,
    multiply,
    read_result,
    repeat,
)
from nearbank.sim.program import Builder, Mark, Start, Wait
from nearbank.units import ceil_div

Visit = tuple[int, int]  # first group, groups


def score_groups(
    b: Builder, at: Attention, span: Span, slot: Address, count: int, held: int, near: Callable[[], None]
) -> None:
    """q·K of `count` slots from `slot` on over the groups of a span; `near` appends the scores of the window.

    The ASIC's jobs are the same in every channel, also in one without the slot.
    """
    here = bool(held) and not (isinstance(slot, int) and slot >= held)
    visits = _visits(_groups_of(at), span)
    if visits:
        _read_visit(b, at, visits[0], slot, count, here)
    near()
    for visit, following in pairwise([*visits, None]):
        assert visit
        b.add(Mark("score"))
        b.add(Wait("asic"))
        if following:
            _read_visit(b, at, following, slot, count, here)
        b.add(Mark("score"))
        if here:
            _multiply_visit(b, at, visit, slot, count)


def _groups_of(at: Attention) -> KeyGroups:
    assert at.cache.groups is not None
    return at.cache.groups


def _visits(groups: KeyGroups, span: Span) -> list[Visit]:
    """The groups of a span in visits, which begin at multiples of a whole one."""
    begin, end, size = span.begin // groups.tokens, span.end // groups.tokens, groups.visit
    edges = [begin, *range(begin // size * size + size, end, size), end] if end > begin else [0]
    return [(first, stop - first) for first, stop in pairwise(edges)]


def _reserved(at: Attention) -> int:
    """Groups that there is room for."""
    return ceil_div(at.cache.max_context, _groups_of(at).tokens)


def _read_visit(b: Builder, at: Attention, visit: Visit, slot: Address, count: int, here: bool) -> None:
    """Scales and offsets of a visit's channels over the pins, and the job that takes them into the queries."""
    b.add(Mark("scales"))
    (first, many), groups = visit, _groups_of(at)
    if here:
        row, column = _scale_place(at, first, slot)
        b.command("ACT16", row=row)
        with repeat(b, many) as i, repeat(b, count) as s:
            data = KEY_SCALES + ((slot + s) * _reserved(at) + first + i) * groups.bursts
            _scale_bursts(b, "RD", at, row, column + (i * count + s) * groups.columns, data)
        b.command("PREA")
    cache = at.cache
    heads = cache.queries * (cache.kv_heads if cache.joined else cache.heads_in_slot(0, at.target.channels))
    work = asic.scale_query_work(heads, cache.head_dim, many)
    b.add(Start("asic", "scale q", at.target.asic.time_ps(work)))


def _scale_place(at: Attention, group: int, slot: Address) -> tuple[Address, Address]:
    """Row and column of a group's scales, of a slot where slots lie apart and of the first where they do not."""
    cache, groups = at.cache, _groups_of(at)
    row, place = divmod(group, groups.scales_per_row)
    beside = at.slots if cache.joined else 1
    apart = 0 if cache.joined else slot * groups.scale_rows
    return at.rows(groups.scales.first_row + row) + apart, place * beside * groups.columns


def _scale_bursts(b: Builder, name: str, at: Attention, row: Address, column: Address, data: Address) -> None:
    """One group's scales of one slot, dealt out over the banks, then columns."""
    full, rest = divmod(_groups_of(at).bursts, at.target.banks)
    if full:
        with repeat(b, full) as c, b.loop(at.target.banks) as bank:
            b.command(name, bank=bank, row=row, column=column + c, data=data + c * at.target.banks + bank)
    with b.loop(rest) as bank:
        b.command(name, bank=bank, row=row, column=column + full, data=data + full * at.target.banks + bank)


def _multiply_visit(b: Builder, at: Attention, visit: Visit, slot: Address, count: int) -> None:
    """A visit's queries into the buffer, while its row opens, and every record times its group's."""
    (first, many), groups, cache = visit, _groups_of(at), at.cache
    row, place = divmod(first, groups.per_row)
    address = at.rows(cache.keys.first_row + row) + (0 if cache.joined else slot * cache.key_rows)
    record = cache.head_columns * (at.slots if cache.joined else 1)
    each = cache.queries * at.target.bursts(cache.head_columns * cache.use.values * cache.input_bytes)
    b.command("ACT16", row=address)
    with repeat(b, many) as i, repeat(b, count) as s, b.loop(each) as burst:
        data = VECTOR + ((slot + s) * _reserved(at) + first + i) * each + burst
        b.command("WRGB", column=(i * count + s) * each + burst, data=data)
    with repeat(b, many) as i:
        _multiply_group(b, at, address, (place + i) * (groups.records * record), i, first + i, slot, count)
    b.command("PREA")


def _multiply_group(
    b: Builder, at: Attention, row: Address, column: Address, place: Address, group: Address, slot: Address, count: int
) -> None:
    """Records of the group at `place` in its visit; results wait where there are accumulators for all of them."""
    cache, target, records = at.cache, at.target, _groups_of(at).records
    record = cache.head_columns * (at.slots if cache.joined else 1)
    steps, vector = cache.use.steps_for(cache.head_dim), cache.head_columns * cache.use.steps
    plan = Sweep(Packing(record, target.columns, False), cache.use.mac_format, steps, target.read_bursts)
    reserved = ceil_div(cache.max_context, target.banks * cache.team) * plan.bursts

    def macs(o: Address, s: Address, q: Address, register: Address) -> None:
        first = ((place * count + s) * cache.queries + q) * vector
        multiply(b, plan, row, column + o * record + s * cache.head_columns, first, cache.head_columns, register)

    def read(o: Address, s: Address, q: Address, register: Address) -> None:
        to = (slot + s) * (cache.queries * reserved) + q * reserved + (group * records + o) * plan.bursts
        read_result(b, plan.bursts, RESULT + to, register)

    waiting = records * count * cache.queries <= target.accumulators
    for action in (macs, read) if waiting else (None,):
        with repeat(b, records) as o, repeat(b, count) as s, repeat(b, cache.queries) as q:
            if action:
                action(o, s, q, (o * count + s) * cache.queries + q)
            else:
                macs(o, s, q, 0)
                read(o, s, q, 0)


def flush(b: Builder, at: Attention, group: int) -> None:
    """A full group rounded, from the window to the past: keys, then values, slot after slot, as the ASIC holds one."""
    b.add(Wait("asic"))
    b.add(Mark("flush"))
    with b.loop(at.cache.slots - 1) as slot:
        _flush_slot(b, at, group, slot)
    _flush_slot(b, at, group, at.cache.slots - 1)


def _flush_slot(b: Builder, at: Attention, group: int, slot: Address) -> None:
    here = not (isinstance(slot, int) and slot >= at.slots)
    heads = at.cache.heads_in_slot(slot if isinstance(slot, int) else 0, at.target.channels)
    work = asic.quantise_work(heads * at.cache.head_dim * _groups_of(at).tokens)
    stages = (
        ("round keys", _read_window_keys, (_write_keys, _write_key_scales)),
        ("round values", _read_window_values, (_write_values, _write_value_scales)),
    )
    for job, read, writes in stages:
        if here:
            read(b, at, slot)
        b.add(Start("asic", job, at.target.asic.time_ps(work)))
        b.add(Wait("asic"))
        for write in writes if here else ():
            write(b, at, group, slot)


def _read_window_keys(b: Builder, at: Attention, slot: Address) -> None:
    near, banks, records = at.window, at.target.banks, _groups_of(at).records
    cache, packing = near.cache, key_packing(near)
    for record in range(records):
        offset, column = packing.place(record)
        row = near.rows(cache.keys.first_row + offset) + (0 if cache.joined else slot * cache.key_rows)
        begin = column + (slot * cache.head_columns if cache.joined else 0)
        data = WINDOW_KEYS + (slot * records + record) * (cache.head_columns * banks)
        b.command("ACT16", row=row)
        with b.loop(cache.head_columns) as c, b.loop(banks) as bank:
            b.command("RD", bank=bank, row=row, column=begin + c, data=data + c * banks + bank)
        b.command("PREA")


def _read_window_values(b: Builder, at: Attention, slot: Address) -> None:
    near, banks = at.window, at.target.banks
    cache, width = near.cache, near.cache.v_packing.columns
    for r in range(cache.v_rows):
        row = near.rows(cache.values.first_row + r) + slot * cache.v_rows
        dims = min(cache.v_dims, cache.v_local - r * cache.v_dims)
        data = WINDOW_VALUES + (slot * cache.v_local + r * cache.v_dims) * (width * banks)
        b.command("ACT16", row=row)
        with b.loop(dims * width) as c, b.loop(banks) as bank:
            b.command("RD", bank=bank, row=row, column=c, data=data + c * banks + bank)
        b.command("PREA")


def _write_keys(b: Builder, at: Attention, group: int, slot: Address) -> None:
    cache, groups, banks = at.cache, _groups_of(at), at.target.banks
    row, place = divmod(group, groups.per_row)
    record = cache.head_columns * (at.slots if cache.joined else 1)
    address = at.rows(cache.keys.first_row + row) + (0 if cache.joined else slot * cache.key_rows)
    begin = place * groups.records * record + (slot * cache.head_columns if cache.joined else 0)
    b.command("ACT16", row=address)
    with b.loop(groups.records) as r, b.loop(cache.head_columns) as c, b.loop(banks) as bank:
        data = KEYS + ((slot * groups.records + r) * cache.head_columns + c) * banks + bank
        b.command("WR", bank=bank, row=address, column=begin + r * record + c, data=data)
    b.command("PREA")


def _write_values(b: Builder, at: Attention, group: int, slot: Address) -> None:
    """Codes of a group's tokens: part of one column of each dimension."""
    cache, banks, token = at.cache, at.target.banks, group * _groups_of(at).tokens
    block, column = token // cache.v_block, token % cache.v_block // cache.use.values
    for r in range(cache.v_rows):
        row = at.rows(cache.values.first_row + block * cache.v_rows + r) + slot * (cache.v_blocks * cache.v_rows)
        dims = min(cache.v_dims, cache.v_local - r * cache.v_dims)
        data = VALUES + (slot * cache.v_local + r * cache.v_dims) * banks
        b.command("ACT16", row=row)
        with b.loop(dims) as d, b.loop(banks) as bank:
            place = d * cache.v_packing.columns + column
            b.command("WR", bank=bank, row=row, column=place, data=data + d * banks + bank)
        b.command("PREA")


def value_scale_bursts(at: Attention, group: int) -> list[tuple[int, int, int, int]]:
    """(number in the group, bank, row, column) of the channel's bursts with scales and offsets of a group's V."""
    cache, target = at.cache, at.target
    size = _groups_of(at).tokens * cache.scale_bytes // target.column_bytes
    found = []
    for k in range(size):
        burst, turn = divmod(group * size + k, cache.team)
        if turn == at.member:
            columns, bank = divmod(burst, target.banks)
            found.append((k, bank, *divmod(columns, target.columns)))
    return found


def _write_key_scales(b: Builder, at: Attention, group: int, slot: Address) -> None:
    groups, cache = _groups_of(at), at.cache
    row, column = _scale_place(at, group, slot)
    begin = column + (slot * groups.columns if cache.joined else 0)
    b.command("ACT16", row=row)
    _scale_bursts(b, "WR", at, row, begin, KEY_SCALES + (slot * _reserved(at) + group) * groups.bursts)
    b.command("PREA")


def _write_value_scales(b: Builder, at: Attention, group: int, slot: Address) -> None:
    groups, cache = _groups_of(at), at.cache
    assert cache.scales is not None
    bursts = value_scale_bursts(at, group)
    size = groups.tokens * cache.scale_bytes // at.target.column_bytes
    for k, bank, offset, place in bursts:
        address = at.rows(cache.scales.first_row + offset) + slot * scale_rows(at)
        b.command("ACT", bank=bank, row=address)
        b.command("WR", bank=bank, row=address, column=place, data=CACHE_SCALES + slot * size + k)
        b.command("PRE", bank=bank)

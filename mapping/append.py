"""K and V of one new token written to the banks."""

from __future__ import annotations

from nearbank.mapping import asic
from nearbank.mapping.reach import Attention, key_packing, scale_rows
from nearbank.mapping.sweep import CACHE_SCALES, KEYS, VALUES, Address
from nearbank.sim.program import Builder, Mark, Start, Wait


def append_keys(b: Builder, at: Attention, token: int, counter: Address) -> None:
    """Write K of token `token + counter` to its bank; `counter` stays below what the row address still has room for.

    A past-only cache's K has been rounded and is written last; KIVI's goes to the window, as it is.
    """
    if at.cache.newest_exact:
        b.add(Mark("append"))
        _write_key(b, at, token, counter)
        return
    b.add(Wait("asic"))
    b.add(Mark("append"))
    if at.cache.groups:
        _write_key(b, at.window, token % at.cache.groups.tokens, counter)
        return
    if at.quantised:
        quantise_new(b, at)
        b.add(Wait("asic"))
    _write_key(b, at, token, counter)


def quantise_new(b: Builder, at: Attention) -> None:
    work = asic.quantise_work(2 * at.cache.kv_heads * at.cache.head_dim)
    b.add(Start("asic", "quantise kv", at.target.asic.time_ps(work)))


def _write_key(b: Builder, at: Attention, token: int, counter: Address) -> None:
    record, turn = divmod(token // at.target.banks, at.cache.team)
    if turn != at.member:
        return
    bank = token % at.target.banks + counter
    if at.cache.joined:
        columns = at.slots * at.cache.head_columns
        _write_keys(b, at, bank, at.rows(at.cache.keys.first_row), record, columns, at.area + KEYS)
    else:
        with b.loop(at.slots) as slot:
            row = at.rows(at.cache.keys.first_row) + slot * at.cache.key_rows
            columns = at.cache.head_columns
            _write_keys(b, at, bank, row, record, columns, at.area + KEYS + slot * columns)


def _write_keys(
    b: Builder, at: Attention, bank: Address, row: Address, record: int, columns: int, data: Address
) -> None:
    row += key_packing(at).place(record)[0]
    b.command("ACT", bank=bank, row=row)
    _write_columns(b, at, bank, row, record, columns, data)
    b.command("PRE", bank=bank)


def _write_columns(
    b: Builder, at: Attention, bank: Address, row: Address, record: int, columns: int, data: Address
) -> None:
    column = key_packing(at).place(record)[1]
    with b.loop(columns) as c:
        b.command("WR", bank=bank, row=row, column=column + c, data=data + c)


def append_values(b: Builder, at: Attention, token: int) -> None:
    """Write V of a token: one element in each of many rows. Elements smaller than a byte are read first."""
    if at.cache.groups:
        append_values(b, at.window, token % at.cache.groups.tokens)
        return
    cache, block = at.cache, token // at.cache.v_block
    column = token % cache.v_block // cache.use.values
    row = at.rows(cache.values.first_row + block * cache.v_rows)
    full, rest = divmod(cache.v_local, cache.v_dims)
    with b.loop(at.slots) as slot:
        base = row + slot * (cache.v_blocks * cache.v_rows)
        data = at.area + VALUES + slot * (cache.v_local * at.target.banks)
        with b.loop(full) as r:
            _write_values(b, at, base + r, cache.v_dims, column, data + r * (cache.v_dims * at.target.banks))
        if rest:
            _write_values(b, at, base + full, rest, column, data + full * cache.v_dims * at.target.banks)
    if at.quantised:
        _append_scales(b, at, token)


def write_key_columns(b: Builder, at: Attention, row: Address, slot: Address) -> None:
    """K of the newest token into the open row of its record: of one slot, or of all where they lie side by side."""
    assert at.new
    token, counter = at.new
    record, turn = divmod(token // at.target.banks, at.cache.team)
    if turn != at.member:
        return
    columns = at.cache.head_columns * (at.slots if at.cache.joined else 1)
    data = KEYS + (0 if at.cache.joined else slot * columns)
    _write_columns(b, at, token % at.target.banks + counter, row, record, columns, data)


def write_value_columns(b: Builder, at: Attention, slot: Address, row: Address, first: Address, dims: int) -> None:
    """V of the newest token, dimensions of every bank from `first` on, into their open row."""
    assert at.new
    column = at.new[0] % at.cache.v_block // at.cache.use.values
    data = VALUES + slot * (at.cache.v_local * at.target.banks) + first * at.target.banks
    _write_elements(b, at, row, dims, column, data)


def _write_values(b: Builder, at: Attention, row: Address, dims: int, column: int, data: Address) -> None:
    b.command("ACT16", row=row)
    _write_elements(b, at, row, dims, column, data)
    b.command("PREA")


def _write_elements(b: Builder, at: Attention, row: Address, dims: int, column: int, data: Address) -> None:
    width, banks = at.cache.v_packing.columns, at.target.banks
    below_a_byte = at.cache.use.values > at.target.column_bytes
    for name in ("RD", "WR") if below_a_byte else ("WR",):
        with b.loop(dims) as d, b.loop(banks) as bank:
            b.command(name, bank=bank, row=row, column=d * width + column, data=data + d * banks + bank)


def _append_scales(b: Builder, at: Attention, token: int) -> None:
    """Scale and offset of K and V of one token: part of a burst for each slot."""
    assert at.cache.scales is not None
    burst, turn = divmod(token * at.cache.scale_bytes // at.target.column_bytes, at.cache.team)
    if turn != at.member:
        return
    columns, bank = divmod(burst, at.target.banks)
    offset, column = divmod(columns, at.target.columns)
    with b.loop(at.slots) as slot:
        row = at.rows(at.cache.scales.first_row + offset) + slot * scale_rows(at)
        b.command("ACT", bank=bank, row=row)
        b.command("WR", bank=bank, row=row, column=column, data=CACHE_SCALES + slot)
        b.command("PRE", bank=bank)

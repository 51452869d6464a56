"""Attention of one head on AttAcc, command by command, with units at the banks or at the bank groups.

Per pseudo-channel: the query goes to the units, which multiply it with K; the scores leave for the softmax unit in the
buffer die and come back, and the units multiply them with V. K and V fill whole rows, read column by column. Units at
the banks work on all banks at once (ACT16, MACAB). Units at the bank groups work on one bank of each group after the
other (ACT4, MAC4B); the next bank's row opens while this one is read.

Order and counts as in AttAcc's traces (Park et al., ASPLOS 2024); all pseudo-channels of a head do the same.
"""

from __future__ import annotations

from typing import Literal

from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine
from nearbank.sim.program import Builder, Index, Program, Stream
from nearbank.units import ceil_div

Level = Literal["bank", "bank group"]
_SHARES = 4  # a head lies in two pseudo-channels of two stack ids, which do the same
_LANES = 16
_SIDS = 2
_V_ROW = 8192
_BANKS_IN_A_RUN = 4
_LEAD = 4  # MACs between closing a bank and opening its next row


def attention(machine: Machine, tokens: int, head_size: int, level: Level) -> Program:
    """One head over `tokens` cached tokens of `head_size` fp16 numbers, on the first pseudo-channel.

    Raises `NearbankError` where K does not fill whole rows, or on a machine without the commands.
    """
    if machine.standard != "attacc":
        raise NearbankError(f"machine {machine.name}: standard {machine.standard}; expected attacc")
    organization = machine.organization
    groups = organization.bank_groups
    units = organization.banks if level == "bank" else groups
    per_row = organization.columns * (1 if level == "bank" else _BANKS_IN_A_RUN)
    steps = tokens * head_size // (_LANES * _SHARES * units)
    if steps < 2 * per_row or steps % per_row or tokens * head_size != steps * _LANES * _SHARES * units:
        raise NearbankError(
            f"attention over {tokens} tokens of {head_size}: expected a multiple of "
            f"{_LANES * _SHARES * units * per_row} numbers, whole rows, and at least two"
        )
    rows = steps // per_row
    scored, weighted = _SIDS * groups, _SIDS * (groups if level == "bank" else 1)
    phase = _bank_phase if level == "bank" else _group_phase
    b = Builder()
    b.command("ACT16" if level == "bank" else "ACT4", row=0)
    _moves(b, "WRGB", ceil_div(head_size, _LANES))
    phase(b, rows, organization.columns, 0, scored)
    b.command("ACT16" if level == "bank" else "ACT4", row=_V_ROW)
    _moves(b, "WRGB", _scores(tokens, groups))
    phase(b, rows, organization.columns, _V_ROW, weighted)
    return Program(f"attention {tokens} x {head_size}, {level}", (Stream((0,), b.body()),))


def _scores(tokens: int, groups: int) -> int:
    """Columns of scores that come back to one pseudo-channel: each bank group of each stack id gets its own."""
    return _SIDS * groups * ceil_div(tokens, _SHARES * groups * _LANES)


def _moves(b: Builder, name: str, count: int) -> None:
    with b.loop(count) as column:
        b.command(name, data=column)


def _bank_phase(b: Builder, rows: int, columns: int, first: int, reads: int) -> None:
    """Rows of all banks, the first already open; results leave while the next row opens."""
    with b.loop(rows - 1) as row:
        _macs(b, "MACAB", 0, first + row, 0, columns)
        _moves(b, "RDMAC", reads // 2)
        b.command("PREA")
        _moves(b, "RDMAC", reads - reads // 2)
        b.command("ACT16", row=first + row + 1)
    _macs(b, "MACAB", 0, first + rows - 1, 0, columns)
    b.command("PREA")
    _moves(b, "RDMAC", reads)


def _group_phase(b: Builder, rows: int, columns: int, first: int, reads: int) -> None:
    """A row of each bank of the groups in turn, the first bank's already open, and so on with the next rows.

    The results of the banks' last rows leave between the MACs on the first bank's next row.
    """
    with b.loop(rows - 1) as row:
        for number in range(_BANKS_IN_A_RUN):
            _group_row(b, number, first + row, columns, reads if number == 0 else 0)
    for number in range(_BANKS_IN_A_RUN - 1):
        _group_row(b, number, Index(first + rows - 1), columns, reads if number == 0 else 0)
    _macs(b, "MAC4B", 4 * (_BANKS_IN_A_RUN - 1), first + rows - 1, 0, columns)
    _moves(b, "RDMAC", reads)
    b.command("PREA")


def _group_row(b: Builder, number: int, row: Index, columns: int, reads: int) -> None:
    """MACs over one bank's row; early on the next bank is closed and opened."""
    bank, after = 4 * number, 4 * ((number + 1) % _BANKS_IN_A_RUN)
    _macs(b, "MAC4B", bank, row, 0, 1)
    b.command("PRE4", bank=after)
    _macs(b, "MAC4B", bank, row, 1, _LEAD)
    b.command("ACT4", bank=after, row=row + (after == 0))
    done = 1 + _LEAD
    with b.loop(reads) as column:
        b.command("MAC4B", bank=bank, row=row, column=column + done, format="fp16")
        b.command("RDMAC", data=column)
    _macs(b, "MAC4B", bank, row, done + reads, columns - done - reads)


def _macs(b: Builder, name: str, bank: int, row: Index | int, first: int, count: int) -> None:
    with b.loop(count) as column:
        b.command(name, bank=bank, row=row, column=column + first, format="fp16")

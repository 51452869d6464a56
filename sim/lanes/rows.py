"""Which rows are open: what a command needs of them and does to them; hits and misses."""

import numpy as np

from nearbank.compiled import compiled_part
from nearbank.sim import vm
from nearbank.sim.lanes.state import mask_of, spec_of
from nearbank.sim.pointers import popcount


@compiled_part
def access(t, m, command, bank, row):  # type: ignore[no-untyped-def]
    """Whether the rows are as the command needs them; a column command's hit or miss is counted."""
    mask = mask_of(t, command, bank)
    if t[spec_of(command) + vm.NEED] == vm.ROW_CLOSED:
        return vm.OPEN_ROW if m[vm.OPEN] & mask else vm.FINE
    if m[vm.OPEN] & mask != mask:
        return vm.CLOSED_ROW
    if m[vm.SAME_ROW] != row and other_row(t, m, command, bank, row):
        return vm.WRONG_ROW
    missed = mask & ~m[vm.TOUCHED]
    if missed == 0:
        m[vm.COUNT + vm.ROW_HITS] += 1
        return vm.FINE
    m[vm.COUNT + vm.ROW_MISSES] += 1
    m[vm.COUNT + vm.BANK_MISSES] += popcount(missed)
    m[vm.TOUCHED] |= mask
    return vm.FINE


@compiled_part
def other_row(t, m, command, bank, row):  # type: ignore[no-untyped-def]
    """Whether one of the banks that the command reaches holds another row than this."""
    first = t[vm.ROWS] + bank
    other = np.int64(0)
    for b in range(first, first + t[spec_of(command) + vm.REACH]):
        other |= m[b] ^ row
    return other != 0


@compiled_part
def move_rows(t, m, command, bank, row):  # type: ignore[no-untyped-def]
    mask = mask_of(t, command, bank)
    spec = spec_of(command)
    m[vm.TOUCHED] &= ~mask
    if t[spec + vm.EFFECT] == vm.CLOSES:
        m[vm.OPEN] &= ~mask
        m[vm.OPEN_BANKS] = popcount(m[vm.OPEN])
        return
    m[vm.OPEN] |= mask
    m[vm.OPEN_BANKS] = popcount(m[vm.OPEN])
    m[vm.SAME_ROW] = row if t[spec + vm.REACH] == t[vm.BANKS] else -1
    for b in range(bank, bank + t[spec + vm.REACH]):
        m[t[vm.ROWS] + b] = row

"""A refresh and its own commands; `sim.rules.RefreshPlan` defines it."""

import numpy as np

from nearbank.compiled import compiled_part
from nearbank.sim import vm
from nearbank.sim.lanes.issue import earliest, issue, note
from nearbank.sim.lanes.profile import keep_profile
from nearbank.sim.lanes.rows import other_row
from nearbank.sim.lanes.state import mask_of, spec_of


@compiled_part
def refresh(t, m, record):  # type: ignore[no-untyped-def]
    """Close the region's open rows, refresh it, open the same rows again: `sim.rules.RefreshPlan` defines it."""
    first = m[vm.NEXT_REGION]
    before = m[vm.OPEN]
    for bank in range(first, first + t[vm.REGION], t[spec_of(t[vm.PRECHARGE]) + vm.REACH]):
        if m[vm.OPEN] & mask_of(t, t[vm.PRECHARGE], bank):
            _control(t, m, record, t[vm.PRECHARGE], bank, np.int64(0))
    for bank in range(first, first + t[vm.REGION], t[spec_of(t[vm.REFRESH]) + vm.REACH]):
        _control(t, m, record, t[vm.REFRESH], bank, np.int64(0))
        m[vm.COUNT + vm.REFRESHES] += 1
    _reopen(t, m, record, before & ~m[vm.OPEN])
    m[vm.NEXT_REGION] = (first + t[vm.REGION]) % t[vm.BANKS]
    m[vm.DUE] += t[vm.INTERVAL]


@compiled_part
def _control(t, m, record, command, bank, row):  # type: ignore[no-untyped-def]
    """Issue one of the refresh's own commands, as early as it may go but not before the refresh is due."""
    start = max(m[vm.PREVIOUS] + 1, m[vm.DUE])
    cycle, _ = earliest(t, m, command, bank, start, np.int64(vm.REFRESH_REASON))
    keep_profile(t, m, cycle, np.int64(vm.REFRESH_REASON))
    issue(t, m, command, bank, row, cycle, np.int64(vm.REFRESH_REASON))
    m[vm.SLOTS + t[spec_of(command) + vm.SLOT] + (bank >> t[vm.GROUP_SHIFT])] += 1
    note(record, m, command, bank, row, np.int64(0), t[spec_of(command) + vm.SLOT], cycle)


@compiled_part
def _reopen(t, m, record, closed):  # type: ignore[no-untyped-def]
    rows = t[vm.ROWS]
    same = t[vm.ACTIVATE_ALL] >= 0
    for bank in range(t[vm.BANKS]):
        if not (closed >> bank) & 1 or m[rows + bank] != m[rows]:
            same = False
    if same:
        _control(t, m, record, t[vm.ACTIVATE_ALL], np.int64(0), m[rows])
        return
    left = closed
    for bank in range(t[vm.BANKS]):
        if (left >> bank) & 1:
            left = _reopen_one(t, m, record, left, bank)


@compiled_part
def _reopen_one(t, m, record, left, bank):  # type: ignore[no-untyped-def]
    """Open the bank, with its rank if all of that may be and had the same row; returns what is left to open."""
    command = t[vm.ACTIVATE]
    if t[vm.ACTIVATE_RANK] >= 0 and bank % t[spec_of(t[vm.ACTIVATE_RANK]) + vm.REACH] == 0:
        mask = mask_of(t, t[vm.ACTIVATE_RANK], bank)
        if left & mask == mask and not other_row(t, m, t[vm.ACTIVATE_RANK], bank, m[t[vm.ROWS] + bank]):
            command = t[vm.ACTIVATE_RANK]
    row = m[t[vm.ROWS] + bank]
    _control(t, m, record, command, bank, row)
    return left & ~mask_of(t, command, bank)

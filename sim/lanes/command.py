"""A program's command, after the refreshes that come first."""

import numpy as np

from nearbank.compiled import compiled_part
from nearbank.sim import vm
from nearbank.sim.lanes.issue import earliest, issue, note
from nearbank.sim.lanes.profile import keep_profile
from nearbank.sim.lanes.refresh import refresh
from nearbank.sim.lanes.rows import access
from nearbank.sim.lanes.state import affine, spec_of


@compiled_part
def play_command(t, m, record, code, pc):  # type: ignore[no-untyped-def]
    """Issue one command of the program, after the refreshes that come first."""
    command = code[pc * vm.WIDTH + vm.A]
    bank = affine(code, pc, vm.BANK, vm.BANK_STRIDES, m) if code[pc * vm.WIDTH + vm.HAS_BANK] else np.int64(0)
    row = affine(code, pc, vm.ROW, vm.ROW_STRIDES, m) if code[pc * vm.WIDTH + vm.HAS_ROW] else np.int64(0)
    refreshes = 0
    while True:
        start = m[vm.PREVIOUS] + 1
        reason = np.int64(vm.END_REASON)
        if m[vm.FLOOR] > start:
            start = m[vm.FLOOR]
            reason = vm.UNIT_REASON + m[vm.FLOOR_UNIT]
        cycle, reason = earliest(t, m, command, bank, start, reason)
        if cycle < m[vm.DUE]:
            break
        refreshes += m[vm.FLOOR] <= m[vm.DUE]
        if refreshes > vm.MANY_REFRESHES:
            return vm.STUCK
        refresh(t, m, record)
    if cycle >= m[vm.EDGE]:
        if cycle >= t[vm.HORIZON]:
            return vm.OVERFLOW
        keep_profile(t, m, cycle, reason)
    if t[spec_of(command) + vm.NEED] != vm.ROW_ANY:
        status = access(t, m, command, bank, row)
        if status != vm.FINE:
            return status
    issue(t, m, command, bank, row, cycle, reason)
    m[vm.SLOTS + code[pc * vm.WIDTH + vm.B] + (bank >> t[vm.GROUP_SHIFT])] += 1
    if record[0] < record[1]:
        column = affine(code, pc, vm.COLUMN, vm.COLUMN_STRIDES, m)
        note(record, m, command, bank, row, column, code[pc * vm.WIDTH + vm.B], cycle)
    return vm.FINE

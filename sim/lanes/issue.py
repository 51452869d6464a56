"""One command on the bus: the first cycle that every rule allows, what its issue leaves behind, the record of it."""

from nearbank.compiled import compiled_part
from nearbank.sim import vm
from nearbank.sim.lanes.rows import move_rows
from nearbank.sim.lanes.state import spec_of


@compiled_part(forceinline=True)
def earliest(t, m, command, bank, start, reason):  # type: ignore[no-untyped-def]
    """The first cycle from `start` on at which every rule lets the command go, and which one held it longest."""
    spec = spec_of(command)
    p = t[spec + vm.PULLS]
    while p < t[spec + vm.PULLS_END]:
        entry = t[p + vm.PULL_BASE]
        if t[p + vm.PULL_BANKED]:
            scope = (bank >> t[p + vm.PULL_SHIFT]) ^ t[p + vm.PULL_FLIP]
            entry += scope * t[p + vm.PULL_STRIDE]
        bound = m[entry] + t[p + vm.PULL_DELAY]
        if bound > start:
            start = bound
            reason = t[p + vm.PULL_REASON]
        p += vm.PULL_WIDTH
    if t[spec + vm.ON_CLOCK] & (start + 1):
        start += 1
        reason = vm.EDGE_REASON if reason == vm.END_REASON else reason
    return start, reason


@compiled_part(forceinline=True)
def issue(t, m, command, bank, row, cycle, reason):  # type: ignore[no-untyped-def]
    """Put the command on the bus at `cycle`: idle time, last issues, row state."""
    idle = cycle - m[vm.PREVIOUS] - 1
    if idle:
        m[t[vm.REASONS] + reason] += idle
    if m[vm.OPEN] != 0:
        m[vm.COUNT + vm.OPEN_CYCLES] += idle + 1
        m[vm.COUNT + vm.OPEN_BANK_CYCLES] += (idle + 1) * m[vm.OPEN_BANKS]
    m[vm.PREVIOUS] = cycle
    spec = spec_of(command)
    p = t[spec + vm.PUSHES]
    while p < t[spec + vm.PUSHES_END]:
        span = t[p + vm.PUSH_SPAN]
        entry = t[p + vm.PUSH_BASE] + (bank >> t[p + vm.PUSH_SHIFT]) * span
        if span == 1:
            m[entry] = cycle
        else:
            _push_window(m, entry, span, t[p + vm.PUSH_SCOPES], cycle)
        p += vm.PUSH_WIDTH
    if t[spec + vm.EFFECT] != vm.NO_EFFECT:
        move_rows(t, m, command, bank, row)


@compiled_part
def _push_window(m, entry, span, scopes, cycle):  # type: ignore[no-untyped-def]
    for scope in range(scopes):
        newest = entry + scope * span
        for i in range(newest + span - 1, newest, -1):
            m[i] = m[i - 1]
        m[newest] = cycle


@compiled_part
def note(record, m, command, bank, row, column, slot, cycle):  # type: ignore[no-untyped-def]
    """Record the command if it falls into the window that stands before the recorded ones."""
    if record[0] <= cycle < record[1]:
        m[vm.RECORDED] += 1
        at = m[vm.RECORDED] * vm.RECORD_WIDTH
        record[at] = cycle
        record[at + 1] = command
        record[at + 2] = bank
        record[at + 3] = row
        record[at + 4] = column
        record[at + 5] = slot

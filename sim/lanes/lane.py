"""One lane's way from one meeting to the next."""

import numpy as np

from nearbank.compiled import compiled_part
from nearbank.sim import vm
from nearbank.sim.lanes.command import play_command
from nearbank.sim.lanes.rounds import skip
from nearbank.sim.lanes.state import now_of
from nearbank.sim.lanes.stretch import begin, keep


@compiled_part
def run(t, m, record, code, kept, keeps):  # type: ignore[no-untyped-def]
    """Step one lane to its next meeting; the lane's PC is left on it."""
    pc = m[vm.PC]
    fresh = keeps
    new, h, origin = np.int64(-1), np.int64(0), np.int64(0)  # the stretch that will be kept: its first row, hash, rows
    while True:
        row = pc * vm.WIDTH
        op = code[row + vm.OP]
        if op == vm.COMMAND:
            status = play_command(t, m, record, code, pc)
            if status != vm.FINE:
                m[vm.STATUS] = status
                break
            if fresh and code[row + vm.STRETCH]:
                again, h, origin = begin(t, m, code, pc, kept)
                if again:
                    pc += code[row + vm.STRETCH_ROWS] - 1
                else:
                    new = pc
            fresh = False
            pc += 1
        elif op == vm.LOOP:
            if code[row + vm.MEETS]:
                if new >= 0:
                    keep(t, m, kept, h, code[new * vm.WIDTH + vm.STRETCH_BODY], origin)
                    new = np.int64(-1)
                fresh = keeps
            _enter(t, m, code, row)
            pc += 1
        elif op == vm.END and not code[row + vm.MEETS]:
            pc = _next_round(t, m, record, code, pc)
        else:
            break
    if new >= 0 and m[vm.STATUS] == vm.FINE:
        keep(t, m, kept, h, code[new * vm.WIDTH + vm.STRETCH_BODY], origin)
    m[vm.PC] = pc


@compiled_part
def _enter(t, m, code, row):  # type: ignore[no-untyped-def]
    """Begin a loop's first round, with nothing remembered of rounds before."""
    depth = code[row + vm.DEPTH]
    remembered = t[vm.SNAP] + depth * t[vm.SNAP_STRIDE]
    m[vm.COUNTER + depth] = code[row + vm.B]
    m[remembered + vm.S_STORED] = 0
    m[remembered + vm.S_BEGAN] = now_of(m)


@compiled_part
def _next_round(t, m, record, code, pc):  # type: ignore[no-untyped-def]
    """At the end of a loop's round, past as many more as can be skipped: the row to go on with."""
    row = pc * vm.WIDTH
    counter = vm.COUNTER + code[row + vm.DEPTH]
    m[counter] += 1
    left = code[row + vm.A] - m[counter]
    if left > 0 and t[vm.SKIPS] and code[row + vm.C] >= 0:
        skipped = skip(t, m, record, code, pc, left)
        m[counter] += skipped
        left -= skipped
    return pc - code[row + vm.B] if left > 0 else pc + 1

"""What happens where all lanes meet: jobs, waits, labels, and the ends of loops that hold one of those."""

from nearbank.compiled import compiled_part
from nearbank.sim import vm
from nearbank.sim.lanes.follow import part_all
from nearbank.sim.lanes.rounds import advance, may_skip, rounds_until, store
from nearbank.sim.lanes.shared import (
    advance_shared,
    flush_label,
    start_job,
    store_shared,
    units_moved,
    wait_for,
    wall_of,
)
from nearbank.sim.lanes.state import now_of
from nearbank.sim.pointers import pointer


@compiled_part
def meet(t, memory, g, active, code, record, counts):  # type: ignore[no-untyped-def]
    """What happens at the row on which all lanes stand."""
    row = code[memory[0, vm.PC]]
    if row[vm.OP] == vm.END:
        _loop_end(t, memory, g, active, code, record, counts)
        return
    if row[vm.OP] == vm.START:
        start_job(t, memory, g, active, row[vm.A], row[vm.B], row[vm.C])
    elif row[vm.OP] == vm.WAIT:
        wait_for(t, memory, g, active, row[vm.A])
    else:
        flush_label(g, wall_of(memory, active))
        g[vm.G_LABEL] = row[vm.A]
    for lane in range(active):
        memory[lane, vm.PC] += 1


@compiled_part
def _loop_end(t, memory, g, active, code, record, counts):  # type: ignore[no-untyped-def]
    """All lanes stand at the end of the same loop: go round again, skip ahead, or leave it."""
    depth = code[memory[0, vm.PC], vm.DEPTH]
    done = memory[0, vm.COUNTER + depth] + 1
    left = code[memory[0, vm.PC], vm.A] - done
    regular = not _is_long(t, pointer(memory, 0), depth) and left > 0 and t[vm.SKIPS] != 0
    for lane in range(active):
        regular = regular and code[memory[lane, vm.PC], vm.C] >= 0
    if not regular:
        for lane in range(active):
            memory[lane, t[vm.SNAP] + depth * t[vm.SNAP_STRIDE] + vm.S_STORED] = 0
    else:
        part_all(t, memory, active, counts)
        skipped = _joint_skip(t, memory, g, active, code, record, depth, left)
        done += skipped
        left -= skipped
    for lane in range(active):
        pc = memory[lane, vm.PC]
        memory[lane, vm.COUNTER + depth] = done
        memory[lane, vm.PC] = pc - code[pc, vm.B] if left > 0 else pc + 1


@compiled_part
def _is_long(t, m, depth):  # type: ignore[no-untyped-def]
    """Whether the round took so long that two and one more between two refreshes are out of the question."""
    began = t[vm.SNAP] + depth * t[vm.SNAP_STRIDE] + vm.S_BEGAN
    now = now_of(m)
    length = now - m[began]
    m[began] = now
    return t[vm.INTERVAL] > 0 and 2 * length > t[vm.INTERVAL]


@compiled_part
def _joint_skip(t, memory, g, active, code, record, depth, left):  # type: ignore[no-untyped-def]
    """`_skip` for a loop in which lanes meet: all of them, the units and the label must be in the same state."""
    wall = wall_of(memory, active)
    flush_label(g, wall)
    stored = t[vm.SNAP] + depth * t[vm.SNAP_STRIDE] + vm.S_NOW
    period = now_of(pointer(memory, 0)) - memory[0, stored]
    rounds = left
    for lane in range(active):
        m = pointer(memory, lane)
        if now_of(m) - m[stored] != period or not may_skip(t, m, pointer(code, 0), m[vm.PC], g[vm.G_LABEL]):
            rounds = 0
        else:
            rounds = min(rounds, rounds_until(t, m, pointer(record, lane), now_of(m), period))
    if rounds > 0 and units_moved(t, g, depth, wall):
        rounds = 0
    for lane in range(active):
        m = pointer(memory, lane)
        if rounds > 0:
            advance(t, m, depth, code[m[vm.PC], vm.C], code[m[vm.PC], vm.MOVES_ROWS], rounds, period)
        store(t, m, depth, code[m[vm.PC], vm.C], code[m[vm.PC], vm.MOVES_ROWS], g[vm.G_LABEL])
    if rounds > 0:
        advance_shared(t, g, depth, wall, rounds, period)
    store_shared(t, g, depth)
    return rounds

"""A whole program: lanes step from meeting to meeting, up to the end that they all wait for."""

import numpy as np

from nearbank.compiled import compiled, compiled_part
from nearbank.sim import vm
from nearbank.sim.lanes.follow import pair, part_all
from nearbank.sim.lanes.lane import run
from nearbank.sim.lanes.meeting import meet
from nearbank.sim.lanes.passage import take_passages
from nearbank.sim.lanes.profile import keep_profile
from nearbank.sim.lanes.refresh import refresh
from nearbank.sim.lanes.shared import data_ready, flush_label, wall_of
from nearbank.sim.pointers import pointer


@compiled
def play(tables, memory, g, entry, code, twin, through, record, kept, passed):  # type: ignore[no-untyped-def]
    """Play one program, lane i running the code from row entry[i] on; returns the end cycle, or -1 - lane.

    `twin` is what `twins` says of the code, `through` what `nearbank.sim.passages` does.

    Lanes without an entry are channels that the program leaves alone: they are only refreshed. A negative result
    means that this lane stopped on an error, with its STATUS and PC saying which and where.
    """
    t = pointer(tables, 0)
    active = entry.shape[0]
    for lane in range(active):
        memory[lane, vm.PC] = entry[lane]
    g[vm.G_LABEL] = 0
    whole = t[vm.SKIPS] != 0 and not t[vm.ROOM] and record.shape[1] == 1
    pairs = whole and active > 1
    keeps = whole and t[vm.KEPT] > 0
    counts = np.empty((active, t[vm.COUNT_SIZE]), dtype=np.int64)
    ahead = np.empty(active, dtype=np.int64)
    passes = keeps and through.shape[0] > 0 and passed[1] > 0
    played = np.zeros(vm.PP_SIZE, dtype=np.int64)
    while active > 0:
        if pairs:
            pair(t, memory, active, twin, counts, ahead)
        for lane in range(active):
            if memory[lane, vm.FOLLOWS]:
                memory[lane, vm.PC] = memory[memory[lane, vm.FOLLOWS] - 1, vm.PC] + ahead[lane]
                continue
            run(t, pointer(memory, lane), pointer(record, lane), pointer(code, 0), pointer(kept, 0), keeps)
            if memory[lane, vm.STATUS] != vm.FINE:
                return np.int64(-1 - lane)
        if code[memory[0, vm.PC], vm.OP] == vm.HALT:
            part_all(t, memory, active, counts)
            break
        if passes:
            take_passages(t, memory, g, active, twin, counts, ahead, pointer(through, 0), passed, pointer(played, 0))
        meet(t, memory, g, active, code, record, counts)
    if wall_of(memory, memory.shape[0]) >= t[vm.HORIZON]:
        memory[0, vm.STATUS] = vm.OVERFLOW
        return np.int64(-1)
    return _finish(t, memory, g, record)


@compiled_part
def _finish(t, memory, g, record):  # type: ignore[no-untyped-def]
    """The program's end: data there, units idle, every refresh due before then done; all lanes wait for it."""
    lanes = memory.shape[0]
    end = max(wall_of(memory, lanes), data_ready(t, memory, lanes))
    for unit in range(vm.MAX_UNITS):
        end = max(end, -(-g[vm.G_UNITS + unit] // t[vm.TCK_PS]))
    settled = False
    while not settled:
        settled = True
        for lane in range(lanes):
            late = 0
            while memory[lane, vm.DUE] < end:
                refresh(t, pointer(memory, lane), pointer(record, lane))
                settled = False
                late += memory[lane, vm.PREVIOUS] >= memory[lane, vm.DUE]
                if late > vm.MANY_REFRESHES:
                    memory[lane, vm.STATUS] = vm.STUCK
                    return np.int64(-1 - lane)
            end = max(end, memory[lane, vm.PREVIOUS] + 1)
    for lane in range(lanes):
        m = pointer(memory, lane)
        keep_profile(t, m, end - 1, np.int64(vm.END_REASON))
        idle = end - 1 - m[vm.PREVIOUS]
        m[t[vm.REASONS] + vm.END_REASON] += idle
        m[vm.COUNT + vm.OPEN_BANK_CYCLES] += idle * m[vm.OPEN_BANKS]
        if m[vm.OPEN] != 0:
            m[vm.COUNT + vm.OPEN_CYCLES] += idle
        m[vm.PREVIOUS] = end - 1
        m[vm.FLOOR] = end
    flush_label(g, end)
    return end

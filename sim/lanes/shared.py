"""What all lanes share: the wall clock, units beside the memory and their jobs, the label that time counts towards."""

import numpy as np

from nearbank.compiled import compiled_part
from nearbank.sim import vm
from nearbank.sim.lanes.state import now_of
from nearbank.sim.pointers import pointer


@compiled_part
def wall_of(memory, lanes):  # type: ignore[no-untyped-def]
    """The cycle that the last of the lanes has come to."""
    wall = np.int64(0)
    for lane in range(lanes):
        wall = max(wall, now_of(pointer(memory, lane)))
    return wall


@compiled_part
def data_ready(t, memory, lanes):  # type: ignore[no-untyped-def]
    """The cycle by which the data of all commands issued so far are there."""
    ready = np.int64(0)
    for lane in range(lanes):
        for k in range(t[vm.DATA_COUNT]):
            d = t[vm.DATA] + 2 * k
            ready = max(ready, memory[lane, t[vm.LAST] + t[d]] + t[d + 1])
    return ready


@compiled_part
def flush_label(g, wall):  # type: ignore[no-untyped-def]
    """Count the time since the last mark towards its label."""
    g[vm.G_BUSY + 2 * g[vm.G_JOBS] + g[vm.G_LABEL]] += wall - g[vm.G_MARKED]
    g[vm.G_MARKED] = wall


@compiled_part
def start_job(t, memory, g, active, unit, job, duration_ps):  # type: ignore[no-untyped-def]
    begin = max(wall_of(memory, active), data_ready(t, memory, active)) * t[vm.TCK_PS]
    g[vm.G_UNITS + unit] = max(begin, g[vm.G_UNITS + unit]) + duration_ps
    g[vm.G_BUSY + 2 * job] += duration_ps
    g[vm.G_BUSY + 2 * job + 1] += 1


@compiled_part
def wait_for(t, memory, g, active, unit):  # type: ignore[no-untyped-def]
    free = -(-g[vm.G_UNITS + unit] // t[vm.TCK_PS])
    for lane in range(active):
        if free > memory[lane, vm.FLOOR]:
            memory[lane, vm.FLOOR] = free
            memory[lane, vm.FLOOR_UNIT] = unit


@compiled_part
def _shared_snap(g, depth):  # type: ignore[no-untyped-def]
    size = vm.MAX_UNITS + 2 * g[vm.G_JOBS] + g[vm.G_LABELS]
    return vm.G_UNITS + size * (1 + depth)


@compiled_part
def units_moved(t, g, depth, wall):  # type: ignore[no-untyped-def]
    """Whether a unit is busy for another while, seen from now, than a round ago."""
    s = _shared_snap(g, depth)
    moved = False
    for unit in range(vm.MAX_UNITS):
        moved = moved or max(g[vm.G_UNITS + unit] - wall * t[vm.TCK_PS], 0) != g[s + unit]
    return moved


@compiled_part
def store_shared(t, g, depth):  # type: ignore[no-untyped-def]
    s = _shared_snap(g, depth)
    for unit in range(vm.MAX_UNITS):
        g[s + unit] = max(g[vm.G_UNITS + unit] - g[vm.G_MARKED] * t[vm.TCK_PS], 0)
    for i in range(vm.MAX_UNITS, vm.MAX_UNITS + 2 * g[vm.G_JOBS] + g[vm.G_LABELS]):
        g[s + i] = g[vm.G_UNITS + i]


@compiled_part
def advance_shared(t, g, depth, wall, rounds, period):  # type: ignore[no-untyped-def]
    s = _shared_snap(g, depth)
    for unit in range(vm.MAX_UNITS):
        if g[vm.G_UNITS + unit] > wall * t[vm.TCK_PS]:
            g[vm.G_UNITS + unit] += rounds * period * t[vm.TCK_PS]
    for i in range(vm.MAX_UNITS, vm.MAX_UNITS + 2 * g[vm.G_JOBS] + g[vm.G_LABELS]):
        g[vm.G_UNITS + i] += (g[vm.G_UNITS + i] - g[s + i]) * rounds
    g[vm.G_MARKED] += rounds * period

"""Lanes that have come to the same state and read the same code follow the first of them, which alone is played."""

import numpy as np

from nearbank.compiled import compiled_part
from nearbank.sim import vm
from nearbank.sim.lanes.state import now_of
from nearbank.sim.pointers import pointer


@compiled_part
def _same_state(t, a, b):  # type: ignore[no-untyped-def]
    """Whether two lanes will do the same at the same cycles, given the same commands."""
    if a[vm.PREVIOUS] != b[vm.PREVIOUS] or a[vm.DUE] != b[vm.DUE] or a[vm.NEXT_REGION] != b[vm.NEXT_REGION]:
        return False
    now = now_of(a)
    if now != now_of(b) or (now > a[vm.PREVIOUS] + 1 and a[vm.FLOOR_UNIT] != b[vm.FLOOR_UNIT]):
        return False
    if (
        a[vm.OPEN] != b[vm.OPEN]
        or a[vm.TOUCHED] != b[vm.TOUCHED]
        or (a[vm.OPEN] != 0 and a[vm.SAME_ROW] != b[vm.SAME_ROW])
    ):
        return False
    for i in range(t[vm.BANKS]):
        if (a[vm.OPEN] >> i) & 1 and a[t[vm.ROWS] + i] != b[t[vm.ROWS] + i]:
            return False
    for i in range(t[vm.ROWS] - t[vm.LAST]):
        one, other = a[t[vm.LAST] + i], b[t[vm.LAST] + i]
        if one != other and a[vm.PREVIOUS] + 1 - max(one, other) < t[t[vm.AGES] + i]:
            return False
    return True


@compiled_part
def _follow(t, a, b, leader, counts):  # type: ignore[no-untyped-def]
    """Lane `b` is from now on like `a`; `counts` keeps the counters that `a` had before.

    What the two remember of rounds before now is the same only where all last issues are.
    """
    b[vm.FOLLOWS] = leader + 1
    for i in range(t[vm.COUNT_SIZE]):
        counts[i] = a[vm.COUNT + i]
    for i in range(t[vm.LAST], t[vm.ROWS]):
        if a[i] != b[i]:
            for depth in range(vm.MAX_DEPTH):
                b[t[vm.SNAP] + depth * t[vm.SNAP_STRIDE] + vm.S_STORED] = 0
            break


@compiled_part
def _part(t, a, b, counts):  # type: ignore[no-untyped-def]
    """Lane `b` becomes what it would be, had it been played like `a` since it followed that."""
    b[vm.FOLLOWS] = 0
    for i in range(vm.TOUCHED + 1):
        b[i] = a[i]
    b[vm.SAME_ROW] = a[vm.SAME_ROW]
    b[vm.NEXT_REGION] = a[vm.NEXT_REGION]
    b[vm.OPEN_BANKS] = a[vm.OPEN_BANKS]
    for depth in range(vm.MAX_DEPTH):
        b[vm.COUNTER + depth] = a[vm.COUNTER + depth]
        stored = t[vm.SNAP] + depth * t[vm.SNAP_STRIDE] + vm.S_STORED
        b[stored] = min(b[stored], a[stored])
    for i in range(t[vm.COUNT_SIZE]):
        b[vm.COUNT + i] += a[vm.COUNT + i] - counts[i]
    for i in range(t[vm.LAST], t[vm.SNAP]):
        b[i] = a[i]


@compiled_part
def part_all(t, memory, active, counts):  # type: ignore[no-untyped-def]
    for lane in range(active):
        if memory[lane, vm.FOLLOWS]:
            _part(t, pointer(memory, memory[lane, vm.FOLLOWS] - 1), pointer(memory, lane), pointer(counts, lane))


@compiled_part
def pair(t, memory, active, twin, counts, ahead):  # type: ignore[no-untyped-def]
    """Before lanes step on: who follows whom, and how far ahead in the code it stands."""
    for lane in range(1, active):
        place = twin[memory[lane, vm.PC]]
        leader = memory[lane, vm.FOLLOWS] - 1
        if leader >= 0 and (memory[leader, vm.FOLLOWS] or twin[memory[leader, vm.PC]] != place):
            _part(t, pointer(memory, leader), pointer(memory, lane), pointer(counts, lane))
            leader = np.int64(-1)
        for other in range(lane):
            if leader >= 0 or memory[other, vm.FOLLOWS] or twin[memory[other, vm.PC]] != place:
                continue
            if _same_state(t, pointer(memory, other), pointer(memory, lane)):
                _follow(t, pointer(memory, other), pointer(memory, lane), other, pointer(counts, lane))
                leader = np.int64(other)
        if leader >= 0:
            ahead[lane] = memory[lane, vm.PC] - memory[leader, vm.PC]

"""What all lanes did in a passage, kept by its code and the state it began in, and done again when both come again.

A passage leads over many meetings, through most of a layer; `sim.passages` finds them. All that it can depend on is
its key: every lane's state, the units' and the label, seen from now. Where the code is alike in all lanes and all
follow the first, they do so up to its end, and that one's state is enough; elsewhere nobody follows anybody. `passed`
holds room for one key, then rooms with entries of a key and of what was done. While a passage is played for the first
time, its entry has no number and holds what was before.
"""

import numpy as np

from nearbank.compiled import compiled_part
from nearbank.sim import vm
from nearbank.sim.lanes.follow import pair, part_all
from nearbank.sim.lanes.shared import flush_label, wall_of
from nearbank.sim.lanes.state import now_of
from nearbank.sim.pointers import pointer, popcount

_MIX, _SPREAD = 0x5851F42D, 0x5851F42D4C957F2D


@compiled_part
def take_passages(t, memory, g, active, twin, counts, ahead, through, passed, played):  # type: ignore[no-untyped-def]
    """Where all lanes meet: end the passage being played; do again, or begin to play, those that begin here.

    `through` says where which begin, and `played` what is being played: its place there or 0, its entry, what its rows
    are counted from and when it began.
    """
    at = played[vm.PP_AT]
    if at and through[at + vm.P_ENDS] == memory[0, vm.PC]:
        together = _lanes_apart(memory, active) == 1
        if played[vm.PP_LANES] > 1 or not together:
            part_all(t, memory, active, counts)
        _end(t, memory, g, active, passed, through[at + vm.P_NUMBER], played)
        if played[vm.PP_LANES] < active and not together:
            passed[played[vm.PP_ENTRY] + vm.PK_NUMBER] = 0
        played[vm.PP_AT] = 0
    while through[memory[0, vm.PC]] and not played[vm.PP_AT]:
        lanes = np.int64(active)
        if active > 1 and through[through[memory[0, vm.PC]] + vm.P_ROOM] != vm.JOINT_PASSAGE:
            pair(t, memory, active, twin, counts, ahead)
            lanes = _lanes_apart(memory, active)
        if lanes > 1:
            part_all(t, memory, active, counts)
        _enter(t, memory, g, active, lanes, through, passed, played)


@compiled_part
def _lanes_apart(memory, active):  # type: ignore[no-untyped-def]
    """1 where all lanes follow the first, else how many there are."""
    for lane in range(1, active):
        if memory[lane, vm.FOLLOWS] != 1:
            return active
    return np.int64(1)


@compiled_part
def _enter(t, memory, g, active, lanes, through, passed, played):  # type: ignore[no-untyped-def]
    """Do a passage again, which leaves the lanes at its end, or begin to play it; `lanes` are those of its key."""
    at, wall = through[memory[0, vm.PC]], wall_of(memory, active)
    flush_label(g, wall)
    origin = _origin(through, at, memory)
    h = _put_key(t, memory, g, lanes, pointer(passed, vm.P_KEY), through[at + vm.P_NUMBER], origin, wall)
    place = _place(t, g, h, lanes, passed, through[at + vm.P_ROOM] if lanes == 1 else np.int64(vm.JOINT_PASSAGE))
    if _is_kept(t, passed, place, lanes) and wall + passed[place + _key_size(t, lanes) + vm.PD_CYCLES] < t[vm.HORIZON]:
        _do_again(t, memory, g, lanes, pointer(passed, place), origin, wall)
        for lane in range(active):
            memory[lane, vm.PC] = through[at + vm.P_ENDS + lane]
    else:
        _begin(t, memory, g, lanes, pointer(passed, vm.P_KEY), pointer(passed, place))
        played[vm.PP_AT] = at
        played[vm.PP_ENTRY] = place
        played[vm.PP_ORIGIN] = origin
        played[vm.PP_BEGAN] = wall
        played[vm.PP_LANES] = lanes


@compiled_part
def _origin(through, at, memory):  # type: ignore[no-untyped-def]
    """What the passage's rows are counted from, in this round of the loops around it."""
    origin = np.int64(0)
    for depth in range(vm.MAX_DEPTH):
        origin += through[at + vm.P_STRIDES + depth] * memory[0, vm.COUNTER + depth]
    return origin


@compiled_part
def _lane_key(t):  # type: ignore[no-untyped-def]
    """Words of one lane in a key."""
    return vm.PK_SIZE + t[vm.SNAP] - t[vm.LAST]


@compiled_part
def _key_size(t, active):  # type: ignore[no-untyped-def]
    return vm.PK_SHARED + active * _lane_key(t)


@compiled_part
def _put_key(t, memory, g, active, key, number, origin, wall):  # type: ignore[no-untyped-def]
    """Write the key of a passage that begins now; returns its hash."""
    key[vm.PK_NUMBER] = number
    key[vm.PK_LABEL] = g[vm.G_LABEL]
    first = wall
    for lane in range(active):
        first = min(first, now_of(pointer(memory, lane)))
    for unit in range(vm.MAX_UNITS):  # a unit that was free before the first lane's time is free
        key[vm.PK_UNITS + unit] = max(g[vm.G_UNITS + unit], first * t[vm.TCK_PS]) - wall * t[vm.TCK_PS]
    for lane in range(active):
        _put_lane(t, pointer(memory, lane), key, vm.PK_SHARED + lane * _lane_key(t), origin, wall)
    h = np.int64(0)
    for i in range(_key_size(t, active)):
        h += key[i] * (_SPREAD ^ (i * _MIX))
    return h


@compiled_part
def _put_lane(t, m, key, k, origin, wall):  # type: ignore[no-untyped-def]
    """One lane's state, seen from now: when it may go on, the next refresh, open rows, ages of last issues."""
    now = now_of(m)
    key[k + vm.PK_PREVIOUS] = m[vm.PREVIOUS] - wall
    key[k + vm.PK_NOW] = now - wall
    key[k + vm.PK_UNIT] = m[vm.FLOOR_UNIT] if now > m[vm.PREVIOUS] + 1 else np.int64(-1)
    key[k + vm.PK_DUE] = m[vm.DUE] - wall if t[vm.INTERVAL] else np.int64(0)
    key[k + vm.PK_REGION] = m[vm.NEXT_REGION]
    key[k + vm.PK_OPEN] = m[vm.OPEN]
    key[k + vm.PK_TOUCHED] = m[vm.TOUCHED]
    k += vm.PK_SIZE
    for i in range(t[vm.ROWS] - t[vm.LAST]):
        key[k + i] = min(now - m[t[vm.LAST] + i], t[t[vm.AGES] + i])
    k += t[vm.ROWS] - t[vm.LAST]
    for b in range(t[vm.BANKS]):
        key[k + b] = m[t[vm.ROWS] + b] - origin if (m[vm.OPEN] >> b) & 1 else np.int64(0)


@compiled_part
def _place(t, g, h, active, passed, room):  # type: ignore[no-untyped-def]
    """Where an entry of this hash lies in a room."""
    h = h * _SPREAD
    slot = (h ^ (h >> 29) ^ (h >> 47)) & (passed[2 * room + 1] - 1)
    shared = vm.PD_BUSY + 2 * g[vm.G_JOBS] + g[vm.G_LABELS]
    lane = vm.PD_SIZE + t[vm.SNAP] - vm.COUNT
    return passed[2 * room] + slot * (_key_size(t, active) + shared + active * lane)


@compiled_part
def _is_kept(t, passed, place, active):  # type: ignore[no-untyped-def]
    """Whether the entry has the key that was just written."""
    different = np.int64(0)
    for i in range(_key_size(t, active)):
        different |= passed[vm.P_KEY + i] ^ passed[place + i]
    return different == 0


@compiled_part
def _begin(t, memory, g, active, key, entry):  # type: ignore[no-untyped-def]
    """Keep the key, without its number, and behind it what is to be compared with at the end."""
    size = _key_size(t, active)
    for i in range(size):
        entry[i] = key[i]
    entry[vm.PK_NUMBER] = 0
    k = size
    for i in range(2 * g[vm.G_JOBS] + g[vm.G_LABELS]):
        entry[k + vm.PD_BUSY + i] = g[vm.G_BUSY + i]
    k += vm.PD_BUSY + 2 * g[vm.G_JOBS] + g[vm.G_LABELS]
    for lane in range(active):
        m = pointer(memory, lane)
        entry[k + vm.PD_DUE] = m[vm.DUE]
        for depth in range(vm.MAX_DEPTH):
            stored = t[vm.SNAP] + depth * t[vm.SNAP_STRIDE] + vm.S_STORED
            entry[k + vm.PD_STORED + depth] = m[stored]
            m[stored] = vm.UNCHANGED
        for i in range(t[vm.SNAP] - vm.COUNT):
            entry[k + vm.PD_SIZE + i] = m[vm.COUNT + i]
        k += vm.PD_SIZE + t[vm.SNAP] - vm.COUNT


@compiled_part
def _end(t, memory, g, active, passed, number, played):  # type: ignore[no-untyped-def]
    """Keep what the passage did since it began; from now on its entry counts."""
    place, origin, began = played[vm.PP_ENTRY], played[vm.PP_ORIGIN], played[vm.PP_BEGAN]
    wall = wall_of(memory, active)
    flush_label(g, wall)
    active = played[vm.PP_LANES]
    passed[place + vm.PK_NUMBER] = number
    k = place + _key_size(t, active)
    passed[k + vm.PD_CYCLES] = wall - began
    passed[k + vm.PD_LABEL] = g[vm.G_LABEL]
    for unit in range(vm.MAX_UNITS):
        passed[k + vm.PD_UNITS + unit] = g[vm.G_UNITS + unit] - began * t[vm.TCK_PS]
    for i in range(2 * g[vm.G_JOBS] + g[vm.G_LABELS]):
        passed[k + vm.PD_BUSY + i] = g[vm.G_BUSY + i] - passed[k + vm.PD_BUSY + i]
    k += vm.PD_BUSY + 2 * g[vm.G_JOBS] + g[vm.G_LABELS]
    for lane in range(active):
        _end_lane(t, pointer(memory, lane), passed, k, origin, began)
        k += vm.PD_SIZE + t[vm.SNAP] - vm.COUNT


@compiled_part
def _end_lane(t, m, entry, k, origin, began):  # type: ignore[no-untyped-def]
    """One lane's state seen from the passage's beginning, and what its counters moved by."""
    entry[k + vm.PD_PREVIOUS] = m[vm.PREVIOUS] - began
    entry[k + vm.PD_FLOOR] = m[vm.FLOOR] - began
    entry[k + vm.PD_UNIT] = m[vm.FLOOR_UNIT]
    entry[k + vm.PD_DUE] = m[vm.DUE] - entry[k + vm.PD_DUE]
    entry[k + vm.PD_REGION] = m[vm.NEXT_REGION]
    entry[k + vm.PD_OPEN] = m[vm.OPEN]
    entry[k + vm.PD_TOUCHED] = m[vm.TOUCHED]
    entry[k + vm.PD_SAME_ROW] = m[vm.SAME_ROW] - origin if m[vm.SAME_ROW] >= 0 else vm.UNCHANGED
    for depth in range(vm.MAX_DEPTH):
        stored = t[vm.SNAP] + depth * t[vm.SNAP_STRIDE] + vm.S_STORED
        least = m[stored]
        m[stored] = min(least, entry[k + vm.PD_STORED + depth])
        entry[k + vm.PD_STORED + depth] = least
    k += vm.PD_SIZE - vm.COUNT
    for i in range(vm.COUNT, t[vm.LAST]):
        entry[k + i] = m[i] - entry[k + i]
    for i in range(t[vm.LAST], t[vm.ROWS]):
        entry[k + i] = vm.UNCHANGED if m[i] == entry[k + i] else m[i] - began
    for i in range(t[vm.ROWS], t[vm.SNAP]):
        entry[k + i] = m[i] - origin


@compiled_part
def _do_again(t, memory, g, active, entry, origin, wall):  # type: ignore[no-untyped-def]
    """Do again from `wall` on what the entry says was done."""
    k = _key_size(t, active)
    g[vm.G_MARKED] = wall + entry[k + vm.PD_CYCLES]
    g[vm.G_LABEL] = entry[k + vm.PD_LABEL]
    for unit in range(vm.MAX_UNITS):
        g[vm.G_UNITS + unit] = max(g[vm.G_UNITS + unit], entry[k + vm.PD_UNITS + unit] + wall * t[vm.TCK_PS])
    for i in range(2 * g[vm.G_JOBS] + g[vm.G_LABELS]):
        g[vm.G_BUSY + i] += entry[k + vm.PD_BUSY + i]
    k += vm.PD_BUSY + 2 * g[vm.G_JOBS] + g[vm.G_LABELS]
    for lane in range(active):
        _lane_again(t, pointer(memory, lane), entry, k, origin, wall)
        k += vm.PD_SIZE + t[vm.SNAP] - vm.COUNT


@compiled_part
def _lane_again(t, m, entry, k, origin, wall):  # type: ignore[no-untyped-def]
    m[vm.PREVIOUS] = wall + entry[k + vm.PD_PREVIOUS]
    m[vm.FLOOR] = wall + entry[k + vm.PD_FLOOR]
    m[vm.FLOOR_UNIT] = entry[k + vm.PD_UNIT]
    m[vm.DUE] += entry[k + vm.PD_DUE]
    m[vm.NEXT_REGION] = entry[k + vm.PD_REGION]
    m[vm.OPEN] = entry[k + vm.PD_OPEN]
    m[vm.OPEN_BANKS] = popcount(m[vm.OPEN])
    m[vm.TOUCHED] = entry[k + vm.PD_TOUCHED]
    same = entry[k + vm.PD_SAME_ROW]
    m[vm.SAME_ROW] = np.int64(-1) if same == vm.UNCHANGED else same + origin
    for depth in range(vm.MAX_DEPTH):
        stored = t[vm.SNAP] + depth * t[vm.SNAP_STRIDE] + vm.S_STORED
        m[stored] = min(m[stored], entry[k + vm.PD_STORED + depth])
    k += vm.PD_SIZE - vm.COUNT
    for i in range(vm.COUNT, t[vm.LAST]):
        m[i] += entry[k + i]
    for i in range(t[vm.LAST], t[vm.ROWS]):
        if entry[k + i] != vm.UNCHANGED:
            m[i] = wall + entry[k + i]
    for i in range(t[vm.ROWS], t[vm.SNAP]):
        m[i] = entry[k + i] + origin

"""Rounds of a loop that are like the one before, added up at once.

At the end of every round the lane's state, relative to now, is compared with that of the round before. When they are
equal, what the next rounds do is known, as far as the next refresh, the next edge of a profile or the loop's end.
"""

import numpy as np

from nearbank.compiled import compiled_part
from nearbank.sim import vm
from nearbank.sim.lanes.state import now_of


@compiled_part
def store(t, m, depth, body, moves_rows, label):  # type: ignore[no-untyped-def]
    """Remember the lane's state, relative to now, at the end of a round."""
    s = t[vm.SNAP] + depth * t[vm.SNAP_STRIDE]
    now = now_of(m)
    m[s + vm.S_STORED] += 1
    m[s + vm.S_NOW] = now
    m[s + vm.S_GAP] = now - m[vm.PREVIOUS]
    m[s + vm.S_DUE] = m[vm.DUE]
    m[s + vm.S_OPEN] = m[vm.OPEN]
    m[s + vm.S_TOUCHED] = m[vm.TOUCHED]
    m[s + vm.S_UNIT] = m[vm.FLOOR_UNIT] if now - m[vm.PREVIOUS] > 1 else -1
    m[s + vm.S_LABEL] = label
    s += vm.S_SIZE
    for k in range(t[t[vm.COUNTED_START] + body], t[t[vm.COUNTED_START] + body + 1]):
        i = t[t[vm.COUNTED] + k]
        m[s + i] = m[vm.COUNT + i]
    s += t[vm.COUNT_SIZE]
    if moves_rows:
        for b in range(t[vm.BANKS]):
            m[s + b] = m[t[vm.ROWS] + b]
    s += t[vm.BANKS]
    first = t[t[vm.WRITTEN_START] + body]
    for k in range(first, t[t[vm.WRITTEN_START] + body + 1]):
        w = t[vm.WRITTEN] + 2 * k
        m[s + k - first] = min(now - m[t[vm.LAST] + t[w]], t[w + 1])


@compiled_part
def _repeats(t, m, depth, body, label):  # type: ignore[no-untyped-def]
    """Whether the round just finished began and ended in the same state, so that all further rounds are like it."""
    s = t[vm.SNAP] + depth * t[vm.SNAP_STRIDE]
    now = now_of(m)
    gap = now - m[vm.PREVIOUS]
    unit = m[vm.FLOOR_UNIT] if gap > 1 else -1
    if m[s + vm.S_GAP] != gap or m[s + vm.S_DUE] != m[vm.DUE] or m[s + vm.S_OPEN] != m[vm.OPEN]:
        return False
    if m[s + vm.S_TOUCHED] != m[vm.TOUCHED] or m[s + vm.S_UNIT] != unit or m[s + vm.S_LABEL] != label:
        return False
    began = m[s + vm.S_NOW]
    s += vm.S_SIZE + t[vm.COUNT_SIZE] + t[vm.BANKS]
    first = t[t[vm.WRITTEN_START] + body]
    for k in range(first, t[t[vm.WRITTEN_START] + body + 1]):
        w = t[vm.WRITTEN] + 2 * k
        if min(now - m[t[vm.LAST] + t[w]], t[w + 1]) != m[s + k - first]:
            return False
    for k in range(t[t[vm.FIXED_START] + body], t[t[vm.FIXED_START] + body + 1]):
        f = t[vm.FIXED] + 2 * k
        if began - m[t[vm.LAST] + t[f]] < t[f + 1]:
            return False
    return True


@compiled_part
def rounds_until(t, m, record, now, period):  # type: ignore[no-untyped-def]
    """How many rounds of `period` cycles surely end before anything else happens."""
    limit = min(m[vm.DUE], m[vm.EDGE], t[vm.HORIZON])
    if record[0] < record[1] and now < record[1]:
        limit = min(limit, record[0])
    if period == 0:
        return np.int64(1) << 62
    return max((limit - now) // period, 0)


@compiled_part
def advance(t, m, depth, body, moves_rows, rounds, period):  # type: ignore[no-untyped-def]
    """Add up `rounds` more rounds like the last one."""
    shift = rounds * period
    m[vm.PREVIOUS] += shift
    m[vm.FLOOR] += shift
    for k in range(t[t[vm.WRITTEN_START] + body], t[t[vm.WRITTEN_START] + body + 1]):
        m[t[vm.LAST] + t[t[vm.WRITTEN] + 2 * k]] += shift
    s = t[vm.SNAP] + depth * t[vm.SNAP_STRIDE] + vm.S_SIZE
    for k in range(t[t[vm.COUNTED_START] + body], t[t[vm.COUNTED_START] + body + 1]):
        i = t[t[vm.COUNTED] + k]
        m[vm.COUNT + i] += (m[vm.COUNT + i] - m[s + i]) * rounds
    s += t[vm.COUNT_SIZE]
    if moves_rows:
        for b in range(t[vm.BANKS]):
            m[t[vm.ROWS] + b] += (m[t[vm.ROWS] + b] - m[s + b]) * rounds
        if m[vm.SAME_ROW] >= 0:
            m[vm.SAME_ROW] = m[t[vm.ROWS]]


@compiled_part
def may_skip(t, m, code, pc, label):  # type: ignore[no-untyped-def]
    """Whether the rounds to come are known.

    Where rows are opened it takes one more round: a row opened before the loop may not lie on the later ones' line.
    """
    at = pc * vm.WIDTH
    stored = m[t[vm.SNAP] + code[at + vm.DEPTH] * t[vm.SNAP_STRIDE] + vm.S_STORED]
    return stored > code[at + vm.MOVES_ROWS] and _repeats(t, m, code[at + vm.DEPTH], code[at + vm.C], label)


@compiled_part
def skip(t, m, record, code, pc, left):  # type: ignore[no-untyped-def]
    """At the end of a round: add up as many of the `left` rounds as possible; returns how many."""
    depth, body, moves_rows = (
        code[pc * vm.WIDTH + vm.DEPTH],
        code[pc * vm.WIDTH + vm.C],
        code[pc * vm.WIDTH + vm.MOVES_ROWS],
    )
    rounds = np.int64(0)
    if may_skip(t, m, code, pc, np.int64(0)):
        now = now_of(m)
        period = now - m[t[vm.SNAP] + depth * t[vm.SNAP_STRIDE] + vm.S_NOW]
        rounds = min(left, rounds_until(t, m, record, now, period))
        if rounds > 0:
            advance(t, m, depth, body, moves_rows, rounds, period)
    if rounds < left:
        store(t, m, depth, body, moves_rows, np.int64(0))
    return rounds

"""The compiled machine that plays programs: one lane per group of identical channels, event by event.

Everything is int64. A lane steps through its code to the next meeting (`START`, `WAIT`, `MARK`, the end of a loop
that holds one, or the end of the program); `play` handles the meetings of all lanes. At the end of every loop round a
lane's state is compared, relative to now, with the round before. When they are equal, what the next rounds do is
known: they are added up at once, as far as the next refresh or the loop's end. `sim.reference` is the slow twin.

State vectors: `last` (see `sim.layout`), `lane` (the LANE constants), `rows` (open row per bank), `count` (counters,
all of which grow by the same amount each round once the state repeats).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from nearbank.sim.layout import Ints

COMMAND, LOOP, END, START, WAIT, MARK, HALT = range(7)

# Columns of the code
OP, A, B, C, DEPTH, MEETS, MOVES_ROWS, FIRST_BANK, HAS_ROW = range(9)
BANK, ROW, COLUMN = 9, 10, 11
MAX_DEPTH = 8
BANK_STRIDES = 12
ROW_STRIDES = BANK_STRIDES + MAX_DEPTH
COLUMN_STRIDES = ROW_STRIDES + MAX_DEPTH
COUNTS = COLUMN_STRIDES + MAX_DEPTH
WIDTH = COUNTS + MAX_DEPTH

# Entries of a lane's state
(PREVIOUS, FLOOR, FLOOR_UNIT, DUE, OPEN, TOUCHED, PC, NEXT_REGION, RECORDED, STATUS) = range(10)
LANE_SIZE = 10

# Why a lane stopped
FINE, CLOSED_ROW, WRONG_ROW, OPEN_ROW, OVERFLOW = range(5)

# Counters before the per-command ones
ROW_HITS, ROW_MISSES, OPEN_CYCLES, REFRESHES = range(4)
FIXED_COUNTERS = 4

# Reasons for idle cycles before the units and rules
REFRESH_REASON, END_REASON = 0, 1

# Entries of a loop's memory of its last round
(S_VALID, S_NOW, S_GAP, S_DUE, S_OPEN, S_TOUCHED, S_UNIT, S_LABEL) = range(8)
SNAP_SIZE = 8

ROW_ANY, ROW_CLOSED, ROW_OPEN = range(3)
NO_EFFECT, OPENS, CLOSES = range(3)


class Tables(NamedTuple):
    """What never changes while a program plays; see `sim.engine` for how each is made."""

    commands: Ints  # [commands, 4] reach, row need, effect, latency
    pull_start: Ints
    pull_base: Ints
    pull_shift: Ints
    pull_flip: Ints
    pull_stride: Ints
    pull_delay: Ints
    pull_reason: Ints
    push_start: Ints
    push_base: Ints
    push_shift: Ints
    push_width: Ints
    push_count: Ints
    written_start: Ints
    written_index: Ints
    written_age: Ints
    fixed_start: Ints
    fixed_index: Ints
    fixed_age: Ints
    data_index: Ints
    data_latency: Ints
    banks: int
    tck_ps: int
    interval: int
    region: int
    precharge: int
    refresh: int
    activate: int
    activate_all: int
    count_first: int  # first command counter
    reason_first: int  # first idle counter
    unit_reason: int  # reason of the first unit
    horizon: int  # cycles that still fit in 64-bit picoseconds
    skips: int  # 0 switches fast-forward off


class State(NamedTuple):
    """What a machine remembers, per lane."""

    last: Ints
    lane: Ints
    rows: Ints
    count: Ints
    counter: Ints  # loop counters
    snap: Ints
    snap_last: Ints
    snap_rows: Ints
    snap_count: Ints


class Shared(NamedTuple):
    """What all lanes share: units beside the memory and labels."""

    free_ps: Ints
    busy: Ints  # [jobs, 2] picoseconds, count
    label_cycles: Ints
    clock: Ints  # [0] time of the last mark, [1] current label
    snap_free: Ints
    snap_busy: Ints
    snap_label: Ints


class Record(NamedTuple):
    """Where issued commands of a window of cycles are written: cycle, command, bank, row, column."""

    commands: Ints  # [lanes, capacity, 5]
    first: int
    last: int


@njit(cache=True)
def _now(lane):  # type: ignore[no-untyped-def]
    return max(lane[PREVIOUS] + 1, lane[FLOOR])


@njit(cache=True)
def _affine(code, pc, base, strides, counter):  # type: ignore[no-untyped-def]
    value = code[pc, base]
    for d in range(code[pc, DEPTH]):
        value += code[pc, strides + d] * counter[d]
    return value


@njit(cache=True)
def _earliest(t, last, command, bank, start, reason):  # type: ignore[no-untyped-def]
    """The first cycle from `start` on at which every rule lets the command go, and which one held it longest."""
    for k in range(t.pull_start[command], t.pull_start[command + 1]):
        entry = t.pull_base[k] + ((bank >> t.pull_shift[k]) ^ t.pull_flip[k]) * t.pull_stride[k]
        bound = last[entry] + t.pull_delay[k]
        if bound > start:
            start = bound
            reason = t.pull_reason[k]
    return start, reason


@njit(cache=True)
def _mask(t, command, bank):  # type: ignore[no-untyped-def]
    reach = t.commands[command, 0]
    if reach >= 64:
        return np.int64(-1)
    return ((np.int64(1) << reach) - 1) << bank


@njit(cache=True)
def _issue(t, last, lane, rows, count, command, bank, row, cycle, reason):  # type: ignore[no-untyped-def]
    """Put the command on the bus at `cycle`: idle time, last-issue entries, row state."""
    idle = cycle - lane[PREVIOUS] - 1
    count[t.reason_first + reason] += idle
    if lane[OPEN] != 0:
        count[OPEN_CYCLES] += idle + 1
    lane[PREVIOUS] = cycle
    for k in range(t.push_start[command], t.push_start[command + 1]):
        width = t.push_width[k]
        entry = t.push_base[k] + (bank >> t.push_shift[k]) * width
        if width == 1:
            last[entry] = cycle
        else:
            _push_window(last, entry, width, t.push_count[k], cycle)
    effect = t.commands[command, 2]
    if effect != NO_EFFECT:
        mask = _mask(t, command, bank)
        if effect == OPENS:
            lane[OPEN] |= mask
            lane[TOUCHED] &= ~mask
            for b in range(bank, bank + t.commands[command, 0]):
                rows[b] = row
        else:
            lane[OPEN] &= ~mask
            lane[TOUCHED] &= ~mask


@njit(cache=True)
def _push_window(last, entry, width, scopes, cycle):  # type: ignore[no-untyped-def]
    for s in range(scopes):
        for i in range(entry + s * width + width - 1, entry + s * width, -1):
            last[i] = last[i - 1]
        last[entry + s * width] = cycle


@njit(cache=True)
def _note(record, lane, number, command, bank, row, column, cycle):  # type: ignore[no-untyped-def]
    if record.first <= cycle < record.last:
        slot = lane[RECORDED]
        record.commands[number, slot, 0] = cycle
        record.commands[number, slot, 1] = command
        record.commands[number, slot, 2] = bank
        record.commands[number, slot, 3] = row
        record.commands[number, slot, 4] = column
        lane[RECORDED] = slot + 1


@njit(cache=True)
def _controller(t, last, lane, rows, count, record, number, command, bank, row):  # type: ignore[no-untyped-def]
    """Issue one of the refresh's own commands, as early as it may go but not before the refresh is due."""
    start = max(lane[PREVIOUS] + 1, lane[DUE])
    cycle, _ = _earliest(t, last, command, bank, start, REFRESH_REASON)
    _issue(t, last, lane, rows, count, command, bank, row, cycle, REFRESH_REASON)
    count[t.count_first + command] += 1
    _note(record, lane, number, command, bank, row, 0, cycle)


@njit(cache=True)
def _refresh(t, last, lane, rows, count, record, number):  # type: ignore[no-untyped-def]
    """Close the region's open rows, refresh it, open the same rows again: the definition in `sim.rules.RefreshPlan`."""
    first = lane[NEXT_REGION]
    open_before = lane[OPEN]
    step = t.commands[t.precharge, 0]
    for bank in range(first, first + t.region, step):
        if lane[OPEN] & _mask(t, t.precharge, bank):
            _controller(t, last, lane, rows, count, record, number, t.precharge, bank, 0)
    step = t.commands[t.refresh, 0]
    for bank in range(first, first + t.region, step):
        _controller(t, last, lane, rows, count, record, number, t.refresh, bank, 0)
        count[REFRESHES] += 1
    closed = open_before & ~lane[OPEN]
    _reopen(t, last, lane, rows, count, record, number, closed)
    lane[NEXT_REGION] = (first + t.region) % t.banks
    lane[DUE] += t.interval


@njit(cache=True)
def _reopen(t, last, lane, rows, count, record, number, closed):  # type: ignore[no-untyped-def]
    same = t.activate_all >= 0
    for bank in range(t.banks):
        if not (closed >> bank) & 1 or rows[bank] != rows[0]:
            same = False
    if same:
        _controller(t, last, lane, rows, count, record, number, t.activate_all, 0, rows[0])
        return
    for bank in range(t.banks):
        if (closed >> bank) & 1:
            _controller(t, last, lane, rows, count, record, number, t.activate, bank, rows[bank])


@njit(cache=True)
def _row_status(t, lane, rows, command, bank, row):  # type: ignore[no-untyped-def]
    """Whether the rows are as the command needs them."""
    need = t.commands[command, 1]
    mask = _mask(t, command, bank)
    if need == ROW_CLOSED:
        return OPEN_ROW if lane[OPEN] & mask else FINE
    if lane[OPEN] & mask != mask:
        return CLOSED_ROW
    wrong = np.int64(0)
    for b in range(bank, bank + t.commands[command, 0]):
        wrong |= rows[b] ^ row
    return WRONG_ROW if wrong else FINE


@njit(cache=True)
def _step(t, code, pc, last, lane, rows, count, counter, record, number):  # type: ignore[no-untyped-def]
    """Issue one command of the program, after the refreshes that come first."""
    command = code[pc, A]
    bank = _affine(code, pc, BANK, BANK_STRIDES, counter) if code[pc, FIRST_BANK] else np.int64(0)
    row = _affine(code, pc, ROW, ROW_STRIDES, counter) if code[pc, HAS_ROW] else np.int64(0)
    while True:
        start = lane[PREVIOUS] + 1
        reason = np.int64(END_REASON)
        if lane[FLOOR] > start:
            start = lane[FLOOR]
            reason = t.unit_reason + lane[FLOOR_UNIT]
        cycle, reason = _earliest(t, last, command, bank, start, reason)
        if cycle < lane[DUE]:
            break
        _refresh(t, last, lane, rows, count, record, number)
    if t.commands[command, 1] != ROW_ANY:
        status = _row_status(t, lane, rows, command, bank, row)
        if status != FINE:
            return status
        if t.commands[command, 1] == ROW_OPEN:
            mask = _mask(t, command, bank)
            hit = lane[TOUCHED] & mask == mask
            count[ROW_HITS if hit else ROW_MISSES] += 1
            lane[TOUCHED] |= mask
    _issue(t, last, lane, rows, count, command, bank, row, cycle, reason)
    count[t.count_first + code[pc, B]] += 1
    if record.first < record.last:
        column = _affine(code, pc, COLUMN, COLUMN_STRIDES, counter)
        _note(record, lane, number, command, bank, row, column, cycle)
    return FINE


@njit(cache=True)
def _store(t, s, number, depth, body, moves_rows, label):  # type: ignore[no-untyped-def]
    """Remember the lane's state, relative to now, at the end of a round."""
    lane = s.lane[number]
    snap = s.snap[number, depth]
    now = _now(lane)
    snap[S_VALID] += 1
    snap[S_NOW] = now
    snap[S_GAP] = now - lane[PREVIOUS]
    snap[S_DUE] = lane[DUE]
    snap[S_OPEN] = lane[OPEN]
    snap[S_TOUCHED] = lane[TOUCHED]
    snap[S_UNIT] = lane[FLOOR_UNIT] if snap[S_GAP] > 1 else -1
    snap[S_LABEL] = label
    last = s.last[number]
    ages = s.snap_last[number, depth]
    for k in range(t.written_start[body], t.written_start[body + 1]):
        ages[k - t.written_start[body]] = min(now - last[t.written_index[k]], t.written_age[k])
    count = s.count[number]
    old = s.snap_count[number, depth]
    for i in range(count.shape[0]):
        old[i] = count[i]
    if moves_rows:
        for b in range(t.banks):
            s.snap_rows[number, depth, b] = s.rows[number, b]


@njit(cache=True)
def _repeats(t, s, number, depth, body, label):  # type: ignore[no-untyped-def]
    """Whether the round just finished began and ended in the same state, so that all further rounds are like it."""
    lane = s.lane[number]
    snap = s.snap[number, depth]
    now = _now(lane)
    gap = now - lane[PREVIOUS]
    unit = lane[FLOOR_UNIT] if gap > 1 else -1
    if snap[S_GAP] != gap or snap[S_DUE] != lane[DUE] or snap[S_OPEN] != lane[OPEN]:
        return False
    if snap[S_TOUCHED] != lane[TOUCHED] or snap[S_UNIT] != unit or snap[S_LABEL] != label:
        return False
    last = s.last[number]
    ages = s.snap_last[number, depth]
    for k in range(t.written_start[body], t.written_start[body + 1]):
        if min(now - last[t.written_index[k]], t.written_age[k]) != ages[k - t.written_start[body]]:
            return False
    for k in range(t.fixed_start[body], t.fixed_start[body + 1]):
        if snap[S_NOW] - last[t.fixed_index[k]] < t.fixed_age[k]:
            return False
    return True


@njit(cache=True)
def _rounds_until(t, lane, record, now, period):  # type: ignore[no-untyped-def]
    """How many rounds of `period` cycles surely end before anything else happens."""
    limit = lane[DUE]
    if record.first < record.last and now < record.last:
        limit = min(limit, record.first)
    limit = min(limit, t.horizon)
    if period == 0:
        return np.int64(1) << 62
    return max((limit - now) // period, 0)


@njit(cache=True)
def _advance(t, s, number, depth, body, moves_rows, rounds, period):  # type: ignore[no-untyped-def]
    """Add up `rounds` more rounds like the last one."""
    shift = rounds * period
    lane = s.lane[number]
    lane[PREVIOUS] += shift
    lane[FLOOR] += shift
    last = s.last[number]
    for k in range(t.written_start[body], t.written_start[body + 1]):
        last[t.written_index[k]] += shift
    count = s.count[number]
    old = s.snap_count[number, depth]
    for i in range(count.shape[0]):
        count[i] += (count[i] - old[i]) * rounds
    if moves_rows:
        for b in range(t.banks):
            s.rows[number, b] += (s.rows[number, b] - s.snap_rows[number, depth, b]) * rounds


@njit(cache=True)
def _skip(t, s, number, code, pc, record, left):  # type: ignore[no-untyped-def]
    """At the end of a round: how many of the `left` rounds could be added up at once."""
    depth = code[pc, DEPTH]
    body = code[pc, C]
    moves_rows = code[pc, MOVES_ROWS]
    snap = s.snap[number, depth]
    rounds = np.int64(0)
    # One more round where rows are opened: a row opened before the loop may not lie on the line of the later ones.
    if snap[S_VALID] > moves_rows and _repeats(t, s, number, depth, body, 0):
        now = _now(s.lane[number])
        period = now - snap[S_NOW]
        rounds = min(left, _rounds_until(t, s.lane[number], record, now, period))
        if rounds > 0:
            _advance(t, s, number, depth, body, moves_rows, rounds, period)
    _store(t, s, number, depth, body, moves_rows, 0)
    return rounds


@njit(cache=True)
def _run(t, s, number, code, record):  # type: ignore[no-untyped-def]
    """Step one lane to its next meeting; the lane's PC is left on it."""
    last = s.last[number]
    lane = s.lane[number]
    rows = s.rows[number]
    count = s.count[number]
    counter = s.counter[number]
    pc = lane[PC]
    while True:
        op = code[pc, OP]
        if op == COMMAND:
            status = _step(t, code, pc, last, lane, rows, count, counter, record, number)
            if status != FINE:
                lane[STATUS] = status
                break
            pc += 1
        elif op == LOOP:
            counter[code[pc, DEPTH]] = 0
            s.snap[number, code[pc, DEPTH], S_VALID] = 0
            pc += 1
        elif op == END and not code[pc, MEETS]:
            depth = code[pc, DEPTH]
            counter[depth] += 1
            left = code[pc, A] - counter[depth]
            if left > 1 and t.skips and code[pc, C] >= 0:
                skipped = _skip(t, s, number, code, pc, record, left)
                counter[depth] += skipped
                left -= skipped
            pc = pc - code[pc, B] if left > 0 else pc + 1
        else:
            break
    lane[PC] = pc


@njit(cache=True)
def _wall(s, active):  # type: ignore[no-untyped-def]
    """The cycle that the last of the lanes has come to."""
    wall = _now(s.lane[0])
    for number in range(1, active):
        wall = max(wall, _now(s.lane[number]))
    return wall


@njit(cache=True)
def _data_ready(t, s, lanes):  # type: ignore[no-untyped-def]
    """The cycle by which the data of all commands issued so far are there."""
    ready = np.int64(0)
    for number in range(lanes):
        last = s.last[number]
        for k in range(t.data_index.shape[0]):
            ready = max(ready, last[t.data_index[k]] + t.data_latency[k])
    return ready


@njit(cache=True)
def _flush_label(s, g, active):  # type: ignore[no-untyped-def]
    wall = _wall(s, active)
    g.label_cycles[g.clock[1]] += wall - g.clock[0]
    g.clock[0] = wall


@njit(cache=True)
def _start_job(t, s, g, active, unit, job, duration_ps):  # type: ignore[no-untyped-def]
    begin = max(_wall(s, active), _data_ready(t, s, active)) * t.tck_ps
    begin = max(begin, g.free_ps[unit])
    g.free_ps[unit] = begin + duration_ps
    g.busy[job, 0] += duration_ps
    g.busy[job, 1] += 1


@njit(cache=True)
def _wait_for(t, s, g, active, unit):  # type: ignore[no-untyped-def]
    free = -(-g.free_ps[unit] // t.tck_ps)
    for number in range(active):
        lane = s.lane[number]
        if free > lane[FLOOR]:
            lane[FLOOR] = free
            lane[FLOOR_UNIT] = unit


@njit(cache=True)
def _joint_skip(t, s, g, active, code, record, left):  # type: ignore[no-untyped-def]
    """`_skip` for a loop in which lanes meet: all of them, the units and the label must be in the same state."""
    _flush_label(s, g, active)
    wall = g.clock[0]
    period = wall - s.snap[0, code[s.lane[0, PC], DEPTH], S_NOW]
    rounds = np.int64(left)
    for number in range(active):
        pc = s.lane[number, PC]
        depth = code[pc, DEPTH]
        snap = s.snap[number, depth]
        now = _now(s.lane[number])
        period = now - snap[S_NOW]
        if snap[S_VALID] <= code[pc, MOVES_ROWS] or not _repeats(t, s, number, depth, code[pc, C], g.clock[1]):
            rounds = 0
        elif period != _now(s.lane[0]) - s.snap[0, depth, S_NOW]:
            rounds = 0
        else:
            rounds = min(rounds, _rounds_until(t, s.lane[number], record, now, period))
    depth = code[s.lane[0, PC], DEPTH]
    for unit in range(g.free_ps.shape[0]):
        if max(g.free_ps[unit] - wall * t.tck_ps, 0) != g.snap_free[depth, unit]:
            rounds = 0
    _joint_move(t, s, g, active, code, rounds, period, depth, wall)
    return rounds


@njit(cache=True)
def _joint_move(t, s, g, active, code, rounds, period, depth, wall):  # type: ignore[no-untyped-def]
    """Advance everything by `rounds`, or remember everything if there is nothing to skip."""
    for number in range(active):
        pc = s.lane[number, PC]
        if rounds > 0:
            _advance(t, s, number, depth, code[pc, C], code[pc, MOVES_ROWS], rounds, period)
        _store(t, s, number, depth, code[pc, C], code[pc, MOVES_ROWS], g.clock[1])
    if rounds > 0:
        _joint_advance(t, g, rounds, period, depth, wall)
    for unit in range(g.free_ps.shape[0]):
        g.snap_free[depth, unit] = max(g.free_ps[unit] - g.clock[0] * t.tck_ps, 0)
    for job in range(g.busy.shape[0]):
        g.snap_busy[depth, job, 0] = g.busy[job, 0]
        g.snap_busy[depth, job, 1] = g.busy[job, 1]
    for label in range(g.label_cycles.shape[0]):
        g.snap_label[depth, label] = g.label_cycles[label]


@njit(cache=True)
def _joint_advance(t, g, rounds, period, depth, wall):  # type: ignore[no-untyped-def]
    for unit in range(g.free_ps.shape[0]):
        if g.free_ps[unit] > wall * t.tck_ps:
            g.free_ps[unit] += rounds * period * t.tck_ps
    for job in range(g.busy.shape[0]):
        g.busy[job, 0] += (g.busy[job, 0] - g.snap_busy[depth, job, 0]) * rounds
        g.busy[job, 1] += (g.busy[job, 1] - g.snap_busy[depth, job, 1]) * rounds
    for label in range(g.label_cycles.shape[0]):
        g.label_cycles[label] += (g.label_cycles[label] - g.snap_label[depth, label]) * rounds
    g.clock[0] += rounds * period


@njit(cache=True)
def _loop_end(t, s, g, active, code, record):  # type: ignore[no-untyped-def]
    """All lanes stand at the end of the same loop: go round again, skip ahead, or leave it."""
    pc = s.lane[0, PC]
    depth = code[pc, DEPTH]
    done = s.counter[0, depth] + 1
    left = code[pc, A] - done
    regular = t.skips != 0
    for number in range(active):
        regular = regular and code[s.lane[number, PC], C] >= 0
    if left > 1 and regular:
        skipped = _joint_skip(t, s, g, active, code, record, left)
        done += skipped
        left -= skipped
    for number in range(active):
        s.counter[number, depth] = done
        pc = s.lane[number, PC]
        s.lane[number, PC] = pc - code[pc, B] if left > 0 else pc + 1


@njit(cache=True)
def _finish(t, s, g, active, record):  # type: ignore[no-untyped-def]
    """The program's end: data there, units idle, every refresh due before then done; all lanes wait for it."""
    lanes = s.lane.shape[0]
    end = max(_wall(s, lanes), _data_ready(t, s, lanes))
    for unit in range(g.free_ps.shape[0]):
        end = max(end, -(-g.free_ps[unit] // t.tck_ps))
    settled = False
    while not settled:
        settled = True
        for number in range(lanes):
            lane = s.lane[number]
            while lane[DUE] < end:
                _refresh(t, s.last[number], lane, s.rows[number], s.count[number], record, number)
                settled = False
            end = max(end, lane[PREVIOUS] + 1)
    for number in range(lanes):
        lane = s.lane[number]
        idle = end - 1 - lane[PREVIOUS]
        s.count[number, t.reason_first + END_REASON] += idle
        if lane[OPEN] != 0:
            s.count[number, OPEN_CYCLES] += idle
        lane[PREVIOUS] = end - 1
        lane[FLOOR] = end
    g.label_cycles[g.clock[1]] += end - g.clock[0]
    g.clock[0] = end
    return end


@njit(cache=True)
def play(t, s, g, entry, code, record):  # type: ignore[no-untyped-def]
    """Play one program, lane i running the code from row entry[i] on; returns the end cycle, or -1 - lane.

    Lanes without an entry are channels that the program leaves alone: they are only refreshed. A negative result
    means that this lane stopped on an error, with its STATUS and PC saying which and where.
    """
    active = entry.shape[0]
    for number in range(active):
        s.lane[number, PC] = entry[number]
    g.clock[1] = 0
    while active > 0:
        for number in range(active):
            _run(t, s, number, code, record)
            if s.lane[number, STATUS] != FINE:
                return np.int64(-1 - number)
        pc = s.lane[0, PC]
        op = code[pc, OP]
        if op == END:
            _loop_end(t, s, g, active, code, record)
            continue
        if op == HALT:
            break
        if op == START:
            _start_job(t, s, g, active, code[pc, A], code[pc, B], code[pc, C])
        elif op == WAIT:
            _wait_for(t, s, g, active, code[pc, A])
        else:
            _flush_label(s, g, active)
            g.clock[1] = code[pc, A]
        for number in range(active):
            s.lane[number, PC] += 1
    if _wall(s, s.lane.shape[0]) >= t.horizon:
        s.lane[0, STATUS] = OVERFLOW
        return np.int64(-1)
    return _finish(t, s, g, active, record)

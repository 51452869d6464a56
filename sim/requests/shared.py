"""The scheduler with one read and one write queue per channel (first ready, first come), compiled.

All channels run together, since one front end feeds them, one request a cycle and in order.

Cycle by cycle it would be: take one request; queue the refreshes that are due; issue the oldest ready command of the
requests a row was opened for, else the first waiting refresh, else, with no refresh waiting, the oldest ready command
of the reads (or of the writes while draining). Here cycles in which nothing can happen are skipped, exactly: every
candidate has a first cycle at which it is ready, and nothing moves before the least of them.
"""

# ruff: noqa: SIM109  (compiled code: plain comparisons and loops)

import numpy as np

from nearbank.compiled import compiled, compiled_part
from nearbank.sim.pointers import lowest_bit, pointer
from nearbank.sim.requests import shared_queues as at
from nearbank.sim.requests import state as fields
from nearbank.sim.requests.shared_queues import OPENED, READS, WRITES
from nearbank.sim.requests.state import (
    ACT,
    FAR,
    OPEN_ROW,
    PRE,
    PREA,
    RD,
    RDA,
    REFAB,
    REFPB,
    REQUEST_WIDTH,
    TOUCHED,
    USED,
    WR,
    WRA,
    answer,
    bank_at,
    do_command,
    do_to_all,
)
from nearbank.sim.requests.timing import ready_cycle, ready_cycle_anywhere, ready_cycle_of_all

ANY_BUS, COLUMN_BUS, ROW_BUS, SECOND_HALF = 0, 1, 2, 3  # SECOND_HALF: of a clock, for precharges alone
ALL_BANKS = 1  # a refresh policy


@compiled
def run_shared(tables, memory, requests, issued, wakes, drain):  # type: ignore[no-untyped-def]
    """Take all requests, and with `drain` serve them; the memory's counters and `issued` hold what happened.

    `wakes` [channel] is scratch: the cycle at which each has to be looked at.
    """
    t, q, log = pointer(tables, 0), pointer(requests, 0), pointer(issued, 0)
    for channel in range(len(memory)):
        m = pointer(memory, channel)
        m[at.NEXT_REFRESH] = t[at.REFRESH_INTERVAL] if t[at.REFRESH] else FAR
        wakes[channel] = m[at.NEXT_REFRESH]
    total, taken, cycle = len(requests), 0, 0
    while taken < total or (drain and not _are_empty(memory)):
        if taken < total and q[taken * REQUEST_WIDTH + fields.ARRIVAL] <= cycle:
            channel = q[taken * REQUEST_WIDTH + fields.CHANNEL]
            done = _take(t, pointer(memory, channel), q, taken, cycle)
            if done == fields.QUEUED:
                wakes[channel] = cycle + 1
            if done:
                taken += 1
                if taken == total and not drain:
                    return
        cycle += 1
        soonest = FAR
        for channel in range(len(memory)):
            if wakes[channel] <= cycle:
                m = pointer(memory, channel)
                wakes[channel] = max(min(_tick(t, m, q, log, cycle), m[at.NEXT_REFRESH]), cycle + 1)
            soonest = min(soonest, wakes[channel])
        if taken < total:
            request = taken * REQUEST_WIDTH
            if at.has_place(t, pointer(memory, q[request + fields.CHANNEL]), q, taken):
                soonest = min(soonest, q[request + fields.ARRIVAL] + 1)
        cycle = max(cycle, soonest - 1)


@compiled_part
def _are_empty(memory):  # type: ignore[no-untyped-def]
    for channel in range(len(memory)):
        m = pointer(memory, channel)
        if m[at.SIZE + READS] + m[at.SIZE + WRITES] + m[at.OPENED_COUNT]:
            return False
    return True


@compiled_part
def _take(t, m, q, number, cycle):  # type: ignore[no-untyped-def]
    """Put a request in its queue. A queued write of the same block answers a read and absorbs a write at once."""
    if not at.has_place(t, m, q, number):
        return 0
    write = q[number * REQUEST_WIDTH + fields.WRITE]
    m[fields.LAST_ACCEPTED] = cycle
    if at.queued_write(m, q, number):
        answer(m, write, cycle + 1, 1)
        return fields.ANSWERED
    at.append(t, m, q, WRITES if write else READS, number, cycle)
    return fields.QUEUED


@compiled_part
def _tick(t, m, q, log, cycle):  # type: ignore[no-untyped-def]
    """One cycle; returns the first later cycle at which a command may be ready."""
    if cycle == m[at.NEXT_REFRESH]:
        _queue_refreshes(t, m)
    bus = np.int64(ANY_BUS)
    if t[at.HALF_CLOCKS] and cycle % 2 == 0:
        bus = np.int64(SECOND_HALF)
    elif t[at.TWO_BUSES]:
        bus = np.int64(COLUMN_BUS)
    soonest = _slot(t, m, q, log, cycle, bus)
    if bus == COLUMN_BUS:
        soonest = min(soonest, _slot(t, m, q, log, cycle, np.int64(ROW_BUS)))
    return cycle + 1 if bus == SECOND_HALF else soonest


@compiled_part
def _queue_refreshes(t, m):  # type: ignore[no-untyped-def]
    """The refreshes that are due now: the next bank, or every range of banks refreshed together."""
    m[at.NEXT_REFRESH] += t[at.REFRESH_INTERVAL]
    together = t[at.REFRESH] == ALL_BANKS
    for unit in range(t[at.UNITS] if together else 1):
        place = (m[at.HEAD_REFRESH] + m[at.WAITING]) % at.MOST_REFRESHES
        m[at.REFRESHES + place] = unit if together else m[at.NEXT_BANK]
        m[at.WAITING] += 1
    m[at.NEXT_BANK] = (m[at.NEXT_BANK] + 1) % t[at.BANKS]


@compiled_part
def _slot(t, m, q, log, cycle, bus):  # type: ignore[no-untyped-def]
    """Fill one place on a command bus, if any candidate is ready."""
    soonest = FAR
    if bus < ROW_BUS and m[at.OPENED_COUNT]:
        e = _oldest_ready(t, m, cycle, at.OPENED_READS, at.OPENED_ENTRY, RD, 0)
        e = _oldest_ready(t, m, cycle, at.OPENED_WRITES, at.OPENED_ENTRY, WR, e)
        if e:
            _serve(t, m, q, log, cycle, OPENED, e)
            return cycle + 1
        soonest = min(m[at.group_at(at.OPENED_READS)], m[at.group_at(at.OPENED_WRITES)])
    if m[at.WAITING]:
        return soonest if bus == COLUMN_BUS else min(soonest, _refresh(t, m, log, cycle, bus))
    queue = _queue_to_serve(t, m)
    e, when = _oldest_queued(t, m, cycle, queue, bus)
    if e:
        _serve(t, m, q, log, cycle, queue, e)
        return cycle + 1
    soonest = min(soonest, when)
    if t[at.ROW_TIMEOUT] and bus != COLUMN_BUS:
        soonest = min(soonest, _close_idle_row(t, m, log, cycle))
    return soonest


@compiled_part
def _queue_to_serve(t, m):  # type: ignore[no-untyped-def]
    """Reads, or writes while the write queue is drained; draining starts too when no read waits."""
    reads, writes = m[at.SIZE + READS], m[at.SIZE + WRITES]
    if m[at.DRAINING]:
        if writes < t[at.DRAIN_BELOW] and reads:
            m[at.DRAINING] = 0
    elif writes > t[at.DRAIN_ABOVE] or reads == 0:
        m[at.DRAINING] = 1
    return WRITES if m[at.DRAINING] else READS


@compiled_part
def _oldest_queued(t, m, cycle, queue, bus):  # type: ignore[no-untyped-def]
    """The oldest request of a queue whose command is ready, 0 if none; and when one may be ready."""
    e, soonest, group, lane = 0, FAR, queue * at.KINDS, at.LANES + queue * at.LANE_WIDTH
    if bus < ROW_BUS:
        e = _oldest_ready(t, m, cycle, group + at.COLUMNS, lane + at.HIT, WR if queue == WRITES else RD, e)
        soonest = min(soonest, m[at.group_at(group + at.COLUMNS)])
    if bus == ANY_BUS or bus == ROW_BUS:
        e = _oldest_ready(t, m, cycle, group + at.ACTIVATIONS, lane + at.MISS, ACT, e)
        soonest = min(soonest, m[at.group_at(group + at.ACTIVATIONS)])
    if bus != COLUMN_BUS:
        e = _oldest_ready(t, m, cycle, group + at.PRECHARGES, lane + at.MISS, PRE, e)
        soonest = min(soonest, m[at.group_at(group + at.PRECHARGES)])
    return e, soonest


@compiled_part
def _oldest_ready(t, m, cycle, group, place, command, best):  # type: ignore[no-untyped-def]
    """The oldest entry at `place` of the group's banks whose command is ready, or `best` (0: none) if that is older.

    Nothing is looked at before the cycle noted for the group, no bank before the one noted for its command.
    """
    g = at.group_at(group)
    if m[g + at.BOUND] > cycle:
        return best
    soonest = ready_cycle_anywhere(t, m, command)
    if soonest <= cycle:
        soonest = FAR
        oldest = m[best + at.NUMBER] if best else FAR
        for word in range((t[at.BANKS] + 63) >> 6):
            left = m[g + at.MASK + word]
            while left:
                bank = word * 64 + lowest_bit(left)
                left &= left - 1
                b = bank_at(bank)
                e, when = m[b + place], m[b + at.SOON + command]
                if when <= cycle and m[e + at.NUMBER] < oldest:
                    when = ready_cycle(t, m, command, bank)
                    m[b + at.SOON + command] = when
                    if when <= cycle:
                        best, oldest = e, m[e + at.NUMBER]
                soonest = min(soonest, when)
    m[g + at.BOUND] = soonest
    return best


@compiled_part
def _serve(t, m, q, log, cycle, queue, e):  # type: ignore[no-untyped-def]
    """Issue the command a queued request needs; its last one takes it off, an activation moves it to OPENED."""
    bank, row = m[e + at.ENTRY_BANK], m[e + at.ENTRY_ROW]
    b = bank_at(bank)
    open_row = m[b + OPEN_ROW]
    hit = open_row == row
    if not m[e + at.SEEN]:
        m[fields.HITS if hit else (fields.CONFLICTS if open_row >= 0 else fields.MISSES)] += 1
        m[e + at.SEEN] = 1
    command = ACT if open_row < 0 else PRE
    if hit:
        command = _column_command(t, m, queue, e, b)
    column = q[m[e + at.NUMBER] * REQUEST_WIDTH + fields.COLUMN]
    do_command(t, m, log, command, m[at.CHANNEL], bank, row, column, cycle)
    if hit:
        _finish(t, m, q, cycle, queue, e)
    elif command == ACT:
        at.unlink(m, q, queue, e)
        at.set_opened(t, m, bank, e, m[e + at.ENTRY_WRITE])
    if command != RD and command != WR:
        at.look_again(t, m, bank, bank + 1)


@compiled_part
def _column_command(t, m, queue, e, b):  # type: ignore[no-untyped-def]
    """RDA for RD and WRA for WR when the policy closes the row now and nobody else waits for it."""
    write = m[e + at.ENTRY_WRITE]
    closes = t[at.ROW_CAP] and m[b + USED] + 1 >= t[at.ROW_CAP]
    if closes and (queue == OPENED or m[b + at.OPENED_ENTRY] == 0):
        return WRA if write else RDA
    return WR if write else RD


@compiled_part
def _finish(t, m, q, cycle, queue, e):  # type: ignore[no-untyped-def]
    """The request's column access has issued: count it and take it off."""
    write, bank = m[e + at.ENTRY_WRITE], m[e + at.ENTRY_BANK]
    done = cycle + (t[at.WRITE_LATENCY] if write else t[at.READ_LATENCY])
    answer(m, write, done, done - m[e + at.ARRIVED])
    if queue == OPENED:
        at.set_opened(t, m, bank, 0, write)
        at.regroup(t, m, bank, READS)
        at.regroup(t, m, bank, WRITES)
    else:
        at.take_out(t, m, q, queue, e)
    at.give_back(m, e)


@compiled_part
def _refresh(t, m, log, cycle, bus):  # type: ignore[no-untyped-def]
    """Bring the first waiting refresh forward: close its banks, then refresh them."""
    first, count, command, close = m[at.REFRESHES + m[at.HEAD_REFRESH]], 1, REFPB, PRE
    if t[at.REFRESH] == ALL_BANKS:
        count, command, close = t[at.UNIT_BANKS], REFAB, PREA
        first *= count
    for bank in range(first, first + count):
        if m[bank_at(bank) + OPEN_ROW] >= 0:
            command = close
            if m[bank_at(bank) + at.OPENED_ENTRY]:
                return FAR  # a request waits for this row; it goes first
    when = ready_cycle_of_all(t, m, command, first, count)
    if when > cycle or (bus == SECOND_HALF and command != close):
        return when
    do_to_all(t, m, log, command, m[at.CHANNEL], first, count, cycle)
    at.look_again(t, m, first, first + count)
    if command != close:
        m[at.HEAD_REFRESH] = (m[at.HEAD_REFRESH] + 1) % at.MOST_REFRESHES
        m[at.WAITING] -= 1
    return cycle + 1


@compiled_part
def _close_idle_row(t, m, log, cycle):  # type: ignore[no-untyped-def]
    """Close the first row that nothing has used for the policy's time and no queued request hits."""
    soonest = FAR
    for bank in range(t[at.BANKS]):
        b = bank_at(bank)
        if m[b + OPEN_ROW] < 0 or m[b + at.OPENED_ENTRY]:
            continue
        if m[at.lane_at(bank, READS) + at.HIT] or m[at.lane_at(bank, WRITES) + at.HIT]:
            continue
        when = max(m[b + TOUCHED] + t[at.ROW_TIMEOUT], ready_cycle(t, m, PRE, bank))
        if when <= cycle:
            do_command(t, m, log, PRE, m[at.CHANNEL], bank, -1, -1, cycle)
            at.look_again(t, m, bank, bank + 1)
            return cycle + 1
        soonest = min(soonest, when)
    return soonest

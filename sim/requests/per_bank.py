"""The scheduler with a command queue per bank, compiled: for all channels together, since one front end feeds them.

Cycle by cycle a channel would: close rows for a refresh that is due, or refresh; else let the banks take turns, each
offering the first ready command of its queue; then move one request from the read queue (or the write queue while it is
drained) to its bank's queue. After that the front end hands one request to its channel, or waits for a place there.
Cycles in which nothing can happen are skipped, exactly. Requests for a block that is already waited for are merged.
"""

from nearbank.compiled import compiled, compiled_part
from nearbank.sim.pointers import lowest_bit, pointer
from nearbank.sim.requests import per_bank_lines as at
from nearbank.sim.requests import state as fields
from nearbank.sim.requests.per_bank_lines import READS, WRITES
from nearbank.sim.requests.state import (
    ACT,
    FAR,
    OPEN_ROW,
    PRE,
    REFAB,
    REFPB,
    REQUEST_WIDTH,
    TOUCHED,
    USED,
    answer,
    bank_at,
    do_command,
    do_to_all,
)
from nearbank.sim.requests.timing import (
    ELSEWHERE,
    LEVELS,
    NODE_READY,
    PATH,
    ready_cycle,
    ready_cycle_of_all,
)

ALL_BANKS = 1  # a refresh policy


@compiled
def run_per_bank(tables, memory, requests, issued, wakes, drain):  # type: ignore[no-untyped-def]
    """Serve all requests until the last answer (with `drain` until the last write is in the memory, too).

    `wakes` [channel] is scratch: the cycle at which each has to be looked at. So are the requests' own two fields.
    """
    t, q, log = pointer(tables, 0), pointer(requests, 0), pointer(issued, 0)
    for channel in range(len(memory)):
        m = pointer(memory, channel)
        m[at.NEXT_REFRESH] = t[at.REFRESH_INTERVAL] if t[at.REFRESH] else FAR
        m[at.LOOSE + READS] = -1
        m[at.LOOSE + WRITES] = -1
    total, taken, cycle = len(requests), 0, 0
    while taken < total or cycle <= _busy_until(memory, drain):
        for channel in range(len(memory)):
            if wakes[channel] <= cycle:
                m = pointer(memory, channel)
                _tick(t, m, q, log, cycle, drain and taken == total)
                wakes[channel] = m[at.WAKE]
        if taken < total and q[taken * REQUEST_WIDTH + fields.ARRIVAL] <= cycle:
            channel = q[taken * REQUEST_WIDTH + fields.CHANNEL]
            done = _take(t, pointer(memory, channel), q, taken, cycle)
            if done == fields.QUEUED:
                wakes[channel] = cycle + 1
            if done:
                taken += 1
                if drain and taken == total:
                    wakes[:] = cycle + 1  # from now on writes go out of their own accord
        soonest = FAR
        if taken < total:
            request = taken * REQUEST_WIDTH
            if at.has_place(t, pointer(memory, q[request + fields.CHANNEL]), q[request + fields.WRITE]):
                soonest = q[request + fields.ARRIVAL]
        for channel in range(len(memory)):
            soonest = min(soonest, wakes[channel])
        cycle = max(cycle + 1, soonest)


@compiled_part
def _busy_until(memory, drain):  # type: ignore[no-untyped-def]
    """FAR while a read waits (or a write, when draining), else the cycle of the last answer."""
    last = 0
    for channel in range(len(memory)):
        m = pointer(memory, channel)
        if m[at.KIND_WAITING + READS] or (drain and m[at.KIND_WAITING + WRITES]):
            return FAR
        last = max(last, m[fields.LAST_DONE])
    return last


@compiled_part
def _take(t, m, q, number, cycle):  # type: ignore[no-untyped-def]
    """Put a request in its queue, or merge it with one for the same block."""
    request = number * REQUEST_WIDTH
    write = q[request + fields.WRITE]
    if not at.has_place(t, m, write):
        return 0
    m[fields.LAST_ACCEPTED] = cycle
    q[request + fields.ARRIVAL] = cycle + 1
    written = at.waiting(m, q, number, WRITES) >= 0
    if written or write:  # a waiting write answers the read, or takes the place of the earlier one
        answer(m, write, cycle + 2, 1)
        if written:
            return fields.ANSWERED
    else:
        other = at.waiting(m, q, number, READS)
        if other >= 0:
            q[other * REQUEST_WIDTH + fields.MERGED] += 1
            m[fields.READ_CYCLES] -= cycle + 1  # the other one's end will be added
            return fields.ANSWERED
    at.append(m, q, number)
    return fields.QUEUED


@compiled_part
def _tick(t, m, q, log, cycle, empty_writes):  # type: ignore[no-untyped-def]
    """One cycle of a channel; sets the next cycle it has to be looked at."""
    if cycle == m[at.NEXT_REFRESH]:
        _queue_refreshes(t, m)
    m[at.WAKE] = FAR
    issued = _issue_one(t, m, q, log, cycle)
    moved = at.move_one(t, m, q, empty_writes)
    m[at.WAKE] = cycle + 1 if issued or moved else min(m[at.WAKE], m[at.NEXT_REFRESH])


@compiled_part
def _queue_refreshes(t, m):  # type: ignore[no-untyped-def]
    m[at.NEXT_REFRESH] += t[at.REFRESH_INTERVAL]
    m[at.REFRESHES + (m[at.HEAD] + m[at.WAITING]) % at.MOST_REFRESHES] = m[at.NEXT_UNIT]
    m[at.WAITING] += 1
    m[at.NEXT_UNIT] = (m[at.NEXT_UNIT] + 1) % t[at.UNITS]


@compiled_part
def _issue_one(t, m, q, log, cycle):  # type: ignore[no-untyped-def]
    """One command, or with two buses one row and one column command; whether anything issued."""
    column = False
    if m[at.WAITING] == 0 or not _refresh(t, m, q, log, cycle):
        bank, place = _bank_in_turn(t, m, cycle)
        if bank < 0:
            return t[at.ROW_TIMEOUT] > 0 and _close_idle_row(t, m, log, cycle)
        column = _serve(t, m, q, log, bank, place, cycle)
    if t[at.TWO_BUSES]:
        bank, place = _bank_in_turn(t, m, cycle)
        if bank >= 0 and column != _hits(m, q, bank, place):
            _serve(t, m, q, log, bank, place, cycle)
    return True


@compiled_part
def _hits(m, q, bank, place):  # type: ignore[no-untyped-def]
    """Whether the request in line is for the open row."""
    number = m[at.LINES + bank * at.LONGEST_LINE + place]
    return q[number * REQUEST_WIDTH + fields.ROW] == m[bank_at(bank) + OPEN_ROW]


@compiled_part
def _refresh(t, m, q, log, cycle):  # type: ignore[no-untyped-def]
    """Close a row in the way of the first waiting refresh, or refresh; whether a command issued."""
    first, count = _refreshed_banks(t, m)
    ready = True
    for bank in range(first, first + count):
        b = bank_at(bank)
        if m[b + OPEN_ROW] < 0:
            continue
        when = ready_cycle(t, m, PRE, bank)
        if when <= cycle:
            do_command(t, m, log, PRE, m[at.CHANNEL], bank, -1, -1, cycle)
            m[b + at.CONFLICT] = 0
            at.changed(t, m, q, bank)
            return True
        m[at.WAKE] = min(m[at.WAKE], when)
        ready = False
    command = REFAB if t[at.REFRESH] == ALL_BANKS else REFPB
    when = ready_cycle_of_all(t, m, command, first, count)
    if not ready or when > cycle:
        if ready:
            m[at.WAKE] = min(m[at.WAKE], when)
        return False
    do_to_all(t, m, log, command, m[at.CHANNEL], first, count, cycle)
    m[at.HEAD] = (m[at.HEAD] + 1) % at.MOST_REFRESHES
    m[at.WAITING] -= 1
    return True


@compiled_part
def _close_idle_row(t, m, log, cycle):  # type: ignore[no-untyped-def]
    """Close the first row that nothing has used for the policy's time and no request in line is for."""
    for bank in range(t[at.BANKS]):
        b = bank_at(bank)
        if m[b + OPEN_ROW] < 0 or m[b + at.LENGTH]:
            continue
        when = max(m[b + TOUCHED] + t[at.ROW_TIMEOUT], ready_cycle(t, m, PRE, bank))
        if when <= cycle:
            do_command(t, m, log, PRE, m[at.CHANNEL], bank, -1, -1, cycle)
            m[b + at.CONFLICT] = 0
            return True
        m[at.WAKE] = min(m[at.WAKE], when)
    return False


@compiled_part
def _refreshed_banks(t, m):  # type: ignore[no-untyped-def]
    """First bank and number of banks of the first waiting refresh; single banks go group by group."""
    unit = m[at.REFRESHES + m[at.HEAD]]
    if t[at.REFRESH] == ALL_BANKS:
        return unit * t[at.UNIT_BANKS], t[at.UNIT_BANKS]
    group, rest = unit % t[at.GROUPS], unit // t[at.GROUPS]
    bank, rank = rest % t[at.BANKS_PER_GROUP], rest // t[at.BANKS_PER_GROUP]
    return (rank * t[at.GROUPS] + group) * t[at.BANKS_PER_GROUP] + bank, 1


@compiled_part
def _bank_in_turn(t, m, cycle):  # type: ignore[no-untyped-def]
    """The next bank, after the last one in turn, with a ready command, and the request's place; -1 if none."""
    first, end = 0, 0
    if m[at.WAITING]:
        first, count = _refreshed_banks(t, m)
        end = first + count
    best, nearest, wake = -1, FAR, m[at.WAKE]
    for kind in range(at.KINDS):
        group = at.WAITERS + kind * at.GROUP_WIDTH
        if m[group + at.BOUND] <= cycle:
            bank = _first_in_turn(t, m, cycle, kind, first, end)
            distance = bank - m[at.TURN] - 1
            if distance < 0:
                distance += t[at.BANKS]
            if bank >= 0 and distance < nearest:
                best, nearest = bank, distance
        wake = min(wake, m[group + at.BOUND])
    if best < 0:
        m[at.WAKE] = wake
        return -1, -1
    m[at.TURN] = best
    return best, _first_ready(t, m, best, cycle)


@compiled_part
def _first_in_turn(t, m, cycle, kind, first, end):  # type: ignore[no-untyped-def]
    """The next bank whose command of this kind is ready, or -1; those from `first` to `end` stand back for a refresh.

    Of banks that share the top of the tree none is looked at while that does not allow the command.
    """
    group, command = at.WAITERS + kind * at.GROUP_WIDTH, t[at.COMMAND + kind]
    soonest, words = FAR, (t[at.BANKS] + 63) >> 6
    start, after = m[at.TURN] >> 6, -2 << (m[at.TURN] & 63)  # the banks behind the last one in its word
    word = start
    for step in range(words + 1):
        left = m[group + at.MASK + word]
        if step == 0:
            left &= after
        elif step == words:
            left &= ~after
        while left:
            bank = word * 64 + lowest_bit(left)
            when = m[t[PATH + bank * LEVELS] + NODE_READY + command]
            if when > cycle:
                left &= t[ELSEWHERE + bank]
                soonest = min(soonest, when)
                continue
            left &= left - 1
            soon = bank_at(bank) + at.SOON + kind
            if m[soon] <= cycle:
                m[soon] = ready_cycle(t, m, command, bank)
                if m[soon] <= cycle and not first <= bank < end:
                    return bank
            soonest = min(soonest, m[soon])
        word = 0 if word + 1 == words else word + 1
    m[group + at.BOUND] = max(soonest, cycle + 1)
    return -1


@compiled_part
def _first_ready(t, m, bank, cycle):  # type: ignore[no-untyped-def]
    """The place of the first request in the bank's line whose command is ready, when there is one."""
    if m[bank_at(bank) + OPEN_ROW] < 0 or _is_ready(t, m, at.CLOSE, bank, cycle):
        return 0
    read, write = m[bank_at(bank) + at.HIT + READS], m[bank_at(bank) + at.HIT + WRITES]
    if read < 0 or not _is_ready(t, m, at.READ, bank, cycle):
        return write
    if write < 0 or write > read or not _is_ready(t, m, at.WRITE, bank, cycle):
        return read
    return write


@compiled_part
def _is_ready(t, m, kind, bank, cycle):  # type: ignore[no-untyped-def]
    """Whether the bank waits for a command of this kind and the rules allow it."""
    waits = m[at.WAITERS + kind * at.GROUP_WIDTH + at.MASK + (bank >> 6)] >> (bank & 63) & 1
    return waits and ready_cycle(t, m, t[at.COMMAND + kind], bank) <= cycle


@compiled_part
def _serve(t, m, q, log, bank, place, cycle):  # type: ignore[no-untyped-def]
    """Issue the command a request in line needs; whether it was its column access."""
    b, number = bank_at(bank), m[at.LINES + bank * at.LONGEST_LINE + place]
    request = number * REQUEST_WIDTH
    row, open_row = q[request + fields.ROW], m[b + OPEN_ROW]
    hit = open_row == row
    command = ACT if open_row < 0 else PRE
    if hit:
        command = t[at.COMMAND + (at.WRITE if q[request + fields.WRITE] else at.READ)]
        kind = fields.CONFLICTS if m[b + at.CONFLICT] else fields.MISSES
        m[fields.HITS if m[b + USED] else kind] += 1
    elif command == PRE:
        m[b + at.CONFLICT] = 1
    do_command(t, m, log, command, m[at.CHANNEL], bank, row, q[request + fields.COLUMN], cycle)
    if hit:
        if t[at.CLOSED]:
            m[b + at.CONFLICT] = 0
        _finish(t, m, q, number, cycle)
        at.leave_line(t, m, q, bank, place)
    at.changed(t, m, q, bank)
    return hit


@compiled_part
def _finish(t, m, q, number, cycle):  # type: ignore[no-untyped-def]
    """The column access has issued: answer the read and those merged with it. Writes were answered when taken."""
    request = number * REQUEST_WIDTH
    if q[request + fields.WRITE] == 0:
        done, more = cycle + t[at.READ_LATENCY], q[request + fields.MERGED]
        answer(m, 0, done, done - q[request + fields.ARRIVAL])
        m[fields.READS_DONE] += more
        m[fields.READ_CYCLES] += more * done

"""The scheduler with one read and one write queue per channel (first ready, first come), compiled.

All channels run together, since one front end feeds them, one request a cycle and in order.

Cycle by cycle it would be: take one request; queue the refreshes that are due; issue the oldest ready command of the
requests a row was opened for, else the first waiting refresh, else, with no refresh waiting, the oldest ready command
of the reads (or of the writes while draining). Here cycles in which nothing can happen are skipped, exactly: every
candidate has a first cycle at which it is ready, and nothing moves before the least of them.
"""

# ruff: noqa: SIM102, SIM110  (compiled code: plain comparisons and loops)

import numpy as np
from numba import njit

from nearbank.sim.requests import state as fields
from nearbank.sim.requests.clocks import (
    ACT,
    CLOCK_FIELDS,
    MOST_BANKS,
    PRE,
    PREA,
    RD,
    RDA,
    REFAB,
    REFPB,
    WR,
    WRA,
    Record,
    ready_cycle,
    ready_cycle_of_all,
)
from nearbank.sim.requests.state import BANK_FIELDS, FAR, do_command

LONGEST_QUEUE = 1024
READS, WRITES, OPENED = 0, 1, 2  # the queues; OPENED holds requests a row was opened for
ANY_BUS, COLUMN_BUS, ROW_BUS, SECOND_HALF = 0, 1, 2, 3  # SECOND_HALF: of a clock, for precharges alone
NO_REFRESH, ALL_BANKS, PER_BANK = 0, 1, 2
_ENTRY = (3, LONGEST_QUEUE + 1)

# The policy and the machine in numbers
SETUP_FIELDS = [
    (name, np.int64)
    for name in (
        "channel",
        "banks",
        "read_size",
        "write_size",
        "drain_above",  # start draining with more writes than this
        "drain_below",  # stop with fewer than this
        "keep_hits",
        "two_buses",
        "half_clocks",
        "refresh",
        "refresh_interval",
        "units",  # ranges of banks refreshed together
        "unit_banks",
        "read_latency",
        "write_latency",
        "row_cap",  # 0: rows stay open
        "row_timeout",  # 0: rows stay open
    )
]

# Queue entries by [queue, slot]; order[queue, place] holds the slots by age, the free ones after them. An entry's
# command is not ready before its cycle `soon`. Per bank: requests in OPENED, and by queue those that hit its open row.
QUEUE_FIELDS = [
    *((name, np.int64, _ENTRY) for name in ("bank", "row", "write", "arrived", "number", "seen", "soon", "order")),
    ("size", np.int64, (3,)),
    ("refreshes", np.int64, (4 * MOST_BANKS,)),
    *((name, np.int64) for name in ("waiting", "head", "next_refresh", "next_bank", "draining", "wake")),
    ("opened", np.int64, (MOST_BANKS,)),
    ("hits", np.int64, (2, MOST_BANKS)),
    ("blocked", np.int64, (MOST_BANKS,)),  # some request waits until the bank's row is no longer kept
]

SHARED_STATE = np.dtype([*CLOCK_FIELDS, *BANK_FIELDS, *SETUP_FIELDS, *QUEUE_FIELDS])


def new_shared_states(channels: int) -> Record:
    """Empty states, one a channel: rows closed, queues empty. Clocks and setup are the caller's to fill."""
    states = np.zeros(channels, SHARED_STATE)
    states["open_row"] = -1
    states["order"] = np.arange(_ENTRY[1])
    states["channel"] = np.arange(channels)
    return states


@njit(cache=True)
def run_shared(states, requests, log, drain):  # type: ignore[no-untyped-def]
    """Take all requests, and with `drain` serve them; the states' counters and the log hold what happened."""
    for channel in range(len(states)):
        state = states[channel]
        state.next_refresh = state.refresh_interval if state.refresh else FAR
        state.wake = state.next_refresh
    total, taken, cycle = requests.shape[1], 0, 0
    while taken < total or (drain and not _are_empty(states)):
        if taken < total and requests[fields.ARRIVAL, taken] <= cycle:
            if _take(states[requests[fields.CHANNEL, taken]], requests, taken, cycle):
                taken += 1
                if taken == total and not drain:
                    return
        cycle += 1
        for channel in range(len(states)):
            if states[channel].wake <= cycle:
                soonest = _tick(states[channel], requests, log, cycle)
                states[channel].wake = max(min(soonest, states[channel].next_refresh), cycle + 1)
        cycle = max(cycle, _next_cycle(states, requests, taken, total) - 1)


@njit(cache=True)
def _next_cycle(states, requests, taken, total):  # type: ignore[no-untyped-def]
    """The next cycle in which a channel or the front end may do something."""
    cycle = FAR
    if taken < total and _has_place(states[requests[fields.CHANNEL, taken]], requests, taken):
        cycle = requests[fields.ARRIVAL, taken] + 1
    for channel in range(len(states)):
        cycle = min(cycle, states[channel].wake)
    return cycle


@njit(cache=True)
def _are_empty(states):  # type: ignore[no-untyped-def]
    for channel in range(len(states)):
        if not _is_empty(states[channel]):
            return False
    return True


@njit(cache=True)
def _is_empty(state):  # type: ignore[no-untyped-def]
    return state.size[READS] + state.size[WRITES] + state.size[OPENED] == 0


@njit(cache=True)
def _has_place(state, requests, number):  # type: ignore[no-untyped-def]
    """Whether the request would be taken now (a read or write of a queued write's block always is)."""
    queue = WRITES if requests[fields.WRITE, number] else READS
    limit = state.write_size if queue == WRITES else state.read_size
    return state.size[queue] < limit or _queued_write(state, requests, number)


@njit(cache=True)
def _queued_write(state, requests, number):  # type: ignore[no-untyped-def]
    """Whether a write of the request's block waits in the write queue."""
    for place in range(state.size[WRITES]):
        if requests[fields.BLOCK, state.number[WRITES, state.order[WRITES, place]]] == requests[fields.BLOCK, number]:
            return True
    return False


@njit(cache=True)
def _take(state, requests, number, cycle):  # type: ignore[no-untyped-def]
    """Put a request in its queue. A queued write of the same block answers a read and absorbs a write at once."""
    if not _has_place(state, requests, number):
        return False
    write = requests[fields.WRITE, number]
    state.counters[fields.LAST_ACCEPTED] = cycle
    if state.size[WRITES] and _queued_write(state, requests, number):
        state.counters[fields.WRITES_DONE if write else fields.READS_DONE] += 1
        state.counters[fields.READ_CYCLES] += 0 if write else 1
        state.counters[fields.LAST_DONE] = max(state.counters[fields.LAST_DONE], cycle + 1)
        return True
    queue = WRITES if write else READS
    slot = state.order[queue, state.size[queue]]
    state.bank[queue, slot], state.row[queue, slot] = requests[fields.BANK, number], requests[fields.ROW, number]
    state.write[queue, slot], state.arrived[queue, slot] = write, cycle
    state.number[queue, slot], state.seen[queue, slot], state.soon[queue, slot] = number, 0, 0
    state.size[queue] += 1
    state.wake = cycle + 1
    if state.open_row[requests[fields.BANK, number]] == requests[fields.ROW, number]:
        state.hits[queue, requests[fields.BANK, number]] += 1
    return True


@njit(cache=True)
def _tick(state, requests, log, cycle):  # type: ignore[no-untyped-def]
    """One cycle; returns the first later cycle at which a command may be ready."""
    if cycle == state.next_refresh:
        _queue_refreshes(state)
    if state.half_clocks and cycle % 2 == 0:
        _slot(state, requests, log, cycle, SECOND_HALF)
        return cycle + 1
    if not state.two_buses:
        return _slot(state, requests, log, cycle, ANY_BUS)
    columns = _slot(state, requests, log, cycle, COLUMN_BUS)
    return min(columns, _slot(state, requests, log, cycle, ROW_BUS))


@njit(cache=True)
def _queue_refreshes(state):  # type: ignore[no-untyped-def]
    """The refreshes that are due now: the next bank, or every range of banks refreshed together."""
    state.next_refresh += state.refresh_interval
    many = state.units if state.refresh == ALL_BANKS else 1
    for unit in range(many):
        at = (state.head + state.waiting) % len(state.refreshes)
        state.refreshes[at] = unit if state.refresh == ALL_BANKS else state.next_bank
        state.waiting += 1
    state.next_bank = (state.next_bank + 1) % state.banks


@njit(cache=True)
def _slot(state, requests, log, cycle, bus):  # type: ignore[no-untyped-def]
    """Fill one place on a command bus, if any candidate is ready."""
    soonest = FAR
    if bus < ROW_BUS and state.size[OPENED]:
        place, soonest = _oldest_opened(state, cycle)
        if place >= 0:
            _serve(state, requests, log, cycle, OPENED, place)
            return cycle + 1
    if state.waiting:
        return soonest if bus == COLUMN_BUS else min(soonest, _refresh(state, log, cycle, bus))
    queue = _queue_to_serve(state)
    place, when = _oldest_ready(state, cycle, queue, bus)
    if place >= 0:
        _serve(state, requests, log, cycle, queue, place)
        return cycle + 1
    soonest = min(soonest, when)
    if state.row_timeout and bus != COLUMN_BUS:
        soonest = min(soonest, _close_idle_row(state, log, cycle))
    return soonest


@njit(cache=True)
def _queue_to_serve(state):  # type: ignore[no-untyped-def]
    """Reads, or writes while the write queue is drained; draining starts too when no read waits."""
    reads, writes = state.size[READS], state.size[WRITES]
    if state.draining:
        if writes < state.drain_below and reads:
            state.draining = 0
    elif writes > state.drain_above or reads == 0:
        state.draining = 1
    return WRITES if state.draining else READS


@njit(cache=True)
def _needed(open_row, row, write):  # type: ignore[no-untyped-def]
    """The command that brings a request forward, given its bank's open row."""
    if open_row == row:
        return WR if write else RD
    return ACT if open_row < 0 else PRE


@njit(cache=True)
def _oldest_opened(state, cycle):  # type: ignore[no-untyped-def]
    """The oldest ready request among those a row was opened for: its place or -1, and when one may be ready."""
    best, oldest, soonest = -1, FAR, FAR
    for place in range(state.size[OPENED]):
        slot = state.order[OPENED, place]
        when = state.soon[OPENED, slot]
        if when <= cycle:
            when = ready_cycle(state, WR if state.write[OPENED, slot] else RD, state.bank[OPENED, slot])
            state.soon[OPENED, slot] = when
        if when > cycle:
            soonest = min(soonest, when)
        elif state.arrived[OPENED, slot] < oldest:
            best, oldest = place, state.arrived[OPENED, slot]
    return best, soonest


@njit(cache=True)
def _oldest_ready(state, cycle, queue, bus):  # type: ignore[no-untyped-def]
    """The oldest request of a queue whose command is ready: its place or -1, and when one may be ready.

    An entry is looked at again only from its `soon` on: rules never make a command ready earlier than it was before.
    """
    soonest, last, last_when = FAR, -1, 0
    order, soon = state.order[queue], state.soon[queue]
    for place in range(state.size[queue]):
        slot = order[place]
        when = soon[slot]
        if when <= cycle:
            if last >= 0 and _is_alike(state, queue, slot, last):
                when = last_when
                state.soon[queue, slot] = when
            else:
                when = _ready_when(state, queue, place, slot, bus)
                if when <= cycle:
                    return place, when
                if when < FAR:
                    last, last_when = slot, when
        soonest = min(soonest, when)
    return -1, soonest


@njit(cache=True)
def _is_alike(state, queue, slot, other):  # type: ignore[no-untyped-def]
    """Whether two requests that hit an open row need the same command of the same bank."""
    bank, row = state.bank[queue, slot], state.row[queue, slot]
    if bank != state.bank[queue, other] or row != state.row[queue, other]:
        return False
    return state.open_row[bank] == row and state.write[queue, slot] == state.write[queue, other]


@njit(cache=True)
def _ready_when(state, queue, place, slot, bus):  # type: ignore[no-untyped-def]
    """When the request's next command is ready; FAR if not on this bus or before something else happens."""
    bank, row = state.bank[queue, slot], state.row[queue, slot]
    open_row = state.open_row[bank]
    if (bus >= ROW_BUS and open_row == row) or (bus == COLUMN_BUS and open_row != row):
        return FAR
    if bus == SECOND_HALF and open_row < 0:
        return FAR
    command = _needed(open_row, row, state.write[queue, slot])
    if command == PRE and (state.opened[bank] or (state.keep_hits and _hit_before(state, queue, place, bank))):
        state.soon[queue, slot], state.blocked[bank] = FAR, 1
        return FAR
    when = ready_cycle(state, command, bank)
    state.soon[queue, slot] = when
    return when


@njit(cache=True)
def _hit_before(state, queue, place, bank):  # type: ignore[no-untyped-def]
    """Whether an older request of the queue hits the open row of `bank`."""
    if state.hits[queue, bank] == 0:
        return False
    order, banks, rows, open_row = state.order[queue], state.bank[queue], state.row[queue], state.open_row[bank]
    for at in range(place):
        slot = order[at]
        if banks[slot] == bank and rows[slot] == open_row:
            return True
    return False


@njit(cache=True)
def _serve(state, requests, log, cycle, queue, place):  # type: ignore[no-untyped-def]
    """Issue the command a queued request needs; its last one takes it off, an activation moves it to OPENED."""
    slot = state.order[queue, place]
    bank, row, number = state.bank[queue, slot], state.row[queue, slot], state.number[queue, slot]
    open_row = state.open_row[bank]
    if not state.seen[queue, slot]:
        state.counters[fields.HITS if open_row == row else (fields.CONFLICTS if open_row >= 0 else fields.MISSES)] += 1
        state.seen[queue, slot] = 1
    command = _with_precharge(state, _needed(open_row, row, state.write[queue, slot]), bank, queue)
    do_command(state, log, command, state.channel, bank, 1, row, requests[fields.COLUMN, number], cycle)
    if command != RD and command != WR:
        _look_again(state, bank, bank + 1)
    if open_row == row:
        _finish(state, cycle, queue, place, slot)
    elif command == ACT and queue != OPENED:
        _move_to_opened(state, queue, place, slot)


@njit(cache=True)
def _with_precharge(state, command, bank, queue):  # type: ignore[no-untyped-def]
    """RDA for RD and WRA for WR when the policy closes the row now and nobody else waits for it."""
    if state.row_cap == 0 or (command != RD and command != WR) or state.used[bank] + 1 < state.row_cap:
        return command
    if state.opened[bank] > (1 if queue == OPENED else 0):
        return command
    return RDA if command == RD else WRA


@njit(cache=True)
def _look_again(state, first_bank, end_bank):  # type: ignore[no-untyped-def]
    """Rows of these banks changed: what their requests need next may be ready at any time."""
    for queue in (READS, WRITES):
        state.hits[queue, first_bank:end_bank] = 0
        order, banks, rows, soon = state.order[queue], state.bank[queue], state.row[queue], state.soon[queue]
        for place in range(state.size[queue]):
            slot = order[place]
            bank = banks[slot]
            if first_bank <= bank < end_bank:
                soon[slot] = 0
                state.hits[queue, bank] += state.open_row[bank] == rows[slot]


@njit(cache=True)
def _move_to_opened(state, queue, place, slot):  # type: ignore[no-untyped-def]
    target = state.order[OPENED, state.size[OPENED]]
    state.bank[OPENED, target], state.row[OPENED, target] = state.bank[queue, slot], state.row[queue, slot]
    state.write[OPENED, target], state.arrived[OPENED, target] = state.write[queue, slot], state.arrived[queue, slot]
    state.number[OPENED, target], state.seen[OPENED, target] = state.number[queue, slot], 1
    state.soon[OPENED, target] = 0
    state.size[OPENED] += 1
    state.opened[state.bank[queue, slot]] += 1
    _remove(state, queue, place)


@njit(cache=True)
def _finish(state, cycle, queue, place, slot):  # type: ignore[no-untyped-def]
    """The request's column access has issued: count it and take it off."""
    if queue == OPENED:
        state.opened[state.bank[queue, slot]] -= 1
    write = state.write[queue, slot]
    done = cycle + (state.write_latency if write else state.read_latency)
    state.counters[fields.WRITES_DONE if write else fields.READS_DONE] += 1
    state.counters[fields.READ_CYCLES] += 0 if write else done - state.arrived[queue, slot]
    state.counters[fields.LAST_DONE] = max(state.counters[fields.LAST_DONE], done)
    bank = state.bank[queue, slot]
    _remove(state, queue, place)
    if state.blocked[bank]:
        _unblock(state, bank)


@njit(cache=True)
def _unblock(state, bank):  # type: ignore[no-untyped-def]
    """One request fewer keeps the bank's row open: look again at those that wait for it to close."""
    state.blocked[bank] = 0
    for queue in (READS, WRITES):
        order, banks, soon = state.order[queue], state.bank[queue], state.soon[queue]
        for place in range(state.size[queue]):
            slot = order[place]
            if banks[slot] == bank and soon[slot] == FAR:
                soon[slot] = 0


@njit(cache=True)
def _remove(state, queue, place):  # type: ignore[no-untyped-def]
    """Take an entry out; the others keep their order, its slot is the next one to be used."""
    size, slot = state.size[queue] - 1, state.order[queue, place]
    if queue != OPENED and state.open_row[state.bank[queue, slot]] == state.row[queue, slot]:
        state.hits[queue, state.bank[queue, slot]] -= 1
    order = state.order[queue]
    for at in range(place, size):
        order[at] = order[at + 1]
    order[size] = slot
    state.size[queue] = size


@njit(cache=True)
def _refresh(state, log, cycle, bus):  # type: ignore[no-untyped-def]
    """Bring the first waiting refresh forward: close its banks, then refresh them."""
    unit = state.refreshes[state.head]
    first, count, command, close = unit, 1, REFPB, PRE
    if state.refresh == ALL_BANKS:
        first, count, command, close = unit * state.unit_banks, state.unit_banks, REFAB, PREA
    for bank in range(first, first + count):
        if state.open_row[bank] >= 0:
            command = close
            if state.opened[bank]:
                return FAR  # a request waits for this row; it goes first
    when = ready_cycle_of_all(state, command, first, count)
    if when > cycle or (bus == SECOND_HALF and command != close):
        return when
    do_command(state, log, command, state.channel, first, count, -1, -1, cycle)
    _look_again(state, first, first + count)
    if command != close:
        state.head = (state.head + 1) % len(state.refreshes)
        state.waiting -= 1
    return cycle + 1


@njit(cache=True)
def _close_idle_row(state, log, cycle):  # type: ignore[no-untyped-def]
    """Close the first row that nothing has used for the policy's time and no queued request hits."""
    soonest = FAR
    for bank in range(state.banks):
        if state.open_row[bank] < 0 or state.opened[bank] or state.hits[READS, bank] or state.hits[WRITES, bank]:
            continue
        when = max(state.touched[bank] + state.row_timeout, ready_cycle(state, PRE, bank))
        if when <= cycle:
            do_command(state, log, PRE, state.channel, bank, 1, -1, -1, cycle)
            _look_again(state, bank, bank + 1)
            return cycle + 1
        soonest = min(soonest, when)
    return soonest

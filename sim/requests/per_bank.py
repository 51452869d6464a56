"""The scheduler with a command queue per bank, compiled: for all channels together, since one front end feeds them.

Cycle by cycle a channel would: close rows for a refresh that is due, or refresh; else let the banks take turns, each
offering the first ready command of its queue; then move one request from the read queue (or the write queue while it is
drained) to its bank's queue. After that the front end hands one request to its channel, or waits for a place there.
Cycles in which nothing can happen are skipped, exactly. Requests for a block that is already waited for are merged.
"""

# ruff: noqa: SIM102  (compiled code: plain comparisons and loops)

import numpy as np
from numba import njit

from nearbank.sim.requests import state as fields
from nearbank.sim.requests.clocks import (
    ACT,
    CLOCK_FIELDS,
    MOST_BANKS,
    PRE,
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

LONGEST_QUEUE, LONGEST_BANK_QUEUE = 256, 64
READS, WRITES = 0, 1
ALL_BANKS, PER_BANK = 1, 2
_HASH = 4096

# The policy and the machine in numbers
SETUP_FIELDS = [
    (name, np.int64)
    for name in (
        "channel",
        "banks",
        "read_size",
        "write_size",
        "bank_size",
        "write_idle",
        "hit_cap",
        "two_buses",
        "half_clocks",
        "refresh",
        "refresh_interval",  # between the refreshes of two units
        "units",
        "unit_banks",
        "groups",
        "banks_per_group",
        "read_latency",
        "write_latency",
        "closed",  # every access closes its row
        "row_timeout",  # 0: rows stay open
    )
]

# `queue` [reads or writes, place] and `line` [bank, place] hold request numbers by age; `soon` [bank] is a cycle before
# which nothing in the bank's line is ready (FAR when empty), `only` the one command the bank then waits for, or -1 when
# there are several or something changed. `waited` counts queued requests by a hash of their block, reads and writes.
QUEUE_FIELDS = [
    ("queue", np.int64, (2, LONGEST_QUEUE)),
    ("size", np.int64, (2,)),
    ("line", np.int64, (MOST_BANKS, LONGEST_BANK_QUEUE)),
    ("length", np.int64, (MOST_BANKS,)),
    ("soon", np.int64, (MOST_BANKS,)),
    ("only", np.int64, (MOST_BANKS,)),
    ("waited", np.int64, (2, _HASH)),
    ("refreshes", np.int64, (4 * MOST_BANKS,)),
    *((name, np.int64) for name in ("waiting", "head", "next_refresh", "next_unit", "draining", "turn", "wake")),
    ("in_line", np.int64),  # requests in all banks' lines
    ("reads_waiting", np.int64),
    ("writes_waiting", np.int64),
    ("conflict", np.int64, (MOST_BANKS,)),  # per bank: its row was closed for another one
]

PER_BANK_STATE = np.dtype([*CLOCK_FIELDS, *BANK_FIELDS, *SETUP_FIELDS, *QUEUE_FIELDS])


def new_per_bank_states(channels: int) -> Record:
    """Empty states, one a channel: rows closed, queues empty. Clocks and setup are the caller's to fill."""
    states = np.zeros(channels, PER_BANK_STATE)
    states["open_row"] = -1
    states["soon"] = FAR
    states["channel"] = np.arange(channels)
    return states


@njit(cache=True)
def run_per_bank(states, requests, taken_at, log, drain):  # type: ignore[no-untyped-def]
    """Serve all requests until the last answer (with `drain` until the last write is in the memory, too).

    `taken_at` [3, request] is scratch: the cycle each was taken, how many were merged into it, the sum of their cycles.
    """
    for channel in range(len(states)):
        state = states[channel]
        state.next_refresh = state.refresh_interval if state.refresh else FAR
    total, taken, cycle = requests.shape[1], 0, 0
    while taken < total or cycle <= _busy_until(states, drain):
        for channel in range(len(states)):
            if states[channel].wake <= cycle:
                _tick(states[channel], requests, taken_at, log, cycle, drain and taken == total)
        if taken < total and requests[fields.ARRIVAL, taken] <= cycle:
            if _take(states[requests[fields.CHANNEL, taken]], requests, taken_at, taken, cycle):
                taken += 1
                if drain and taken == total:
                    for channel in range(len(states)):
                        states[channel].wake = cycle + 1  # from now on writes go out of their own accord
        cycle = max(cycle + 1, _next_cycle(states, requests, taken, total))


@njit(cache=True)
def _busy_until(states, drain):  # type: ignore[no-untyped-def]
    """FAR while a read waits (or a write, when draining), else the cycle of the last answer."""
    last = 0
    for channel in range(len(states)):
        if states[channel].reads_waiting or (drain and states[channel].writes_waiting):
            return FAR
        last = max(last, states[channel].counters[fields.LAST_DONE])
    return last


@njit(cache=True)
def _next_cycle(states, requests, taken, total):  # type: ignore[no-untyped-def]
    """The first cycle in which a channel or the front end may do something."""
    cycle = FAR
    if taken < total and _has_place(states[requests[fields.CHANNEL, taken]], requests[fields.WRITE, taken]):
        cycle = requests[fields.ARRIVAL, taken]
    for channel in range(len(states)):
        cycle = min(cycle, states[channel].wake)
    return cycle


@njit(cache=True)
def _has_place(state, write):  # type: ignore[no-untyped-def]
    return state.size[WRITES] < state.write_size if write else state.size[READS] < state.read_size


@njit(cache=True)
def _take(state, requests, taken_at, number, cycle):  # type: ignore[no-untyped-def]
    """Put a request in its queue, or merge it with one for the same block."""
    write = requests[fields.WRITE, number]
    if not _has_place(state, write):
        return False
    state.counters[fields.LAST_ACCEPTED] = cycle
    taken_at[0, number] = cycle + 1
    other = _waiting(state, requests, number, WRITES)
    if other >= 0:  # a waiting write answers the read, or takes the place of the earlier one
        _answer(state, write, cycle + 2, 1)
        return True
    if write:
        _answer(state, write, cycle + 2, 1)
    else:
        other = _waiting(state, requests, number, READS)
        if other >= 0:
            taken_at[1, other] += 1
            taken_at[2, other] += cycle + 1
            return True
    queue = WRITES if write else READS
    state.queue[queue, state.size[queue]] = number
    state.size[queue] += 1
    state.waited[queue, requests[fields.BLOCK, number] % _HASH] += 1
    _count_waiting(state, write, 1)
    state.wake = cycle + 1
    return True


@njit(cache=True)
def _count_waiting(state, write, change):  # type: ignore[no-untyped-def]
    if write:
        state.writes_waiting += change
    else:
        state.reads_waiting += change


@njit(cache=True)
def _answer(state, write, cycle, latency):  # type: ignore[no-untyped-def]
    """The front end hears of the end of a request."""
    state.counters[fields.WRITES_DONE if write else fields.READS_DONE] += 1
    state.counters[fields.READ_CYCLES] += 0 if write else latency
    state.counters[fields.LAST_DONE] = max(state.counters[fields.LAST_DONE], cycle)


@njit(cache=True)
def _waiting(state, requests, number, queue):  # type: ignore[no-untyped-def]
    """The waiting read (or write) of the request's block, or -1."""
    block, bank = requests[fields.BLOCK, number], requests[fields.BANK, number]
    if state.waited[queue, block % _HASH] == 0:
        return -1
    for place in range(state.size[queue]):
        if requests[fields.BLOCK, state.queue[queue, place]] == block:
            return state.queue[queue, place]
    for place in range(state.length[bank]):
        other = state.line[bank, place]
        if requests[fields.BLOCK, other] == block and (requests[fields.WRITE, other] != 0) == (queue == WRITES):
            return other
    return -1


@njit(cache=True)
def _tick(state, requests, taken_at, log, cycle, empty_writes):  # type: ignore[no-untyped-def]
    """One cycle of a channel; sets the next cycle it has to be looked at."""
    if cycle == state.next_refresh:
        _queue_refreshes(state)
    state.wake = FAR
    issued = _issue_one(state, requests, taken_at, log, cycle)
    moved = _move_one(state, requests, empty_writes)
    state.wake = cycle + 1 if issued or moved else min(state.wake, state.next_refresh)


@njit(cache=True)
def _queue_refreshes(state):  # type: ignore[no-untyped-def]
    state.next_refresh += state.refresh_interval
    state.refreshes[(state.head + state.waiting) % len(state.refreshes)] = state.next_unit
    state.waiting += 1
    state.next_unit = (state.next_unit + 1) % state.units


@njit(cache=True)
def _issue_one(state, requests, taken_at, log, cycle):  # type: ignore[no-untyped-def]
    """One command, or with two buses one row and one column command; whether anything issued."""
    column = 0
    if state.waiting == 0 or not _refresh(state, log, cycle):
        bank, place = _bank_in_turn(state, requests, cycle)
        if bank < 0:
            return state.row_timeout > 0 and _close_idle_row(state, log, cycle)
        column = _serve(state, requests, taken_at, log, bank, place, cycle)
    if state.two_buses:
        bank, place = _bank_in_turn(state, requests, cycle)
        if bank >= 0 and column != (state.open_row[bank] == requests[fields.ROW, state.line[bank, place]]):
            _serve(state, requests, taken_at, log, bank, place, cycle)
    return True


@njit(cache=True)
def _refresh(state, log, cycle):  # type: ignore[no-untyped-def]
    """Close a row in the way of the first waiting refresh, or refresh; whether a command issued."""
    first, count = _refreshed_banks(state)
    ready = True
    for bank in range(first, first + count):
        if state.open_row[bank] < 0:
            continue
        when = ready_cycle(state, PRE, bank)
        if when <= cycle:
            do_command(state, log, PRE, state.channel, bank, 1, -1, -1, cycle)
            state.conflict[bank] = 0
            _changed(state, bank)
            return True
        state.wake, ready = min(state.wake, when), False
    command = REFAB if state.refresh == ALL_BANKS else REFPB
    when = ready_cycle_of_all(state, command, first, count)
    if not ready or when > cycle:
        state.wake = min(state.wake, when) if ready else state.wake
        return False
    do_command(state, log, command, state.channel, first, count, -1, -1, cycle)
    state.head = (state.head + 1) % len(state.refreshes)
    state.waiting -= 1
    return True


@njit(cache=True)
def _changed(state, bank):  # type: ignore[no-untyped-def]
    """The bank's row or line is another one now: look again at what may be ready."""
    state.soon[bank], state.only[bank] = 0 if state.length[bank] else FAR, -1


@njit(cache=True)
def _close_idle_row(state, log, cycle):  # type: ignore[no-untyped-def]
    """Close the first row that nothing has used for the policy's time and no request in line is for."""
    for bank in range(state.banks):
        if state.open_row[bank] < 0 or state.length[bank]:
            continue
        when = max(state.touched[bank] + state.row_timeout, ready_cycle(state, PRE, bank))
        if when <= cycle:
            do_command(state, log, PRE, state.channel, bank, 1, -1, -1, cycle)
            state.conflict[bank] = 0
            return True
        state.wake = min(state.wake, when)
    return False


@njit(cache=True)
def _refreshed_banks(state):  # type: ignore[no-untyped-def]
    """First bank and number of banks of the first waiting refresh; single banks go group by group."""
    unit = state.refreshes[state.head]
    if state.refresh == ALL_BANKS:
        return unit * state.unit_banks, state.unit_banks
    group, rest = unit % state.groups, unit // state.groups
    bank, rank = rest % state.banks_per_group, rest // state.banks_per_group
    return (rank * state.groups + group) * state.banks_per_group + bank, 1


@njit(cache=True)
def _bank_in_turn(state, requests, cycle):  # type: ignore[no-untyped-def]
    """The next bank, from the last one on, with a ready command, and the request it is for; -1 if none."""
    first, end = 0, 0
    if state.waiting:
        first, count = _refreshed_banks(state)
        end = first + count
    bank, wake = state.turn, state.wake
    for _ in range(state.banks):
        bank = bank + 1 if bank + 1 < state.banks else 0
        soon = state.soon[bank]
        if soon <= cycle:
            if first <= bank < end:
                continue
            place = _first_ready(state, requests, bank, cycle)
            if place >= 0:
                state.turn = bank
                return bank, place
            soon = state.soon[bank]
        wake = min(wake, soon)
    state.wake = wake
    return -1, -1


@njit(cache=True)
def _first_ready(state, requests, bank, cycle):  # type: ignore[no-untyped-def]
    """The first request in the bank's line whose command is ready, or -1; notes when one may be."""
    only = state.only[bank]
    if only >= 0:  # nothing has changed since the bank waited for this command alone
        state.soon[bank] = ready_cycle(state, only, bank)
        if state.soon[bank] > cycle:
            return -1
    if state.open_row[bank] >= 0:
        return _first_ready_of_open_row(state, requests, bank, cycle)
    state.only[bank] = ACT
    state.soon[bank] = ready_cycle(state, ACT, bank)
    return 0 if state.soon[bank] <= cycle else -1


@njit(cache=True)
def _first_ready_of_open_row(state, requests, bank, cycle):  # type: ignore[no-untyped-def]
    row, soonest, hits, only, waits = state.open_row[bank], FAR, 0, -1, 0
    for place in range(state.length[bank]):
        number = state.line[bank, place]
        if requests[fields.ROW, number] != row:
            continue
        hits += 1
        if _waits_for_read(state, requests, bank, place):
            continue
        command = _column_command(state, requests, number)
        if command == only:
            continue  # as the one before, which is not ready
        when = ready_cycle(state, command, bank)
        if when <= cycle and not _may_close(state, requests, bank, 1, cycle):
            return place
        only, waits, soonest = command, waits + 1, min(soonest, when)
    if _may_close(state, requests, bank, hits, FAR):
        only, waits, soonest = PRE, waits + 1, min(soonest, ready_cycle(state, PRE, bank))
        if _may_close(state, requests, bank, hits, cycle):
            return 0
    state.soon[bank], state.only[bank] = soonest, only if waits == 1 else -1
    return -1


@njit(cache=True)
def _may_close(state, requests, bank, hits, cycle):  # type: ignore[no-untyped-def]
    """Whether the first in line may close the open row: it needs another, and no hit waits or enough were served."""
    if requests[fields.ROW, state.line[bank, 0]] == state.open_row[bank]:
        return False
    return (hits == 0 or state.used[bank] >= state.hit_cap) and ready_cycle(state, PRE, bank) <= cycle


@njit(cache=True)
def _waits_for_read(state, requests, bank, place):  # type: ignore[no-untyped-def]
    """Whether a write stands behind a read of the same block."""
    number = state.line[bank, place]
    if not requests[fields.WRITE, number]:
        return False
    for before in range(place):
        other = state.line[bank, before]
        if not requests[fields.WRITE, other] and requests[fields.BLOCK, other] == requests[fields.BLOCK, number]:
            return True
    return False


@njit(cache=True)
def _column_command(state, requests, number):  # type: ignore[no-untyped-def]
    if requests[fields.WRITE, number]:
        return WRA if state.closed else WR
    return RDA if state.closed else RD


@njit(cache=True)
def _serve(state, requests, taken_at, log, bank, place, cycle):  # type: ignore[no-untyped-def]
    """Issue the command a request in line needs; whether it was its column access."""
    number = state.line[bank, place]
    row, open_row = requests[fields.ROW, number], state.open_row[bank]
    column = open_row == row
    command = _column_command(state, requests, number) if column else (ACT if open_row < 0 else PRE)
    if column:
        state.counters[
            fields.HITS if state.used[bank] else (fields.CONFLICTS if state.conflict[bank] else fields.MISSES)
        ] += 1
    elif command == PRE:
        state.conflict[bank] = 1
    do_command(state, log, command, state.channel, bank, 1, row, requests[fields.COLUMN, number], cycle)
    if column:
        if state.closed:
            state.conflict[bank] = 0
        _finish(state, requests, taken_at, bank, place, cycle)
    _changed(state, bank)
    return column


@njit(cache=True)
def _finish(state, requests, taken_at, bank, place, cycle):  # type: ignore[no-untyped-def]
    """The column access has issued: answer the read and those merged with it, and take it out of the line."""
    number = state.line[bank, place]
    write = requests[fields.WRITE, number]
    state.waited[WRITES if write else READS, requests[fields.BLOCK, number] % _HASH] -= 1
    _count_waiting(state, write, -1)
    if not write:
        done, more = cycle + state.read_latency, taken_at[1, number]
        _answer(state, write, done, done - taken_at[0, number])
        state.counters[fields.READS_DONE] += more
        state.counters[fields.READ_CYCLES] += more * done - taken_at[2, number]
    for at in range(place, state.length[bank] - 1):
        state.line[bank, at] = state.line[bank, at + 1]
    state.length[bank] -= 1
    state.in_line -= 1


@njit(cache=True)
def _move_one(state, requests, empty_writes):  # type: ignore[no-untyped-def]
    """Move the first request whose bank has room into its line; whether anything changed."""
    if state.draining == 0:
        writes = state.size[WRITES]
        if writes >= state.write_size or (state.in_line == 0 and writes > (0 if empty_writes else state.write_idle)):
            state.draining = writes
    queue = WRITES if state.draining > 0 else READS
    for place in range(state.size[queue]):
        number = state.queue[queue, place]
        bank = requests[fields.BANK, number]
        if state.length[bank] >= state.bank_size:
            continue
        if queue == WRITES:
            if _waiting(state, requests, number, READS) >= 0:
                state.draining = 0
                if state.in_line == 0:  # DRAMsim3 would wait forever here: nothing but that read can move
                    _move(state, READS, 0, requests[fields.BANK, state.queue[READS, 0]])
                return True
            state.draining -= 1
        _move(state, queue, place, bank)
        return True
    return False


@njit(cache=True)
def _move(state, queue, place, bank):  # type: ignore[no-untyped-def]
    state.line[bank, state.length[bank]] = state.queue[queue, place]
    state.length[bank] += 1
    state.in_line += 1
    _changed(state, bank)
    for at in range(place, state.size[queue] - 1):
        state.queue[queue, at] = state.queue[queue, at + 1]
    state.size[queue] -= 1

"""The queues of the shared-queue scheduler, compiled: where things lie, and taking entries in and out.

A queue is a list by age for each bank. With a row open, a bank's list has two entries that matter: the oldest that hits
the row, and the oldest that does not. Both are kept, so nobody has to search.
"""

from nearbank.compiled import compiled_part
from nearbank.sim.requests import state as fields
from nearbank.sim.requests.state import (
    ACT,
    AFTER_BANKS,
    BANK_FIELDS,
    COMMANDS,
    OPEN_ROW,
    PRE,
    RD,
    REQUEST_WIDTH,
    SCALARS,
    WR,
    bank_at,
)
from nearbank.sim.requests.timing import MOST_BANKS, ready_cycle

LONGEST_QUEUE = 1024
READS, WRITES, OPENED = 0, 1, 2  # the queues; OPENED holds requests a row was opened for, one a bank

# t: the policy and the machine in numbers. Draining starts with more writes than DRAIN_ABOVE, stops with fewer than
# DRAIN_BELOW. UNITS are ranges of banks refreshed together. With 0 as ROW_CAP or ROW_TIMEOUT rows stay open.
SETUP = (
    "banks", "read_size", "write_size", "drain_above", "drain_below", "keep_hits", "two_buses", "half_clocks",
    "refresh", "refresh_interval", "units", "unit_banks", "read_latency", "write_latency", "row_cap", "row_timeout",
)  # fmt: skip
(
    BANKS, READ_SIZE, WRITE_SIZE, DRAIN_ABOVE, DRAIN_BELOW, KEEP_HITS, TWO_BUSES, HALF_CLOCKS,
    REFRESH, REFRESH_INTERVAL, UNITS, UNIT_BANKS, READ_LATENCY, WRITE_LATENCY, ROW_CAP, ROW_TIMEOUT,
) = range(len(SETUP))  # fmt: skip

# m: scalars. WAITING refreshes, the first of them at HEAD; entries given back, the first one never used
(SIZE, _, OPENED_COUNT, CHANNEL, WAITING, HEAD_REFRESH, NEXT_REFRESH, NEXT_BANK, DRAINING, GIVEN_BACK, UNUSED) = range(
    SCALARS, SCALARS + 11
)

# m: a bank. Its entry in OPENED; for each command a cycle before which the rules do not allow it (they never make it
# ready earlier than it was before); then for each queue: first and last entry, the oldest that hits the open row and
# the oldest that does not (0: none).
OPENED_ENTRY, SOON, LANES = BANK_FIELDS, BANK_FIELDS + 1, BANK_FIELDS + 1 + len(COMMANDS)
FIRST, LAST, HIT, MISS, LANE_WIDTH = *range(4), 4

# m: groups of banks that could issue the same command: for each queue a column access, an activation and a precharge;
# then reads and writes of OPENED. A cycle before which none of the group is ready; its banks as bits.
COLUMNS, ACTIVATIONS, PRECHARGES, KINDS = *range(3), 3
OPENED_READS, OPENED_WRITES, GROUP_COUNT = 2 * KINDS, 2 * KINDS + 1, 2 * KINDS + 2
BOUND, MASK, GROUP_WIDTH = 0, 1, 1 + MOST_BANKS // 64

# m: groups; how many queued writes have this hash; waiting refreshes; entries
GROUPS = AFTER_BANKS
WRITTEN, WRITTEN_HASH = GROUPS + GROUP_COUNT * GROUP_WIDTH, 1 << 10
REFRESHES, MOST_REFRESHES = WRITTEN + WRITTEN_HASH, 4 * MOST_BANKS
ENTRIES = REFRESHES + MOST_REFRESHES
NUMBER, ENTRY_BANK, ENTRY_ROW, ENTRY_WRITE, ARRIVED, SEEN, NEXT, PREVIOUS, ENTRY_WIDTH = range(9)
SHARED_SIZE = ENTRIES + (2 * LONGEST_QUEUE + MOST_BANKS) * ENTRY_WIDTH  # the clocks' nodes follow


@compiled_part
def lane_at(bank, queue):  # type: ignore[no-untyped-def]
    """Where the queue's part of the bank's record is."""
    return bank_at(bank) + LANES + queue * LANE_WIDTH


@compiled_part
def group_at(group):  # type: ignore[no-untyped-def]
    return GROUPS + group * GROUP_WIDTH


@compiled_part
def put(t, m, group, bank, command, belongs):  # type: ignore[no-untyped-def]
    """Put a bank into a group, or take it out."""
    g = group_at(group)
    word, bit = g + MASK + (bank >> 6), 1 << (bank & 63)
    if not belongs:
        m[word] &= ~bit
    elif m[word] & bit == 0:
        m[word] |= bit
        when = ready_cycle(t, m, command, bank)
        m[bank_at(bank) + SOON + command] = when
        m[g + BOUND] = min(m[g + BOUND], when)


@compiled_part
def regroup(t, m, bank, queue):  # type: ignore[no-untyped-def]
    """Put a bank into those groups of the queue whose commands its requests call for.

    A row stays open for the request it was opened for, and for older hits if the policy says so.
    """
    b, lane, first = bank_at(bank), lane_at(bank, queue), queue * KINDS
    hit, miss, closed = m[lane + HIT], m[lane + MISS], m[b + OPEN_ROW] < 0
    kept = m[b + OPENED_ENTRY] != 0
    if hit and miss and t[KEEP_HITS]:
        kept |= m[hit + NUMBER] < m[miss + NUMBER]
    put(t, m, first + COLUMNS, bank, WR if queue == WRITES else RD, hit != 0)
    put(t, m, first + ACTIVATIONS, bank, ACT, miss != 0 and closed)
    put(t, m, first + PRECHARGES, bank, PRE, miss != 0 and not closed and not kept)


@compiled_part
def append(t, m, q, queue, number, cycle):  # type: ignore[no-untyped-def]
    """A new entry for the request, the youngest of its bank."""
    e = _new_entry(m)
    request = number * REQUEST_WIDTH
    bank = q[request + fields.BANK]
    lane = lane_at(bank, queue)
    last = m[lane + LAST]
    m[e + NUMBER] = number
    m[e + ENTRY_BANK] = bank
    m[e + ENTRY_ROW] = q[request + fields.ROW]
    m[e + ENTRY_WRITE] = q[request + fields.WRITE]
    m[e + ARRIVED] = cycle
    m[e + SEEN] = 0
    m[e + NEXT] = 0
    m[e + PREVIOUS] = last
    m[lane + LAST] = e
    if last:
        m[last + NEXT] = e
    else:
        m[lane + FIRST] = e
    m[SIZE + queue] += 1
    if queue == WRITES:
        m[WRITTEN + q[request + fields.BLOCK] % WRITTEN_HASH] += 1
    kind = HIT if m[e + ENTRY_ROW] == m[bank_at(bank) + OPEN_ROW] else MISS
    if m[lane + kind] == 0:
        m[lane + kind] = e
        regroup(t, m, bank, queue)


@compiled_part
def _new_entry(m):  # type: ignore[no-untyped-def]
    e = m[GIVEN_BACK]
    if e:
        m[GIVEN_BACK] = m[e + NEXT]
    else:
        e = ENTRIES + m[UNUSED] * ENTRY_WIDTH
        m[UNUSED] += 1
    return e


@compiled_part
def give_back(m, e):  # type: ignore[no-untyped-def]
    m[e + NEXT] = m[GIVEN_BACK]
    m[GIVEN_BACK] = e


@compiled_part
def take_out(t, m, q, queue, e):  # type: ignore[no-untyped-def]
    """Take an entry out of its queue, and find the next one like it."""
    bank = m[e + ENTRY_BANK]
    lane, row = lane_at(bank, queue), m[bank_at(bank) + OPEN_ROW]
    if m[lane + HIT] == e:
        m[lane + HIT] = _first(m, m[e + NEXT], row, True)
    if m[lane + MISS] == e:
        m[lane + MISS] = _first(m, m[e + NEXT], row, False)
    unlink(m, q, queue, e)
    regroup(t, m, bank, queue)


@compiled_part
def unlink(m, q, queue, e):  # type: ignore[no-untyped-def]
    lane = lane_at(m[e + ENTRY_BANK], queue)
    before, after = m[e + PREVIOUS], m[e + NEXT]
    if before:
        m[before + NEXT] = after
    else:
        m[lane + FIRST] = after
    if after:
        m[after + PREVIOUS] = before
    else:
        m[lane + LAST] = before
    m[SIZE + queue] -= 1
    if queue == WRITES:
        m[WRITTEN + q[m[e + NUMBER] * REQUEST_WIDTH + fields.BLOCK] % WRITTEN_HASH] -= 1


@compiled_part
def _first(m, e, row, hits):  # type: ignore[no-untyped-def]
    """The first entry from `e` on that is for `row`, or for another one; 0 if none."""
    while e and (m[e + ENTRY_ROW] == row) != hits:
        e = m[e + NEXT]
    return e


@compiled_part
def look_again(t, m, first_bank, end_bank):  # type: ignore[no-untyped-def]
    """The rows of these banks changed: find out what their requests need next."""
    for bank in range(first_bank, end_bank):
        row = m[bank_at(bank) + OPEN_ROW]
        for queue in range(2):
            lane = lane_at(bank, queue)
            first = m[lane + FIRST]
            if first == 0 and m[lane + HIT] == 0 and m[lane + MISS] == 0:
                continue
            m[lane + HIT] = _first(m, first, row, True) if row >= 0 else 0
            m[lane + MISS] = _first(m, first, row, False)
            regroup(t, m, bank, queue)


@compiled_part
def set_opened(t, m, bank, e, write):  # type: ignore[no-untyped-def]
    """From now on the bank's row is open for entry `e`, or with 0 for nobody any more."""
    m[bank_at(bank) + OPENED_ENTRY] = e
    put(t, m, OPENED_WRITES if write else OPENED_READS, bank, WR if write else RD, e != 0)
    m[OPENED_COUNT] += 1 if e else -1


@compiled_part
def has_place(t, m, q, number):  # type: ignore[no-untyped-def]
    """Whether the request would be taken now (a read or write of a queued write's block always is)."""
    queue = WRITES if q[number * REQUEST_WIDTH + fields.WRITE] else READS
    return m[SIZE + queue] < t[READ_SIZE + queue] or queued_write(m, q, number)


@compiled_part
def queued_write(m, q, number):  # type: ignore[no-untyped-def]
    """Whether a write of the request's block waits in the write queue."""
    block = q[number * REQUEST_WIDTH + fields.BLOCK]
    if m[WRITTEN + block % WRITTEN_HASH] == 0:
        return False
    e = m[lane_at(q[number * REQUEST_WIDTH + fields.BANK], WRITES) + FIRST]
    while e and q[m[e + NUMBER] * REQUEST_WIDTH + fields.BLOCK] != block:
        e = m[e + NEXT]
    return e != 0

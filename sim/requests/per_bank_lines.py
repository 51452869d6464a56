"""The queues of the per-bank scheduler, compiled: where things lie, and moving requests in and out.

A request waits in its channel's read or write queue, then in its bank's line. Of a line, with a row open, three
requests matter: the first read and the first write that hit the row, and the head, when it may close the row. Banks are
grouped by what these call for, so that nobody looks at a bank whose command cannot be ready.
"""

from nearbank.compiled import compiled_part
from nearbank.sim.requests import state as fields
from nearbank.sim.requests.state import (
    AFTER_BANKS,
    BANK_FIELDS,
    OPEN_ROW,
    REQUEST_WIDTH,
    SCALARS,
    USED,
    bank_at,
)
from nearbank.sim.requests.timing import MOST_BANKS, ready_cycle

LONGEST_QUEUE, LONGEST_LINE = 256, 64
READS, WRITES = 0, 1

# t: the policy and the machine in numbers. REFRESH_INTERVAL is that between two units; with CLOSED every access closes
# its row; with 0 as ROW_TIMEOUT rows stay open. COMMAND is that of each kind, see below.
SETUP = (
    "banks", "read_size", "write_size", "line_size", "write_idle", "hit_cap", "two_buses", "refresh",
    "refresh_interval", "units", "unit_banks", "groups", "banks_per_group", "read_latency", "write_latency", "closed",
    "row_timeout", "activate", "close", "read", "write",
)  # fmt: skip
(
    BANKS, READ_SIZE, WRITE_SIZE, LINE_SIZE, WRITE_IDLE, HIT_CAP, TWO_BUSES, REFRESH,
    REFRESH_INTERVAL, UNITS, UNIT_BANKS, GROUPS, BANKS_PER_GROUP, READ_LATENCY, WRITE_LATENCY, CLOSED,
    ROW_TIMEOUT, COMMAND, _, _, _,
) = range(len(SETUP))  # fmt: skip

# m: scalars. Requests in the two queues; of those, how many from the front on found no room in their line; the one bank
# whose line has got room since then (-1: none); requests in all lines, and in queues or lines by kind; WAITING
# refreshes, the first of them at HEAD; the bank last in turn
(
    SIZE, _, STUCK, _, LOOSE, _, IN_LINES, KIND_WAITING, _,
    CHANNEL, WAITING, HEAD, NEXT_REFRESH, NEXT_UNIT, DRAINING, TURN, WAKE,
) = range(SCALARS, SCALARS + 17)  # fmt: skip

# The kinds of commands a bank's line may call for
ACTIVATE, CLOSE, READ, WRITE, KINDS = range(5)

# m: a bank. Whether its row was closed for another one; requests in line, writes among them, and requests in the two
# queues; for each kind of command a cycle before which the rules do not allow it; first read and first write that hit
# the open row (-1: none).
CONFLICT, LENGTH, LINE_WRITES, QUEUED, _, SOON, _, _, _, HIT, _ = range(BANK_FIELDS, BANK_FIELDS + 11)

# m: for each kind of command, a cycle before which no bank's is ready, and the banks that wait for it as bits; how many
# queued requests have this hash, by kind; waiting refreshes; the two queues and the lines, request numbers by age
BOUND, MASK, GROUP_WIDTH = 0, 1, 1 + MOST_BANKS // 64
WAITERS = AFTER_BANKS
HASHED, HASH = WAITERS + KINDS * GROUP_WIDTH, 1 << 12
REFRESHES, MOST_REFRESHES = HASHED + 2 * HASH, 4 * MOST_BANKS
QUEUES = REFRESHES + MOST_REFRESHES
LINES = QUEUES + 2 * LONGEST_QUEUE
PER_BANK_SIZE = LINES + MOST_BANKS * LONGEST_LINE  # the clocks' nodes follow


@compiled_part
def has_place(t, m, write):  # type: ignore[no-untyped-def]
    """Whether the queue takes one more."""
    queue = WRITES if write else READS
    return m[SIZE + queue] < t[READ_SIZE + queue]


@compiled_part
def append(m, q, number):  # type: ignore[no-untyped-def]
    """Put the request at the end of its queue."""
    queue = WRITES if q[number * REQUEST_WIDTH + fields.WRITE] else READS
    m[QUEUES + queue * LONGEST_QUEUE + m[SIZE + queue]] = number
    m[SIZE + queue] += 1
    m[KIND_WAITING + queue] += 1
    m[bank_at(q[number * REQUEST_WIDTH + fields.BANK]) + QUEUED + queue] += 1
    m[HASHED + queue * HASH + q[number * REQUEST_WIDTH + fields.BLOCK] % HASH] += 1


@compiled_part
def waiting(m, q, number, kind):  # type: ignore[no-untyped-def]
    """The waiting read (or write) of the request's block, or -1."""
    block, bank = q[number * REQUEST_WIDTH + fields.BLOCK], q[number * REQUEST_WIDTH + fields.BANK]
    if m[HASHED + kind * HASH + block % HASH] == 0:
        return -1
    first = QUEUES + kind * LONGEST_QUEUE
    for place in range(first, first + m[SIZE + kind]):
        if q[m[place] * REQUEST_WIDTH + fields.BLOCK] == block:
            return m[place]
    first = LINES + bank * LONGEST_LINE
    for place in range(first, first + m[bank_at(bank) + LENGTH]):
        request = m[place] * REQUEST_WIDTH
        if q[request + fields.BLOCK] == block and (q[request + fields.WRITE] != 0) == (kind == WRITES):
            return m[place]
    return -1


@compiled_part
def changed(t, m, q, bank):  # type: ignore[no-untyped-def]
    """The bank's row or line is another one now: find out what it waits for."""
    b, line = bank_at(bank), LINES + bank * LONGEST_LINE
    length, row = m[b + LENGTH], m[b + OPEN_ROW]
    closes = False
    m[b + HIT + READS] = -1
    m[b + HIT + WRITES] = -1
    if length and row >= 0:
        _find_hits(m, q, b, line, row)
        hits = m[b + HIT + READS] >= 0 or m[b + HIT + WRITES] >= 0
        if q[m[line] * REQUEST_WIDTH + fields.ROW] != row:
            closes = not hits or m[b + USED] >= t[HIT_CAP]
    _put(t, m, ACTIVATE, bank, length > 0 and row < 0)
    _put(t, m, CLOSE, bank, closes)
    _put(t, m, READ, bank, m[b + HIT + READS] >= 0)
    _put(t, m, WRITE, bank, m[b + HIT + WRITES] >= 0)


@compiled_part
def _put(t, m, kind, bank, belongs):  # type: ignore[no-untyped-def]
    """Note whether the bank waits for this kind of command."""
    group = WAITERS + kind * GROUP_WIDTH
    word, bit = group + MASK + (bank >> 6), 1 << (bank & 63)
    if not belongs:
        m[word] &= ~bit
    elif m[word] & bit == 0:
        m[word] |= bit
        when = ready_cycle(t, m, t[COMMAND + kind], bank)
        m[bank_at(bank) + SOON + kind] = when
        m[group + BOUND] = min(m[group + BOUND], when)


@compiled_part
def _find_hits(m, q, b, line, row):  # type: ignore[no-untyped-def]
    """Find the first read and the first write for the open row; a write waits for a read of its block."""
    read, write = -1, -1
    for place in range(m[b + LENGTH]):
        request = m[line + place] * REQUEST_WIDTH
        if q[request + fields.ROW] != row:
            continue
        if q[request + fields.WRITE] == 0:
            if read < 0:
                read = place
        elif write < 0 and not _waits_for_read(m, q, line, place):
            write = place
        if read >= 0 and (write >= 0 or m[b + LINE_WRITES] == 0):
            break
    m[b + HIT + READS] = read
    m[b + HIT + WRITES] = write


@compiled_part
def _waits_for_read(m, q, line, place):  # type: ignore[no-untyped-def]
    """Whether a write stands behind a read of the same block."""
    block = q[m[line + place] * REQUEST_WIDTH + fields.BLOCK]
    for before in range(line, line + place):
        request = m[before] * REQUEST_WIDTH
        if q[request + fields.WRITE] == 0 and q[request + fields.BLOCK] == block:
            return True
    return False


@compiled_part
def leave_line(t, m, q, bank, place):  # type: ignore[no-untyped-def]
    """Take a request out of its bank's line."""
    b, line = bank_at(bank), LINES + bank * LONGEST_LINE
    request = m[line + place] * REQUEST_WIDTH
    kind = WRITES if q[request + fields.WRITE] else READS
    m[HASHED + kind * HASH + q[request + fields.BLOCK] % HASH] -= 1
    m[KIND_WAITING + kind] -= 1
    if m[b + LENGTH] == t[LINE_SIZE]:
        _loosen(m, b, bank, READS)
        _loosen(m, b, bank, WRITES)
    m[b + LENGTH] -= 1
    m[b + LINE_WRITES] -= kind
    for at in range(line + place, line + m[b + LENGTH]):
        m[at] = m[at + 1]
    m[IN_LINES] -= 1


@compiled_part
def _loosen(m, b, bank, queue):  # type: ignore[no-untyped-def]
    """The bank's line gets room: its requests, if any stand in the queue, are not stuck any more."""
    if m[b + QUEUED + queue] == 0 or m[LOOSE + queue] == bank:
        return
    if m[LOOSE + queue] >= 0:
        m[STUCK + queue] = 0
        m[LOOSE + queue] = -1
    elif m[STUCK + queue]:
        m[LOOSE + queue] = bank


@compiled_part
def move_one(t, m, q, empty_writes):  # type: ignore[no-untyped-def]
    """Move the first request whose bank has room into its line; whether anything changed."""
    if m[DRAINING] == 0:
        writes = m[SIZE + WRITES]
        least = 0 if empty_writes else t[WRITE_IDLE]
        if writes >= t[WRITE_SIZE] or (m[IN_LINES] == 0 and writes > least):
            m[DRAINING] = writes
    queue = WRITES if m[DRAINING] > 0 else READS
    place = _first_movable(t, m, q, queue)
    if place < 0:
        return False
    if queue == WRITES:
        if waiting(m, q, m[QUEUES + queue * LONGEST_QUEUE + place], READS) >= 0:
            m[DRAINING] = 0
            if m[IN_LINES] == 0:  # DRAMsim3 would wait forever here: nothing but that read can move
                _move(t, m, q, READS, 0)
            return True
        m[DRAINING] -= 1
    _move(t, m, q, queue, place)
    return True


@compiled_part
def _first_movable(t, m, q, queue):  # type: ignore[no-untyped-def]
    """The place of the first request in a queue whose bank has room, or -1."""
    first, loose = QUEUES + queue * LONGEST_QUEUE, m[LOOSE + queue]
    if loose >= 0:
        if m[bank_at(loose) + LENGTH] < t[LINE_SIZE]:
            for place in range(m[STUCK + queue]):
                if q[m[first + place] * REQUEST_WIDTH + fields.BANK] == loose:
                    return place
        m[LOOSE + queue] = -1
    for place in range(m[STUCK + queue], m[SIZE + queue]):
        bank = q[m[first + place] * REQUEST_WIDTH + fields.BANK]
        if m[bank_at(bank) + LENGTH] < t[LINE_SIZE]:
            m[STUCK + queue] = place
            return place
    m[STUCK + queue] = m[SIZE + queue]
    return -1


@compiled_part
def _move(t, m, q, queue, place):  # type: ignore[no-untyped-def]
    """Move a request from its queue to the end of its bank's line."""
    first = QUEUES + queue * LONGEST_QUEUE
    number = m[first + place]
    bank = q[number * REQUEST_WIDTH + fields.BANK]
    b = bank_at(bank)
    m[LINES + bank * LONGEST_LINE + m[b + LENGTH]] = number
    m[b + LENGTH] += 1
    m[b + LINE_WRITES] += queue
    m[b + QUEUED + queue] -= 1
    m[IN_LINES] += 1
    m[STUCK + queue] -= place < m[STUCK + queue]
    m[SIZE + queue] -= 1
    for at in range(first + place, first + m[SIZE + queue]):
        m[at] = m[at + 1]
    changed(t, m, q, bank)

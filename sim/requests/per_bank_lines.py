"""The queues of the per-bank scheduler, compiled: where things lie, and moving requests in and out.

A request waits in its channel's read or write queue, then in its bank's line. Of a line, with a row open, three
requests matter: the first read and the first write that hit the row, and the head, when it may close the row.
"""

from nearbank.compiled import compiled_part
from nearbank.sim.requests import state as fields
from nearbank.sim.requests.state import (
    AFTER_BANKS,
    BANK_FIELDS,
    FAR,
    MOST_BANKS,
    OPEN_ROW,
    REQUEST_WIDTH,
    SCALARS,
    USED,
    bank_at,
)

LONGEST_QUEUE, LONGEST_LINE = 256, 64
READS, WRITES = 0, 1

# t: the policy and the machine in numbers. REFRESH_INTERVAL is that between two units; with CLOSED every access closes
# its row; with 0 as ROW_TIMEOUT rows stay open.
SETUP = (
    "banks", "read_size", "write_size", "line_size", "write_idle", "hit_cap", "two_buses", "refresh",
    "refresh_interval", "units", "unit_banks", "groups", "banks_per_group", "read_latency", "write_latency", "closed",
    "row_timeout",
)  # fmt: skip
(
    BANKS, READ_SIZE, WRITE_SIZE, LINE_SIZE, WRITE_IDLE, HIT_CAP, TWO_BUSES, REFRESH,
    REFRESH_INTERVAL, UNITS, UNIT_BANKS, GROUPS, BANKS_PER_GROUP, READ_LATENCY, WRITE_LATENCY, CLOSED,
    ROW_TIMEOUT,
) = range(len(SETUP))  # fmt: skip

# m: scalars. Requests in the two queues; of those, how many from the front on found no room in their line; requests in
# all lines, and in queues or lines by kind; WAITING refreshes, the first of them at HEAD; the bank last in turn
(
    SIZE,
    _,
    STUCK,
    _,
    IN_LINES,
    KIND_WAITING,
    _,
    CHANNEL,
    WAITING,
    HEAD,
    NEXT_REFRESH,
    NEXT_UNIT,
    DRAINING,
    TURN,
    WAKE,
) = range(SCALARS, SCALARS + 15)

# m: a bank. Whether its row was closed for another one; requests in line; a cycle before which nothing in line is ready
# (FAR when empty); whether the next three are known: first read hit, first write hit (-1: none), whether the head may
# close the row
CONFLICT, LENGTH, SOON, KNOWN, READ_HIT, WRITE_HIT, MAY_CLOSE = range(BANK_FIELDS, BANK_FIELDS + 7)

# m: banks with requests in line, as bits; how many queued requests have this hash, by kind; waiting refreshes; the two
# queues and the lines, request numbers by age
WORDS = MOST_BANKS // 64
MASK = AFTER_BANKS
HASHED, HASH = MASK + WORDS, 1 << 10
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
def changed(m, bank):  # type: ignore[no-untyped-def]
    """The bank's row or line is another one now: look again at what may be ready."""
    b = bank_at(bank)
    m[b + SOON] = 0 if m[b + LENGTH] else FAR
    m[b + KNOWN] = 0


@compiled_part
def know(t, m, q, bank):  # type: ignore[no-untyped-def]
    """Find the three requests that matter while the bank's row is open; a write waits for a read of its block."""
    b, line = bank_at(bank), LINES + bank * LONGEST_LINE
    read, write = -1, -1
    for place in range(m[b + LENGTH]):
        request = m[line + place] * REQUEST_WIDTH
        if q[request + fields.ROW] != m[b + OPEN_ROW]:
            continue
        if q[request + fields.WRITE] == 0:
            if read < 0:
                read = place
        elif write < 0 and not _waits_for_read(m, q, line, place):
            write = place
        if read >= 0 and write >= 0:
            break
    head_hits = q[m[line] * REQUEST_WIDTH + fields.ROW] == m[b + OPEN_ROW]
    hits = read >= 0 or write >= 0
    m[b + READ_HIT] = read
    m[b + WRITE_HIT] = write
    m[b + MAY_CLOSE] = not head_hits and (not hits or m[b + USED] >= t[HIT_CAP])
    m[b + KNOWN] = 1


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
def leave_line(m, q, bank, place):  # type: ignore[no-untyped-def]
    """Take a request out of its bank's line."""
    b, line = bank_at(bank), LINES + bank * LONGEST_LINE
    request = m[line + place] * REQUEST_WIDTH
    kind = WRITES if q[request + fields.WRITE] else READS
    m[HASHED + kind * HASH + q[request + fields.BLOCK] % HASH] -= 1
    m[KIND_WAITING + kind] -= 1
    m[b + LENGTH] -= 1
    for at in range(line + place, line + m[b + LENGTH]):
        m[at] = m[at + 1]
    if m[b + LENGTH] == 0:
        m[MASK + (bank >> 6)] &= ~(1 << (bank & 63))
    m[IN_LINES] -= 1
    m[STUCK + READS] = 0
    m[STUCK + WRITES] = 0


@compiled_part
def move_one(t, m, q, empty_writes):  # type: ignore[no-untyped-def]
    """Move the first request whose bank has room into its line; whether anything changed."""
    if m[DRAINING] == 0:
        writes = m[SIZE + WRITES]
        least = 0 if empty_writes else t[WRITE_IDLE]
        if writes >= t[WRITE_SIZE] or (m[IN_LINES] == 0 and writes > least):
            m[DRAINING] = writes
    queue = WRITES if m[DRAINING] > 0 else READS
    first = QUEUES + queue * LONGEST_QUEUE
    for place in range(m[STUCK + queue], m[SIZE + queue]):
        number = m[first + place]
        bank = q[number * REQUEST_WIDTH + fields.BANK]
        if m[bank_at(bank) + LENGTH] >= t[LINE_SIZE]:
            continue
        m[STUCK + queue] = place
        if queue == WRITES:
            if waiting(m, q, number, READS) >= 0:
                m[DRAINING] = 0
                if m[IN_LINES] == 0:  # DRAMsim3 would wait forever here: nothing but that read can move
                    _move(m, READS, 0, q[m[QUEUES] * REQUEST_WIDTH + fields.BANK])
                return True
            m[DRAINING] -= 1
        _move(m, queue, place, bank)
        return True
    m[STUCK + queue] = m[SIZE + queue]
    return False


@compiled_part
def _move(m, queue, place, bank):  # type: ignore[no-untyped-def]
    first, b = QUEUES + queue * LONGEST_QUEUE, bank_at(bank)
    m[LINES + bank * LONGEST_LINE + m[b + LENGTH]] = m[first + place]
    m[b + LENGTH] += 1
    m[MASK + (bank >> 6)] |= 1 << (bank & 63)
    m[IN_LINES] += 1
    changed(m, bank)
    m[SIZE + queue] -= 1
    for at in range(first + place, first + m[SIZE + queue]):
        m[at] = m[at + 1]

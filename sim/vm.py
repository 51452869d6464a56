"""The compiled machine that plays programs: one lane per group of identical channels, event by event.

A lane steps through its code to the next meeting (`START`, `WAIT`, `MARK`, the end of a loop that holds one, or the
end of the program); `play` handles the meetings of all lanes. At the end of every loop round a lane's state is
compared, relative to now, with the round before. When they are equal, what the next rounds do is known: they are
added up at once, as far as the next refresh or the loop's end. What a stretch between two meetings did is kept by
its code and the state it began in, and added up when both come again. Lanes that have come to the same state and
read the same code up to the next meeting follow the first of them, which alone is played. `sim.reference` is the slow
twin of it all.

Everything is int64, and everything of one kind lies in one flat array, which keeps the compiled code small:
`t` the tables, `m` one lane's memory (a row of `memory`), `g` what all lanes share, `code` a program's rows, `kept`
what stretches did, `record` issued commands. The constants below say what lies where; `sim.engine` fills it. This is
one file on purpose: the cache of compiled functions looks at the file that calls, not at what is called.
"""

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

# --- code rows -----------------------------------------------------------------------------------------------------
COMMAND, LOOP, END, START, WAIT, MARK, HALT = range(7)
OP, A, B, C, DEPTH, MEETS, MOVES_ROWS, HAS_BANK, HAS_ROW = range(9)
BANK, ROW, COLUMN = 9, 10, 11
MAX_DEPTH = 8
BANK_STRIDES = 12
ROW_STRIDES = BANK_STRIDES + MAX_DEPTH
COLUMN_STRIDES = ROW_STRIDES + MAX_DEPTH
LOW = COLUMN_STRIDES + MAX_DEPTH  # least and greatest bank, row and column over the loops around
HIGH = LOW + 3
# At the first command of a stretch: its number or 0, its set of commands, rows to its end and to its first command that
# names a row (or -1), and how many loops are around it. A stretch is what lies between two meetings, or between one and
# a loop that holds one.
STRETCH = HIGH + 3
STRETCH_BODY, STRETCH_ROWS, STRETCH_ROWED, STRETCH_DEPTH = range(STRETCH + 1, STRETCH + 5)
WIDTH = STRETCH + 5

# --- t: scalars, then offsets of tables in t, then offsets in a lane's memory -----------------------------------------
(BANKS, TCK_PS, INTERVAL, REGION, PRECHARGE, REFRESH, ACTIVATE, ACTIVATE_ALL, HORIZON, SKIPS) = range(10)
(WRITTEN_START, WRITTEN, FIXED_START, FIXED, COUNTED_START, COUNTED, DATA, DATA_COUNT) = range(10, 18)
(LAST, ROWS, COUNT_SIZE, REASONS, SNAP, SNAP_STRIDE, PROFILE, ROOM, GROUP_SHIFT) = range(18, 27)
ACTIVATE_RANK, AGES = 27, 28  # AGES: for every last issue, the age beyond which no command looks at it
# KEPT: for how many stretches there is room (a power of two, or 0); KEY, WAS: where a lane has the key of the stretch
# it is in, and what it was when that began
(SEEN_START, SEEN, KEPT, KEPT_WIDTH, KEY, WAS) = range(29, 35)
COMMANDS = 35  # the first table: where each command's own pulls and pushes are, it says itself

REACH, NEED, EFFECT, REACHED, ON_CLOCK, SLOT, PULLS, PULLS_END, PUSHES, PUSHES_END, COMMAND_WIDTH = range(11)
PULL_BASE, PULL_DELAY, PULL_BANKED, PULL_REASON, PULL_SHIFT, PULL_FLIP, PULL_STRIDE, PULL_WIDTH = range(8)
PUSH_BASE, PUSH_SHIFT, PUSH_SPAN, PUSH_SCOPES, PUSH_WIDTH = range(5)
ROW_ANY, ROW_CLOSED, ROW_OPEN = range(3)
NO_EFFECT, OPENS, CLOSES = range(3)

# --- m: scalars at its start (SAME_ROW is the row that one command opened in all banks, or -1), loop counters, counters
(PREVIOUS, FLOOR, FLOOR_UNIT, DUE, OPEN, TOUCHED, SAME_ROW, PC, NEXT_REGION, RECORDED, STATUS) = range(11)
# OPEN_BANKS counts those of OPEN; a profile's next sample is due at EDGE, one every STEP cycles, and TAKEN are kept
# FOLLOWS is 1 + the lane that this one is a copy of for now, or 0
(OPEN_BANKS, EDGE, STEP, TAKEN, FOLLOWS, M_SIZE) = range(11, 17)
COUNTER = M_SIZE
COUNT = COUNTER + MAX_DEPTH
(ROW_HITS, ROW_MISSES, BANK_MISSES, OPEN_CYCLES, OPEN_BANK_CYCLES, REFRESHES, FIXED_COUNTERS) = range(7)
SLOTS = COUNT + FIXED_COUNTERS  # how often each command was issued, by bank group if it has a bank
REFRESH_REASON, END_REASON, EDGE_REASON, UNIT_REASON = range(4)
MAX_UNITS = 16
FINE, CLOSED_ROW, WRONG_ROW, OPEN_ROW, OVERFLOW, STUCK = range(6)
_MANY_REFRESHES = 200  # in a row without a command in between, and nothing else to wait for

# A loop's memory of the end of its last round: these, then ages of last issues, open rows, counters. BEGAN is when the
# round began, kept by the first lane for loops in which lanes meet.
(S_STORED, S_NOW, S_GAP, S_DUE, S_OPEN, S_TOUCHED, S_UNIT, S_LABEL, S_BEGAN, S_SIZE) = range(10)

# A stretch's key, followed by rows of open banks and ages of the last issues that its commands look at; PHASE is how
# soon the refresh was due, where one came. Then what it did, followed by open rows, last issues and counters.
(K_STRETCH, K_PHASE, K_REGION, K_OPEN, K_TOUCHED, K_SIZE) = range(6)
(D_CYCLES, D_DUE, D_REGION, D_OPEN, D_TOUCHED, D_SAME_ROW, D_SIZE) = range(7)
ANY_PHASE, UNCHANGED = -1, 1 << 60
_MIX, _SPREAD = 0x5851F42D, 0x5851F42D4C957F2D

RECORD_WIDTH = (
    6  # cycle, command, bank, row, column, slot; the first row of a record is its window, first and last cycle
)

# --- g: [0] jobs and [1] labels it has room for, time of the last mark, label; then units, jobs (time, count), labels,
# and the same again per loop depth
(G_JOBS, G_LABELS, G_MARKED, G_LABEL, G_UNITS) = range(5)
G_BUSY = G_UNITS + MAX_UNITS


def _make_pointer(typing_context, array, index):  # type: ignore[no-untyped-def]
    """A bare pointer to `array[index]`, or to the first element of that row.

    Unlike an array it is one register, is not counted, and takes no negative index: it is what the hot code works on.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        held = context.make_array(signature.args[0])(context, builder, arguments[0])
        start = builder.ptrtoint(held.data, arguments[1].type)
        distance = builder.mul(arguments[1], builder.extract_value(held.strides, 0))
        return builder.inttoptr(builder.add(start, distance), held.data.type)

    return types.CPointer(array.dtype)(array, types.intp), generate  # type: ignore[no-untyped-call]


_pointer: Any = intrinsic(_make_pointer)


def _make_popcount(typing_context, bits):  # type: ignore[no-untyped-def]
    """How many bits are set."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ctpop(arguments[0])

    return types.int64(types.int64), generate


_popcount: Any = intrinsic(_make_popcount)


@njit(cache=True)
def _now(m):  # type: ignore[no-untyped-def]
    return max(m[PREVIOUS] + 1, m[FLOOR])


@njit(cache=True)
def _affine(code, pc, base, strides, m):  # type: ignore[no-untyped-def]
    value = code[pc * WIDTH + base]
    for d in range(code[pc * WIDTH + DEPTH]):
        value += code[pc * WIDTH + strides + d] * m[COUNTER + d]
    return value


@njit(cache=True)
def _spec(command):  # type: ignore[no-untyped-def]
    """Where the command's own row of the command table is."""
    return COMMANDS + command * COMMAND_WIDTH


@njit(cache=True)
def _mask(t, command, bank):  # type: ignore[no-untyped-def]
    """The banks that the command reaches, as bits."""
    return t[_spec(command) + REACHED] << bank


@njit(cache=True)
def _earliest(t, m, command, bank, start, reason):  # type: ignore[no-untyped-def]
    """The first cycle from `start` on at which every rule lets the command go, and which one held it longest."""
    spec = _spec(command)
    for p in range(t[spec + PULLS], t[spec + PULLS_END], PULL_WIDTH):
        entry = t[p + PULL_BASE]
        if t[p + PULL_BANKED]:
            scope = (bank >> t[p + PULL_SHIFT]) ^ t[p + PULL_FLIP]
            entry += scope * t[p + PULL_STRIDE]
        bound = m[entry] + t[p + PULL_DELAY]
        if bound > start:
            start = bound
            reason = t[p + PULL_REASON]
    if t[spec + ON_CLOCK] & (start + 1):
        start += 1
        reason = EDGE_REASON if reason == END_REASON else reason
    return start, reason


@njit(cache=True)
def _issue(t, m, command, bank, row, cycle, reason):  # type: ignore[no-untyped-def]
    """Put the command on the bus at `cycle`: idle time, last issues, row state."""
    idle = cycle - m[PREVIOUS] - 1
    if idle:
        m[t[REASONS] + reason] += idle
    if m[OPEN] != 0:
        m[COUNT + OPEN_CYCLES] += idle + 1
        m[COUNT + OPEN_BANK_CYCLES] += (idle + 1) * m[OPEN_BANKS]
    m[PREVIOUS] = cycle
    spec = _spec(command)
    for p in range(t[spec + PUSHES], t[spec + PUSHES_END], PUSH_WIDTH):
        span = t[p + PUSH_SPAN]
        entry = t[p + PUSH_BASE] + (bank >> t[p + PUSH_SHIFT]) * span
        if span == 1:
            m[entry] = cycle
        else:
            _push_window(m, entry, span, t[p + PUSH_SCOPES], cycle)
    if t[spec + EFFECT] != NO_EFFECT:
        _move_rows(t, m, command, bank, row)


@njit(cache=True)
def _push_window(m, entry, span, scopes, cycle):  # type: ignore[no-untyped-def]
    for scope in range(scopes):
        newest = entry + scope * span
        for i in range(newest + span - 1, newest, -1):
            m[i] = m[i - 1]
        m[newest] = cycle


@njit(cache=True)
def _move_rows(t, m, command, bank, row):  # type: ignore[no-untyped-def]
    mask = _mask(t, command, bank)
    spec = _spec(command)
    m[TOUCHED] &= ~mask
    if t[spec + EFFECT] == CLOSES:
        m[OPEN] &= ~mask
        m[OPEN_BANKS] = _popcount(m[OPEN])
        return
    m[OPEN] |= mask
    m[OPEN_BANKS] = _popcount(m[OPEN])
    m[SAME_ROW] = row if t[spec + REACH] == t[BANKS] else -1
    for b in range(bank, bank + t[spec + REACH]):
        m[t[ROWS] + b] = row


@njit(cache=True)
def _note(record, m, command, bank, row, column, slot, cycle):  # type: ignore[no-untyped-def]
    """Record the command if it falls into the window that stands before the recorded ones."""
    if record[0] <= cycle < record[1]:
        m[RECORDED] += 1
        at = m[RECORDED] * RECORD_WIDTH
        record[at] = cycle
        record[at + 1] = command
        record[at + 2] = bank
        record[at + 3] = row
        record[at + 4] = column
        record[at + 5] = slot


@njit(cache=True)
def _profile(t, m, cycle, reason):  # type: ignore[no-untyped-def]
    """Keep the counters as they stand at every edge up to `cycle`; cycles idle before an edge count for `reason`."""
    while t[ROOM] and m[EDGE] <= cycle:
        if m[TAKEN] == t[ROOM]:
            _thin(t, m)
            continue
        sample = t[PROFILE] + m[TAKEN] * t[COUNT_SIZE]
        for i in range(t[COUNT_SIZE]):
            m[sample + i] = m[COUNT + i]
        idle = m[EDGE] - 1 - m[PREVIOUS]
        m[sample + t[REASONS] - COUNT + reason] += idle
        m[sample + OPEN_BANK_CYCLES] += idle * m[OPEN_BANKS]
        if m[OPEN] != 0:
            m[sample + OPEN_CYCLES] += idle
        m[TAKEN] += 1
        m[EDGE] += m[STEP]


@njit(cache=True)
def _thin(t, m):  # type: ignore[no-untyped-def]
    """Room for a profile twice as long: every second sample goes, and the next ones are twice as far apart."""
    size = t[COUNT_SIZE]
    m[TAKEN] = t[ROOM] // 2
    for i in range(m[TAKEN]):
        for k in range(size):
            m[t[PROFILE] + i * size + k] = m[t[PROFILE] + (2 * i + 1) * size + k]
    m[STEP] *= 2
    m[EDGE] = (m[TAKEN] + 1) * m[STEP]


@njit(cache=True)
def _control(t, m, record, command, bank, row):  # type: ignore[no-untyped-def]
    """Issue one of the refresh's own commands, as early as it may go but not before the refresh is due."""
    start = max(m[PREVIOUS] + 1, m[DUE])
    cycle, _ = _earliest(t, m, command, bank, start, np.int64(REFRESH_REASON))
    _profile(t, m, cycle, np.int64(REFRESH_REASON))
    _issue(t, m, command, bank, row, cycle, np.int64(REFRESH_REASON))
    m[SLOTS + t[_spec(command) + SLOT] + (bank >> t[GROUP_SHIFT])] += 1
    _note(record, m, command, bank, row, 0, t[_spec(command) + SLOT], cycle)


@njit(cache=True)
def _refresh(t, m, record):  # type: ignore[no-untyped-def]
    """Close the region's open rows, refresh it, open the same rows again: `sim.rules.RefreshPlan` defines it."""
    first = m[NEXT_REGION]
    before = m[OPEN]
    for bank in range(first, first + t[REGION], t[_spec(t[PRECHARGE]) + REACH]):
        if m[OPEN] & _mask(t, t[PRECHARGE], bank):
            _control(t, m, record, t[PRECHARGE], bank, 0)
    for bank in range(first, first + t[REGION], t[_spec(t[REFRESH]) + REACH]):
        _control(t, m, record, t[REFRESH], bank, 0)
        m[COUNT + REFRESHES] += 1
    _reopen(t, m, record, before & ~m[OPEN])
    m[NEXT_REGION] = (first + t[REGION]) % t[BANKS]
    m[DUE] += t[INTERVAL]


@njit(cache=True)
def _reopen(t, m, record, closed):  # type: ignore[no-untyped-def]
    rows = t[ROWS]
    same = t[ACTIVATE_ALL] >= 0
    for bank in range(t[BANKS]):
        if not (closed >> bank) & 1 or m[rows + bank] != m[rows]:
            same = False
    if same:
        _control(t, m, record, t[ACTIVATE_ALL], 0, m[rows])
        return
    left = closed
    for bank in range(t[BANKS]):
        if (left >> bank) & 1:
            left = _reopen_one(t, m, record, left, bank)


@njit(cache=True)
def _reopen_one(t, m, record, left, bank):  # type: ignore[no-untyped-def]
    """Open the bank, with its rank if all of that may be and had the same row; returns what is left to open."""
    command = t[ACTIVATE]
    if t[ACTIVATE_RANK] >= 0 and bank % t[_spec(t[ACTIVATE_RANK]) + REACH] == 0:
        mask = _mask(t, t[ACTIVATE_RANK], bank)
        if left & mask == mask and not _other_row(t, m, t[ACTIVATE_RANK], bank, m[t[ROWS] + bank]):
            command = t[ACTIVATE_RANK]
    row = m[t[ROWS] + bank]
    _control(t, m, record, command, bank, row)
    return left & ~_mask(t, command, bank)


@njit(cache=True)
def _other_row(t, m, command, bank, row):  # type: ignore[no-untyped-def]
    """Whether one of the banks that the command reaches holds another row than this."""
    first = t[ROWS] + bank
    other = np.int64(0)
    for b in range(first, first + t[_spec(command) + REACH]):
        other |= m[b] ^ row
    return other != 0


@njit(cache=True)
def _access(t, m, command, bank, row):  # type: ignore[no-untyped-def]
    """Whether the rows are as the command needs them; a column command's hit or miss is counted."""
    mask = _mask(t, command, bank)
    if t[_spec(command) + NEED] == ROW_CLOSED:
        return OPEN_ROW if m[OPEN] & mask else FINE
    if m[OPEN] & mask != mask:
        return CLOSED_ROW
    if m[SAME_ROW] != row and _other_row(t, m, command, bank, row):
        return WRONG_ROW
    missed = mask & ~m[TOUCHED]
    if missed == 0:
        m[COUNT + ROW_HITS] += 1
        return FINE
    m[COUNT + ROW_MISSES] += 1
    m[COUNT + BANK_MISSES] += _popcount(missed)
    m[TOUCHED] |= mask
    return FINE


@njit(cache=True)
def _command(t, m, record, code, pc):  # type: ignore[no-untyped-def]
    """Issue one command of the program, after the refreshes that come first."""
    command = code[pc * WIDTH + A]
    bank = _affine(code, pc, BANK, BANK_STRIDES, m) if code[pc * WIDTH + HAS_BANK] else np.int64(0)
    row = _affine(code, pc, ROW, ROW_STRIDES, m) if code[pc * WIDTH + HAS_ROW] else np.int64(0)
    refreshes = 0
    while True:
        start = m[PREVIOUS] + 1
        reason = np.int64(END_REASON)
        if m[FLOOR] > start:
            start = m[FLOOR]
            reason = UNIT_REASON + m[FLOOR_UNIT]
        cycle, reason = _earliest(t, m, command, bank, start, reason)
        if cycle < m[DUE]:
            break
        refreshes += m[FLOOR] <= m[DUE]
        if refreshes > _MANY_REFRESHES:
            return STUCK
        _refresh(t, m, record)
    if cycle >= m[EDGE]:
        if cycle >= t[HORIZON]:
            return OVERFLOW
        _profile(t, m, cycle, reason)
    if t[_spec(command) + NEED] != ROW_ANY:
        status = _access(t, m, command, bank, row)
        if status != FINE:
            return status
    _issue(t, m, command, bank, row, cycle, reason)
    m[SLOTS + code[pc * WIDTH + B] + (bank >> t[GROUP_SHIFT])] += 1
    if record[0] < record[1]:
        column = _affine(code, pc, COLUMN, COLUMN_STRIDES, m)
        _note(record, m, command, bank, row, column, code[pc * WIDTH + B], cycle)
    return FINE


@njit(cache=True)
def _store(t, m, depth, body, moves_rows, label):  # type: ignore[no-untyped-def]
    """Remember the lane's state, relative to now, at the end of a round."""
    s = t[SNAP] + depth * t[SNAP_STRIDE]
    now = _now(m)
    m[s + S_STORED] += 1
    m[s + S_NOW] = now
    m[s + S_GAP] = now - m[PREVIOUS]
    m[s + S_DUE] = m[DUE]
    m[s + S_OPEN] = m[OPEN]
    m[s + S_TOUCHED] = m[TOUCHED]
    m[s + S_UNIT] = m[FLOOR_UNIT] if now - m[PREVIOUS] > 1 else -1
    m[s + S_LABEL] = label
    s += S_SIZE
    for k in range(t[t[COUNTED_START] + body], t[t[COUNTED_START] + body + 1]):
        i = t[t[COUNTED] + k]
        m[s + i] = m[COUNT + i]
    s += t[COUNT_SIZE]
    if moves_rows:
        for b in range(t[BANKS]):
            m[s + b] = m[t[ROWS] + b]
    s += t[BANKS]
    first = t[t[WRITTEN_START] + body]
    for k in range(first, t[t[WRITTEN_START] + body + 1]):
        w = t[WRITTEN] + 2 * k
        m[s + k - first] = min(now - m[t[LAST] + t[w]], t[w + 1])


@njit(cache=True)
def _repeats(t, m, depth, body, label):  # type: ignore[no-untyped-def]
    """Whether the round just finished began and ended in the same state, so that all further rounds are like it."""
    s = t[SNAP] + depth * t[SNAP_STRIDE]
    now = _now(m)
    gap = now - m[PREVIOUS]
    unit = m[FLOOR_UNIT] if gap > 1 else -1
    if m[s + S_GAP] != gap or m[s + S_DUE] != m[DUE] or m[s + S_OPEN] != m[OPEN]:
        return False
    if m[s + S_TOUCHED] != m[TOUCHED] or m[s + S_UNIT] != unit or m[s + S_LABEL] != label:
        return False
    began = m[s + S_NOW]
    s += S_SIZE + t[COUNT_SIZE] + t[BANKS]
    first = t[t[WRITTEN_START] + body]
    for k in range(first, t[t[WRITTEN_START] + body + 1]):
        w = t[WRITTEN] + 2 * k
        if min(now - m[t[LAST] + t[w]], t[w + 1]) != m[s + k - first]:
            return False
    for k in range(t[t[FIXED_START] + body], t[t[FIXED_START] + body + 1]):
        f = t[FIXED] + 2 * k
        if began - m[t[LAST] + t[f]] < t[f + 1]:
            return False
    return True


@njit(cache=True)
def _rounds_until(t, m, record, now, period):  # type: ignore[no-untyped-def]
    """How many rounds of `period` cycles surely end before anything else happens."""
    limit = min(m[DUE], m[EDGE], t[HORIZON])
    if record[0] < record[1] and now < record[1]:
        limit = min(limit, record[0])
    if period == 0:
        return np.int64(1) << 62
    return max((limit - now) // period, 0)


@njit(cache=True)
def _advance(t, m, depth, body, moves_rows, rounds, period):  # type: ignore[no-untyped-def]
    """Add up `rounds` more rounds like the last one."""
    shift = rounds * period
    m[PREVIOUS] += shift
    m[FLOOR] += shift
    for k in range(t[t[WRITTEN_START] + body], t[t[WRITTEN_START] + body + 1]):
        m[t[LAST] + t[t[WRITTEN] + 2 * k]] += shift
    s = t[SNAP] + depth * t[SNAP_STRIDE] + S_SIZE
    for k in range(t[t[COUNTED_START] + body], t[t[COUNTED_START] + body + 1]):
        i = t[t[COUNTED] + k]
        m[COUNT + i] += (m[COUNT + i] - m[s + i]) * rounds
    s += t[COUNT_SIZE]
    if moves_rows:
        for b in range(t[BANKS]):
            m[t[ROWS] + b] += (m[t[ROWS] + b] - m[s + b]) * rounds
        if m[SAME_ROW] >= 0:
            m[SAME_ROW] = m[t[ROWS]]


@njit(cache=True)
def _may_skip(t, m, code, pc, label):  # type: ignore[no-untyped-def]
    """Whether the rounds to come are known.

    Where rows are opened it takes one more round: a row opened before the loop may not lie on the later ones' line.
    """
    at = pc * WIDTH
    stored = m[t[SNAP] + code[at + DEPTH] * t[SNAP_STRIDE] + S_STORED]
    return stored > code[at + MOVES_ROWS] and _repeats(t, m, code[at + DEPTH], code[at + C], label)


@njit(cache=True)
def _skip(t, m, record, code, pc, left):  # type: ignore[no-untyped-def]
    """At the end of a round: add up as many of the `left` rounds as possible; returns how many."""
    depth, body, moves_rows = code[pc * WIDTH + DEPTH], code[pc * WIDTH + C], code[pc * WIDTH + MOVES_ROWS]
    rounds = np.int64(0)
    if _may_skip(t, m, code, pc, 0):
        now = _now(m)
        period = now - m[t[SNAP] + depth * t[SNAP_STRIDE] + S_NOW]
        rounds = min(left, _rounds_until(t, m, record, now, period))
        if rounds > 0:
            _advance(t, m, depth, body, moves_rows, rounds, period)
    if rounds < left:
        _store(t, m, depth, body, moves_rows, 0)
    return rounds


@njit(cache=True)
def _count(t, starts, body):  # type: ignore[no-untyped-def]
    """How many entries the body has in a list, given where the lists' starts are."""
    return t[t[starts] + body + 1] - t[t[starts] + body]


@njit(cache=True)
def _origin(code, first, m):  # type: ignore[no-untyped-def]
    """What a stretch's rows are counted from: where its first one lies in this round of the loops around it."""
    rowed = code[first * WIDTH + STRETCH_ROWED]
    if rowed < 0:
        return np.int64(0)
    at = (first + rowed) * WIDTH
    origin = code[at + ROW]
    for d in range(code[first * WIDTH + STRETCH_DEPTH]):
        origin += code[at + ROW_STRIDES + d] * m[COUNTER + d]
    return origin


@njit(cache=True)
def _put_key(t, m, stretch, body, origin):  # type: ignore[no-untyped-def]
    """Write the key, for no phase yet, of a stretch whose first command was issued just now; returns its hash."""
    k = t[KEY]
    m[k + K_STRETCH] = stretch
    m[k + K_PHASE] = ANY_PHASE
    m[k + K_REGION] = 0
    m[k + K_OPEN] = m[OPEN]
    m[k + K_TOUCHED] = m[TOUCHED]
    h = stretch * _SPREAD + m[OPEN] * _MIX + m[TOUCHED]
    k += K_SIZE
    for b in range(t[BANKS]):
        m[k + b] = (m[t[ROWS] + b] - origin) if (m[OPEN] >> b) & 1 else np.int64(0)
        h += m[k + b] * (_SPREAD ^ (b * _MIX))
    k += t[BANKS]
    s = t[SEEN] + 2 * t[t[SEEN_START] + body]
    for i in range(_count(t, SEEN_START, body)):
        m[k + i] = min(m[PREVIOUS] - m[t[LAST] + t[s + 2 * i]], t[s + 2 * i + 1])
        h += m[k + i] * (_SPREAD ^ ((i + 64) * _MIX))
    return h


@njit(cache=True)
def _place(t, h, phase):  # type: ignore[no-untyped-def]
    """Where what has this hash and phase is kept."""
    h = (h + phase) * _SPREAD
    return ((h ^ (h >> 29) ^ (h >> 47)) & (t[KEPT] - 1)) * t[KEPT_WIDTH]


@njit(cache=True)
def _is_kept(t, m, kept, place, size):  # type: ignore[no-untyped-def]
    different = np.int64(0)
    for i in range(size):
        different |= kept[place + i] ^ m[t[KEY] + i]
    return different == 0


@njit(cache=True)
def _find(t, m, kept, h, size):  # type: ignore[no-untyped-def]
    """Where it is kept what the stretch does from here on, or -1.

    That is what it did without a refresh, if none is due before that would have ended; or what it did when the next
    refresh was due just as soon.
    """
    place = _place(t, h, np.int64(ANY_PHASE))
    if _is_kept(t, m, kept, place, size) and m[PREVIOUS] + kept[place + size + D_CYCLES] < m[DUE]:
        return place
    m[t[KEY] + K_PHASE] = m[DUE] - m[PREVIOUS]
    m[t[KEY] + K_REGION] = m[NEXT_REGION]
    place = _place(t, h, m[DUE] - m[PREVIOUS])
    return place if _is_kept(t, m, kept, place, size) else np.int64(-1)


@njit(cache=True)
def _do_again(t, m, kept, k, body, origin):  # type: ignore[no-untyped-def]
    """Add up what a stretch did, which is kept from `k` on."""
    began = m[PREVIOUS]
    m[PREVIOUS] += kept[k + D_CYCLES]
    m[OPEN] = kept[k + D_OPEN]
    m[OPEN_BANKS] = _popcount(m[OPEN])
    m[TOUCHED] = kept[k + D_TOUCHED]
    if kept[k + D_DUE]:
        m[DUE] += kept[k + D_DUE]
        m[NEXT_REGION] = kept[k + D_REGION]
    if m[OPEN] != 0:
        m[SAME_ROW] = -1 if kept[k + D_SAME_ROW] == UNCHANGED else kept[k + D_SAME_ROW] + origin
    k += D_SIZE
    for b in range(t[BANKS]):
        if (m[OPEN] >> b) & 1:
            m[t[ROWS] + b] = kept[k + b] + origin
    k += t[BANKS]
    w = t[WRITTEN] + 2 * t[t[WRITTEN_START] + body]
    for i in range(_count(t, WRITTEN_START, body)):
        if kept[k + i] != UNCHANGED:
            m[t[LAST] + t[w + 2 * i]] = began + kept[k + i]
    k += _count(t, WRITTEN_START, body)
    c = t[COUNTED] + t[t[COUNTED_START] + body]
    for i in range(_count(t, COUNTED_START, body)):
        m[COUNT + t[c + i]] += kept[k + i]


@njit(cache=True)
def _keep(t, m, kept, h, body, origin):  # type: ignore[no-untyped-def]
    """Keep what a stretch did since its key was written."""
    was, size = t[WAS], K_SIZE + t[BANKS] + _count(t, SEEN_START, body)
    if m[DUE] == m[was + DUE]:
        m[t[KEY] + K_PHASE] = ANY_PHASE
        m[t[KEY] + K_REGION] = 0
    k = _place(t, h, m[t[KEY] + K_PHASE])
    for i in range(size):
        kept[k + i] = m[t[KEY] + i]
    k += size
    kept[k + D_CYCLES] = m[PREVIOUS] - m[was + PREVIOUS]
    kept[k + D_DUE] = m[DUE] - m[was + DUE]
    kept[k + D_REGION] = m[NEXT_REGION]
    kept[k + D_OPEN] = m[OPEN]
    kept[k + D_TOUCHED] = m[TOUCHED]
    kept[k + D_SAME_ROW] = m[SAME_ROW] - origin if m[SAME_ROW] >= 0 else UNCHANGED
    k += D_SIZE
    for b in range(t[BANKS]):
        kept[k + b] = m[t[ROWS] + b] - origin
    k += t[BANKS]
    w = t[WRITTEN] + 2 * t[t[WRITTEN_START] + body]
    for i in range(_count(t, WRITTEN_START, body)):
        entry = t[LAST] + t[w + 2 * i]
        kept[k + i] = UNCHANGED if m[entry] == m[was + entry] else m[entry] - m[was + PREVIOUS]
    k += _count(t, WRITTEN_START, body)
    c = t[COUNTED] + t[t[COUNTED_START] + body]
    for i in range(_count(t, COUNTED_START, body)):
        kept[k + i] = m[COUNT + t[c + i]] - m[was + COUNT + t[c + i]]


@njit(cache=True)
def _run(t, m, record, code, kept, keeps):  # type: ignore[no-untyped-def]
    """Step one lane to its next meeting; the lane's PC is left on it."""
    pc = m[PC]
    fresh = keeps
    new, h, origin = np.int64(-1), np.int64(0), np.int64(0)  # the stretch that will be kept: its first row, hash, rows
    while True:
        op = code[pc * WIDTH + OP]
        if op == COMMAND:
            status = _command(t, m, record, code, pc)
            if status != FINE:
                m[STATUS] = status
                break
            if fresh and code[pc * WIDTH + STRETCH]:
                body = code[pc * WIDTH + STRETCH_BODY]
                origin = _origin(code, pc, m)
                h = _put_key(t, m, code[pc * WIDTH + STRETCH], body, origin)
                size = K_SIZE + t[BANKS] + _count(t, SEEN_START, body)
                place = _find(t, m, kept, h, size)
                if place >= 0:
                    _do_again(t, m, kept, place + size, body, origin)
                    pc += code[pc * WIDTH + STRETCH_ROWS] - 1
                else:
                    new = pc
                    for i in range(t[ROWS]):
                        m[t[WAS] + i] = m[i]
            fresh = False
            pc += 1
        elif op == LOOP:
            if code[pc * WIDTH + MEETS]:
                if new >= 0:
                    _keep(t, m, kept, h, code[new * WIDTH + STRETCH_BODY], origin)
                    new = np.int64(-1)
                fresh = keeps
                m[t[SNAP] + code[pc * WIDTH + DEPTH] * t[SNAP_STRIDE] + S_BEGAN] = _now(m)
            m[COUNTER + code[pc * WIDTH + DEPTH]] = code[pc * WIDTH + B]
            m[t[SNAP] + code[pc * WIDTH + DEPTH] * t[SNAP_STRIDE] + S_STORED] = 0
            pc += 1
        elif op == END and not code[pc * WIDTH + MEETS]:
            counter = COUNTER + code[pc * WIDTH + DEPTH]
            m[counter] += 1
            left = code[pc * WIDTH + A] - m[counter]
            if left > 0 and t[SKIPS] and code[pc * WIDTH + C] >= 0:
                skipped = _skip(t, m, record, code, pc, left)
                m[counter] += skipped
                left -= skipped
            pc = pc - code[pc * WIDTH + B] if left > 0 else pc + 1
        else:
            break
    if new >= 0 and m[STATUS] == FINE:
        _keep(t, m, kept, h, code[new * WIDTH + STRETCH_BODY], origin)
    m[PC] = pc


@njit(cache=True)
def _wall(memory, lanes):  # type: ignore[no-untyped-def]
    """The cycle that the last of the lanes has come to."""
    wall = np.int64(0)
    for lane in range(lanes):
        wall = max(wall, _now(_pointer(memory, lane)))
    return wall


@njit(cache=True)
def _data_ready(t, memory, lanes):  # type: ignore[no-untyped-def]
    """The cycle by which the data of all commands issued so far are there."""
    ready = np.int64(0)
    for lane in range(lanes):
        for k in range(t[DATA_COUNT]):
            d = t[DATA] + 2 * k
            ready = max(ready, memory[lane, t[LAST] + t[d]] + t[d + 1])
    return ready


@njit(cache=True)
def _flush_label(g, wall):  # type: ignore[no-untyped-def]
    """Count the time since the last mark towards its label."""
    g[G_BUSY + 2 * g[G_JOBS] + g[G_LABEL]] += wall - g[G_MARKED]
    g[G_MARKED] = wall


@njit(cache=True)
def _start_job(t, memory, g, active, unit, job, duration_ps):  # type: ignore[no-untyped-def]
    begin = max(_wall(memory, active), _data_ready(t, memory, active)) * t[TCK_PS]
    g[G_UNITS + unit] = max(begin, g[G_UNITS + unit]) + duration_ps
    g[G_BUSY + 2 * job] += duration_ps
    g[G_BUSY + 2 * job + 1] += 1


@njit(cache=True)
def _wait_for(t, memory, g, active, unit):  # type: ignore[no-untyped-def]
    free = -(-g[G_UNITS + unit] // t[TCK_PS])
    for lane in range(active):
        if free > memory[lane, FLOOR]:
            memory[lane, FLOOR] = free
            memory[lane, FLOOR_UNIT] = unit


@njit(cache=True)
def _part(t, a, b, counts):  # type: ignore[no-untyped-def]
    """Lane `b` becomes what it would be, had it been played like `a` since it followed that."""
    b[FOLLOWS] = 0
    for i in range(TOUCHED + 1):
        b[i] = a[i]
    b[SAME_ROW] = a[SAME_ROW]
    b[NEXT_REGION] = a[NEXT_REGION]
    b[OPEN_BANKS] = a[OPEN_BANKS]
    for depth in range(MAX_DEPTH):
        b[COUNTER + depth] = a[COUNTER + depth]
        stored = t[SNAP] + depth * t[SNAP_STRIDE] + S_STORED
        b[stored] = min(b[stored], a[stored])
    for i in range(t[COUNT_SIZE]):
        b[COUNT + i] += a[COUNT + i] - counts[i]
    for i in range(t[LAST], t[SNAP]):
        b[i] = a[i]


@njit(cache=True)
def _part_all(t, memory, active, counts):  # type: ignore[no-untyped-def]
    for lane in range(active):
        if memory[lane, FOLLOWS]:
            _part(t, _pointer(memory, memory[lane, FOLLOWS] - 1), _pointer(memory, lane), _pointer(counts, lane))


@njit(cache=True)
def _is_long(t, m, depth):  # type: ignore[no-untyped-def]
    """Whether the round took so long that two and one more between two refreshes are out of the question."""
    began = t[SNAP] + depth * t[SNAP_STRIDE] + S_BEGAN
    now = _now(m)
    length = now - m[began]
    m[began] = now
    return t[INTERVAL] > 0 and 2 * length > t[INTERVAL]


@njit(cache=True)
def _loop_end(t, memory, g, active, code, record, counts):  # type: ignore[no-untyped-def]
    """All lanes stand at the end of the same loop: go round again, skip ahead, or leave it."""
    depth = code[memory[0, PC], DEPTH]
    done = memory[0, COUNTER + depth] + 1
    left = code[memory[0, PC], A] - done
    regular = not _is_long(t, _pointer(memory, 0), depth) and left > 0 and t[SKIPS] != 0
    for lane in range(active):
        regular = regular and code[memory[lane, PC], C] >= 0
    if not regular:
        for lane in range(active):
            memory[lane, t[SNAP] + depth * t[SNAP_STRIDE] + S_STORED] = 0
    else:
        _part_all(t, memory, active, counts)
        skipped = _joint_skip(t, memory, g, active, code, record, depth, left)
        done += skipped
        left -= skipped
    for lane in range(active):
        pc = memory[lane, PC]
        memory[lane, COUNTER + depth] = done
        memory[lane, PC] = pc - code[pc, B] if left > 0 else pc + 1


@njit(cache=True)
def _joint_skip(t, memory, g, active, code, record, depth, left):  # type: ignore[no-untyped-def]
    """`_skip` for a loop in which lanes meet: all of them, the units and the label must be in the same state."""
    wall = _wall(memory, active)
    _flush_label(g, wall)
    stored = t[SNAP] + depth * t[SNAP_STRIDE] + S_NOW
    period = _now(_pointer(memory, 0)) - memory[0, stored]
    rounds = left
    for lane in range(active):
        m = _pointer(memory, lane)
        if _now(m) - m[stored] != period or not _may_skip(t, m, _pointer(code, 0), m[PC], g[G_LABEL]):
            rounds = 0
        else:
            rounds = min(rounds, _rounds_until(t, m, _pointer(record, lane), _now(m), period))
    if rounds > 0 and _units_moved(t, g, depth, wall):
        rounds = 0
    for lane in range(active):
        m = _pointer(memory, lane)
        if rounds > 0:
            _advance(t, m, depth, code[m[PC], C], code[m[PC], MOVES_ROWS], rounds, period)
        _store(t, m, depth, code[m[PC], C], code[m[PC], MOVES_ROWS], g[G_LABEL])
    if rounds > 0:
        _advance_shared(t, g, depth, wall, rounds, period)
    _store_shared(t, g, depth)
    return rounds


@njit(cache=True)
def _shared_snap(g, depth):  # type: ignore[no-untyped-def]
    size = MAX_UNITS + 2 * g[G_JOBS] + g[G_LABELS]
    return G_UNITS + size * (1 + depth)


@njit(cache=True)
def _units_moved(t, g, depth, wall):  # type: ignore[no-untyped-def]
    """Whether a unit is busy for another while, seen from now, than a round ago."""
    s = _shared_snap(g, depth)
    moved = False
    for unit in range(MAX_UNITS):
        moved = moved or max(g[G_UNITS + unit] - wall * t[TCK_PS], 0) != g[s + unit]
    return moved


@njit(cache=True)
def _store_shared(t, g, depth):  # type: ignore[no-untyped-def]
    s = _shared_snap(g, depth)
    for unit in range(MAX_UNITS):
        g[s + unit] = max(g[G_UNITS + unit] - g[G_MARKED] * t[TCK_PS], 0)
    for i in range(MAX_UNITS, MAX_UNITS + 2 * g[G_JOBS] + g[G_LABELS]):
        g[s + i] = g[G_UNITS + i]


@njit(cache=True)
def _advance_shared(t, g, depth, wall, rounds, period):  # type: ignore[no-untyped-def]
    s = _shared_snap(g, depth)
    for unit in range(MAX_UNITS):
        if g[G_UNITS + unit] > wall * t[TCK_PS]:
            g[G_UNITS + unit] += rounds * period * t[TCK_PS]
    for i in range(MAX_UNITS, MAX_UNITS + 2 * g[G_JOBS] + g[G_LABELS]):
        g[G_UNITS + i] += (g[G_UNITS + i] - g[s + i]) * rounds
    g[G_MARKED] += rounds * period


@njit(cache=True)
def _finish(t, memory, g, record):  # type: ignore[no-untyped-def]
    """The program's end: data there, units idle, every refresh due before then done; all lanes wait for it."""
    lanes = memory.shape[0]
    end = max(_wall(memory, lanes), _data_ready(t, memory, lanes))
    for unit in range(MAX_UNITS):
        end = max(end, -(-g[G_UNITS + unit] // t[TCK_PS]))
    settled = False
    while not settled:
        settled = True
        for lane in range(lanes):
            late = 0
            while memory[lane, DUE] < end:
                _refresh(t, _pointer(memory, lane), _pointer(record, lane))
                settled = False
                late += memory[lane, PREVIOUS] >= memory[lane, DUE]
                if late > _MANY_REFRESHES:
                    memory[lane, STATUS] = STUCK
                    return np.int64(-1 - lane)
            end = max(end, memory[lane, PREVIOUS] + 1)
    for lane in range(lanes):
        m = _pointer(memory, lane)
        _profile(t, m, end - 1, np.int64(END_REASON))
        idle = end - 1 - m[PREVIOUS]
        m[t[REASONS] + END_REASON] += idle
        m[COUNT + OPEN_BANK_CYCLES] += idle * m[OPEN_BANKS]
        if m[OPEN] != 0:
            m[COUNT + OPEN_CYCLES] += idle
        m[PREVIOUS] = end - 1
        m[FLOOR] = end
    _flush_label(g, end)
    return end


@njit(cache=True)
def _meet(t, memory, g, active, code, record, counts):  # type: ignore[no-untyped-def]
    """What happens at the row on which all lanes stand."""
    row = code[memory[0, PC]]
    if row[OP] == END:
        _loop_end(t, memory, g, active, code, record, counts)
        return
    if row[OP] == START:
        _start_job(t, memory, g, active, row[A], row[B], row[C])
    elif row[OP] == WAIT:
        _wait_for(t, memory, g, active, row[A])
    else:
        _flush_label(g, _wall(memory, active))
        g[G_LABEL] = row[A]
    for lane in range(active):
        memory[lane, PC] += 1


@njit(cache=True)
def _is_meeting(code, row):  # type: ignore[no-untyped-def]
    """Whether lanes stop at the row."""
    op = code[row, OP]
    return op >= START or (op == END and code[row, MEETS] != 0)


@njit(cache=True)
def _alike(code, a, b):  # type: ignore[no-untyped-def]
    different = np.int64(0)
    for i in range(WIDTH):
        different |= code[a, i] ^ code[b, i]
    return different == 0


@njit(cache=True)
def twins(code, entry):  # type: ignore[no-untyped-def]
    """For every row the first lane's row from which on all is the same up to the next meeting."""
    twin = np.arange(code.shape[0])
    lanes = entry.shape[0]
    start = entry.copy()
    stop = entry.copy()
    ended = False
    while not ended:
        for lane in range(lanes):
            row = start[lane]
            while not _is_meeting(code, row):
                row += 1
            stop[lane] = row
            for other in range(lane):
                twin[row] = min(twin[row], twin[stop[other]])
                _match(code, twin, start, stop, lane, other)
                if start[lane] == row or twin[start[lane]] != start[lane]:
                    break
        ended = code[stop[0], OP] == HALT
        start = stop + 1
    return twin


@njit(cache=True)
def _match(code, twin, start, stop, lane, other):  # type: ignore[no-untyped-def]
    """From the meeting backwards, as far as both lanes' rows are the same."""
    for back in range(1, min(stop[lane] - start[lane], stop[other] - start[other]) + 1):
        row = stop[lane] - back
        if not _alike(code, row, stop[other] - back):
            break
        if twin[row] == row:
            twin[row] = twin[stop[other] - back]


@njit(cache=True)
def _same_state(t, a, b):  # type: ignore[no-untyped-def]
    """Whether two lanes will do the same at the same cycles, given the same commands."""
    if a[PREVIOUS] != b[PREVIOUS] or a[DUE] != b[DUE] or a[NEXT_REGION] != b[NEXT_REGION]:
        return False
    now = _now(a)
    if now != _now(b) or (now > a[PREVIOUS] + 1 and a[FLOOR_UNIT] != b[FLOOR_UNIT]):
        return False
    if a[OPEN] != b[OPEN] or a[TOUCHED] != b[TOUCHED] or (a[OPEN] != 0 and a[SAME_ROW] != b[SAME_ROW]):
        return False
    for i in range(t[BANKS]):
        if (a[OPEN] >> i) & 1 and a[t[ROWS] + i] != b[t[ROWS] + i]:
            return False
    for i in range(t[ROWS] - t[LAST]):
        one, other = a[t[LAST] + i], b[t[LAST] + i]
        if one != other and a[PREVIOUS] + 1 - max(one, other) < t[t[AGES] + i]:
            return False
    return True


@njit(cache=True)
def _follow(t, a, b, leader, counts):  # type: ignore[no-untyped-def]
    """Lane `b` is from now on like `a`; `counts` keeps the counters that `a` had before.

    What the two remember of rounds before now is the same only where all last issues are.
    """
    b[FOLLOWS] = leader + 1
    for i in range(t[COUNT_SIZE]):
        counts[i] = a[COUNT + i]
    for i in range(t[LAST], t[ROWS]):
        if a[i] != b[i]:
            for depth in range(MAX_DEPTH):
                b[t[SNAP] + depth * t[SNAP_STRIDE] + S_STORED] = 0
            break


@njit(cache=True)
def _pair(t, memory, active, twin, counts, ahead):  # type: ignore[no-untyped-def]
    """Before lanes step on: who follows whom, and how far ahead in the code it stands."""
    for lane in range(1, active):
        place = twin[memory[lane, PC]]
        leader = memory[lane, FOLLOWS] - 1
        if leader >= 0 and (memory[leader, FOLLOWS] or twin[memory[leader, PC]] != place):
            _part(t, _pointer(memory, leader), _pointer(memory, lane), _pointer(counts, lane))
            leader = np.int64(-1)
        for other in range(lane):
            if leader >= 0 or memory[other, FOLLOWS] or twin[memory[other, PC]] != place:
                continue
            if _same_state(t, _pointer(memory, other), _pointer(memory, lane)):
                _follow(t, _pointer(memory, other), _pointer(memory, lane), other, _pointer(counts, lane))
                leader = np.int64(other)
        if leader >= 0:
            ahead[lane] = memory[lane, PC] - memory[leader, PC]


@njit(cache=True)
def play(tables, memory, g, entry, code, twin, record, kept):  # type: ignore[no-untyped-def]
    """Play one program, lane i running the code from row entry[i] on; returns the end cycle, or -1 - lane.

    `twin` is what `twins` says of the code.

    Lanes without an entry are channels that the program leaves alone: they are only refreshed. A negative result
    means that this lane stopped on an error, with its STATUS and PC saying which and where.
    """
    t = _pointer(tables, 0)
    active = entry.shape[0]
    for lane in range(active):
        memory[lane, PC] = entry[lane]
    g[G_LABEL] = 0
    whole = t[SKIPS] != 0 and not t[ROOM] and record.shape[1] == 1
    pairs = whole and active > 1
    keeps = whole and t[KEPT] > 0
    counts = np.empty((active, t[COUNT_SIZE]), dtype=np.int64)
    ahead = np.empty(active, dtype=np.int64)
    while active > 0:
        if pairs:
            _pair(t, memory, active, twin, counts, ahead)
        for lane in range(active):
            if memory[lane, FOLLOWS]:
                memory[lane, PC] = memory[memory[lane, FOLLOWS] - 1, PC] + ahead[lane]
                continue
            _run(t, _pointer(memory, lane), _pointer(record, lane), _pointer(code, 0), _pointer(kept, 0), keeps)
            if memory[lane, STATUS] != FINE:
                return np.int64(-1 - lane)
        if code[memory[0, PC], OP] == HALT:
            _part_all(t, memory, active, counts)
            break
        _meet(t, memory, g, active, code, record, counts)
    if _wall(memory, memory.shape[0]) >= t[HORIZON]:
        memory[0, STATUS] = OVERFLOW
        return np.int64(-1)
    return _finish(t, memory, g, record)

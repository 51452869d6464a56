"""A channel that plays AiM commands, compiled: in order, opening and closing rows as they need.

Ordinary reads and writes go first ready, first come; the two kinds do not mix in its queues.
"""

# ruff: noqa: SIM109, SIM110  (compiled code: plain comparisons and loops)

from nearbank.compiled import compiled_part
from nearbank.sim.requests import aim_state as at
from nearbank.sim.requests.aim_state import (
    ACT,
    ACT16,
    LINE_BANK,
    LINE_COLUMN,
    LINE_ROW,
    LINE_WRITE,
    MACSB,
    OPEN_ROWS,
    OPENED,
    PRE,
    PREA,
    RD,
    RDAF,
    RDCP,
    RDMAC,
    READS,
    REFAB,
    SYNC,
    TMOD,
    WR,
    WRBIAS,
    WRBK,
    WRCP,
    WRGB,
    WRITES,
)
from nearbank.sim.requests.state import note
from nearbank.sim.requests.timing import issue, issue_to_all, ready_cycle, ready_cycle_of_all


@compiled_part
def _line_at(queue, place):  # type: ignore[no-untyped-def]
    return at.LINES + (queue * at.LINE_PLACES + place) * at.LINE_WIDTH


@compiled_part
def append(m, queue, bank, row, column, write, cycle):  # type: ignore[no-untyped-def]
    """Put an ordinary request at the end of a queue."""
    line = _line_at(queue, m[at.SIZE + queue])
    m[line + LINE_BANK] = bank
    m[line + LINE_ROW] = row
    m[line + LINE_COLUMN] = column
    m[line + LINE_WRITE] = write
    m[line + at.ARRIVED] = cycle
    m[at.SIZE + queue] += 1


@compiled_part
def give_answer_at(m, cycle, kind):  # type: ignore[no-untyped-def]
    """An answer for the host at `cycle`; kind 1: it waits for it, 2: and for all writes."""
    place = at.ANSWERS + (m[at.ANSWER_HEAD] + m[at.ANSWER_SIZE]) % at.ANSWER_PLACES * 2
    m[place] = cycle
    m[place + 1] = kind
    m[at.ANSWER_SIZE] += 1


@compiled_part
def tick(t, m, channel, host, log, cycle):  # type: ignore[no-untyped-def]
    """One cycle of a channel; whether the host may go on because of it."""
    answered = _give_answer(m, host, cycle)
    m[at.WAKE] = at.FAR
    if m[at.ANSWER_SIZE]:
        answer = at.ANSWERS + m[at.ANSWER_HEAD] * 2
        due = m[answer]
        if m[answer + 1] == 2:
            due = max(due, m[at.LAST_WRITE] + 1)
        m[at.WAKE] = max(due, cycle + 1)
    issued = _issue_one(t, m, channel, log, cycle)
    if issued:
        m[at.WAKE] = cycle + 1
    return answered or issued


@compiled_part
def _give_answer(m, host, cycle):  # type: ignore[no-untyped-def]
    """The oldest answer, if it is there; SYNC and EOC stand behind all writes. One a cycle."""
    answer = at.ANSWERS + m[at.ANSWER_HEAD] * 2
    kind = m[answer + 1]
    if m[at.ANSWER_SIZE] == 0 or m[answer] > cycle or (kind == 2 and m[at.LAST_WRITE] >= cycle):
        return False
    m[at.ANSWER_HEAD] = (m[at.ANSWER_HEAD] + 1) % at.ANSWER_PLACES
    m[at.ANSWER_SIZE] -= 1
    if kind:
        host[at.STALLED] -= 1
        if host[at.STALLED] == 0:
            host[at.AT] += 1
    return kind > 0


@compiled_part
def _issue_one(t, m, channel, log, cycle):  # type: ignore[no-untyped-def]
    """Issue one command, if any is ready: of requests with an opened row, refresh, AiM, other requests."""
    if cycle >= m[at.NEXT_REFRESH]:
        m[at.NEXT_REFRESH] += t[at.REFRESH_INTERVAL]
        m[at.REFRESHING] += 1
    if m[at.SIZE + OPENED]:
        place, command = _first_ready(t, m, OPENED, cycle)
        if place >= 0:
            return _serve(t, m, channel, log, OPENED, place, command, cycle)
    if m[at.REFRESHING]:
        return _refresh(t, m, channel, log, cycle)
    if m[at.AIM_SIZE]:
        return _play(t, m, channel, log, cycle)
    queue = _queue_to_serve(m)
    place, command = _first_ready(t, m, queue, cycle)
    if place < 0 or (command == PRE and _row_is_wanted(m, m[_line_at(queue, place) + LINE_BANK])):
        return False
    return _serve(t, m, channel, log, queue, place, command, cycle)


@compiled_part
def _refresh(t, m, channel, log, cycle):  # type: ignore[no-untyped-def]
    command = REFAB
    for bank in range(t[at.BANKS]):
        if m[OPEN_ROWS + bank] >= 0:
            command = PREA
    if not _is_ready(t, m, command, -1, cycle):
        return False
    _do(t, m, channel, log, command, -1, -1, 0, cycle)
    m[at.REFRESHING] -= command == REFAB
    return True


@compiled_part
def _is_ready(t, m, command, bank, cycle):  # type: ignore[no-untyped-def]
    """Whether the rules allow the command now; if not, notes when they will."""
    if bank >= 0 or t[at.BELOW + command] == 1:
        when = ready_cycle(t, m, command, max(bank, 0))
    else:
        when = ready_cycle_of_all(t, m, command, 0, t[at.BANKS])
    if when > cycle:
        m[at.WAKE] = min(m[at.WAKE], when)
    return when <= cycle


@compiled_part
def _queue_to_serve(m):  # type: ignore[no-untyped-def]
    if m[at.DRAINING]:
        if m[at.SIZE + WRITES] < at.DRAIN_BELOW and m[at.SIZE + READS]:
            m[at.DRAINING] = 0
    elif m[at.SIZE + WRITES] > at.DRAIN_ABOVE or m[at.SIZE + READS] == 0:
        m[at.DRAINING] = 1
    return WRITES if m[at.DRAINING] else READS


@compiled_part
def _first_ready(t, m, queue, cycle):  # type: ignore[no-untyped-def]
    """The oldest request whose next command is ready, and that command; -1 if none."""
    best, chosen, oldest = -1, 0, at.FAR
    for place in range(m[at.SIZE + queue]):
        line = _line_at(queue, place)
        bank = m[line + LINE_BANK]
        row = m[OPEN_ROWS + bank]
        command = ACT if row < 0 else PRE
        if row == m[line + LINE_ROW]:
            command = WR if m[line + LINE_WRITE] else RD
        if m[line + at.ARRIVED] < oldest and _is_ready(t, m, command, bank, cycle):
            best, chosen, oldest = place, command, m[line + at.ARRIVED]
    return best, chosen


@compiled_part
def _row_is_wanted(m, bank):  # type: ignore[no-untyped-def]
    for place in range(m[at.SIZE + OPENED]):
        if m[_line_at(OPENED, place) + LINE_BANK] == bank:
            return True
    return False


@compiled_part
def _serve(t, m, channel, log, queue, place, command, cycle):  # type: ignore[no-untyped-def]
    """Issue a request's next command; leaving register mode comes first."""
    line = _line_at(queue, place)
    bank, row, column = m[line + LINE_BANK], m[line + LINE_ROW], m[line + LINE_COLUMN]
    if m[at.REGISTER_MODE]:
        return _change_mode(t, m, channel, log, bank, row, cycle)
    _do(t, m, channel, log, command, bank, row, column, cycle)
    if (command == RD or command == WR) and queue != OPENED:
        m[at.ROW_HITS] += 1
    if command == RD:
        give_answer_at(m, cycle + t[at.LATENCY + RD], 0)
    elif command == WR:
        m[at.LAST_WRITE] = max(m[at.LAST_WRITE], cycle + t[at.LATENCY + WR])
    elif command == ACT and queue != OPENED:
        append(m, OPENED, bank, row, column, m[line + LINE_WRITE], m[line + at.ARRIVED])
    if command == RD or command == WR or (command == ACT and queue != OPENED):
        m[at.SIZE + queue] -= 1
        for word in range(line, _line_at(queue, m[at.SIZE + queue])):
            m[word] = m[word + at.LINE_WIDTH]
    return True


@compiled_part
def _change_mode(t, m, channel, log, bank, row, cycle):  # type: ignore[no-untyped-def]
    m[at.REGISTER_MODE] = 1 - m[at.REGISTER_MODE]
    _do(t, m, channel, log, TMOD, bank, row, 0, cycle)
    return True


@compiled_part
def _play(t, m, channel, log, cycle):  # type: ignore[no-untyped-def]
    """Bring the first AiM command forward by one command."""
    first = at.AIM_RING + m[at.AIM_HEAD] * at.AIM_WIDTH
    final, bank, row, column = m[first], m[first + 1], m[first + 2], m[first + 3]
    if final == SYNC:
        give_answer_at(m, cycle, 2)
        _drop_first(m)
        return True
    command = _needed(t, m, final, bank, row)
    if not _is_ready(t, m, command, bank, cycle):
        return False
    if command == PRE and _row_is_wanted(m, bank):
        return False
    registers = _is_of_registers(final)
    if t[at.USES_MODES] and registers != (m[at.REGISTER_MODE] == 1):
        return _change_mode(t, m, channel, log, bank, row, cycle)
    _do(t, m, channel, log, command, bank, row, column, cycle)
    if command != final:
        m[at.ROW_CHANGED] = 1
        return True
    m[at.ROW_HITS] += not registers and m[at.ROW_CHANGED] == 0
    m[at.ROW_CHANGED] = 0
    _drop_first(m)
    if final == RDMAC or final == RDAF:
        give_answer_at(m, cycle + t[at.LATENCY + final], 1)
    else:
        m[at.LAST_WRITE] = max(m[at.LAST_WRITE], cycle + t[at.LATENCY + final])
    return True


@compiled_part
def _is_of_registers(command):  # type: ignore[no-untyped-def]
    return command == WRGB or command == WRBIAS or command == RDMAC or command == RDAF


@compiled_part
def _drop_first(m):  # type: ignore[no-untyped-def]
    m[at.AIM_HEAD] = (m[at.AIM_HEAD] + 1) % at.AIM_PLACES
    m[at.AIM_SIZE] -= 1


@compiled_part
def _needed(t, m, final, bank, row):  # type: ignore[no-untyped-def]
    """What has to come before an AiM command, or itself."""
    if final == MACSB or final == RDCP or final == WRCP:
        open_row = m[OPEN_ROWS + bank]
        return final if open_row == row else (ACT if open_row < 0 else PRE)
    if _is_of_registers(final):
        return final
    closed, right = 0, 0
    for other in range(t[at.BANKS]):
        closed += m[OPEN_ROWS + other] < 0
        right += m[OPEN_ROWS + other] == row
    if right == t[at.BANKS]:
        return final
    if closed == t[at.BANKS] or (t[at.PARTLY_OPEN] and closed + right == t[at.BANKS]):
        return ACT16
    return PREA


@compiled_part
def _do(t, m, channel, log, command, bank, row, column, cycle):  # type: ignore[no-untyped-def]
    """Issue: rules, rows, count, log."""
    if bank >= 0:
        issue(t, m, command, bank, cycle)
    else:
        issue_to_all(t, m, command, 0, t[at.BELOW + command], cycle)
    m[command] += 1
    note(log, command, channel, bank, row, column, cycle)
    if command == ACT or command == PRE:
        m[OPEN_ROWS + bank] = row if command == ACT else -1
    elif command == ACT16 or command == PREA or command == WRBK:
        for other in range(t[at.BANKS]):
            m[OPEN_ROWS + other] = row if command == ACT16 else -1

"""Instructions of an AiM host, played on a machine with the AiM commands; compiled.

The host unit takes one instruction a cycle, in order, and sends its commands to the queues of the channels it names;
it waits while a queue is full and, after SYNC, EOC and reads of registers, until they are done. A channel plays its
AiM commands in order, opening and closing rows as they need, and ordinary reads and writes first ready, first come;
the two kinds do not mix in its queues. Cycles in which nothing can happen are skipped, exactly.
"""

# ruff: noqa: SIM102, SIM109, SIM110  (compiled code: plain comparisons and loops)

import numpy as np
from numba import njit

from nearbank.sim.requests.clocks import Record, clock_fields, issue, ready_cycle, ready_cycle_of_all

COMMANDS = (
    "ACT", "PRE", "ACT16", "PREA", "RD", "WR", "WRBK", "WRGB", "MACSB", "MACAB", "RDMAC", "WRBIAS", "AF", "RDAF",
    "EWMUL", "RDCP", "WRCP", "TMOD", "REFab",
)  # fmt: skip
ACT, PRE, ACT16, PREA, RD, WR, WRBK, WRGB, MACSB, MACAB, RDMAC, WRBIAS, AF, RDAF, EWMUL, RDCP, WRCP, TMOD, REFAB = (
    range(len(COMMANDS))
)
SYNC, NOTHING = len(COMMANDS), len(COMMANDS) + 1  # instructions without a command: wait for all, and nothing at all

MOST_CHANNELS, BANKS = 64, 64
_QUEUE = 64  # at least the places of a queue
PLACES = 33  # of each queue; the AiM simulator's takes one more than it says
_DRAIN_ABOVE, _DRAIN_BELOW = 25, 7  # writes waiting, of 32
FAR = 1 << 60

# An instruction: its command, how often (columns from 0 on), channels as bits, bank and row (-1 none).
COMMAND, COUNT, CHANNELS, BANK, ROW = range(5)
# The command log
LOG_CYCLE, LOG_CHANNEL, LOG_COMMAND, LOG_BANK, LOG_ROW, LOG_COLUMN = range(6)

READS, WRITES, OPENED = 0, 1, 2  # queues of ordinary requests; OPENED: a row was opened for them

AIM_STATE = np.dtype(
    [
        *clock_fields(len(COMMANDS), BANKS),
        ("banks", np.int64),
        ("below", np.int64, (len(COMMANDS),)),  # banks the command's rules look at: 1 if only the channel's count
        ("latency", np.int64, (len(COMMANDS),)),
        ("refresh_interval", np.int64),
        ("next_refresh", np.int64),
        ("refreshing", np.int64),
        ("forwards", np.int64),  # a waiting write answers any read
        ("partly_open", np.int64),  # ACT16 may open banks beside open ones
        ("columns", np.int64),  # of a row; longer instructions go on in the next row. 0: rows have no end
        ("open_row", np.int64, (BANKS,)),
        ("register_mode", np.int64),
        ("uses_modes", np.int64),
        ("aim", np.int64, (_QUEUE, 4)),  # a ring: command, bank, row, column
        ("aim_head", np.int64),
        ("aim_size", np.int64),
        ("line", np.int64, (3, _QUEUE + BANKS, 4)),  # ordinary requests by age: bank, row, column, write
        ("arrived", np.int64, (3, _QUEUE + BANKS)),
        ("size", np.int64, (3,)),
        ("draining", np.int64),
        ("answers", np.int64, (1 << 12, 2)),  # a ring: cycle, and 1 host waits, 2 it waits for the writes too
        ("answer_head", np.int64),
        ("answer_size", np.int64),
        ("last_write", np.int64),
        ("unsent", np.int64),  # commands of the current instruction that found no place
        ("wake", np.int64),
        ("counts", np.int64, (len(COMMANDS),)),
        ("row_hits", np.int64),
        ("row_changed", np.int64),  # the first AiM command had to open or close a row
    ]
)

# What the host unit is doing, and results
AT, SENT, STALLED, CYCLE, LOGGED = range(5)


@njit(cache=True)
def run_aim(states, program, host, log):  # type: ignore[no-untyped-def]
    """Play the instructions; host[CYCLE] is the cycle after the last one is done. Returns False on a dead end."""
    for channel in range(len(states)):
        states[channel].wake = FAR
        states[channel].next_refresh = states[channel].refresh_interval if states[channel].refresh_interval else FAR
    cycle = 0
    while host[AT] < len(program):
        _host(states, program, host, cycle)
        moved = False
        for channel in range(len(states)):
            state = states[channel]
            if state.wake <= cycle + 1 or state.next_refresh <= cycle + 1:
                moved |= _tick(state, channel, host, log, cycle + 1)
        host[CYCLE] = cycle + 1
        cycle = cycle + 1 if moved or _host_can_move(states, host) else _next_cycle(states, cycle)
        if cycle >= FAR:
            return False
    return True


@njit(cache=True)
def _host_can_move(states, host):  # type: ignore[no-untyped-def]
    if host[STALLED]:
        return False
    for channel in range(len(states)):
        if states[channel].unsent:
            return False
    return True


@njit(cache=True)
def _next_cycle(states, cycle):  # type: ignore[no-untyped-def]
    soonest = FAR
    for channel in range(len(states)):
        soonest = min(soonest, states[channel].wake, states[channel].next_refresh)
    return max(cycle + 1, soonest - 1) if soonest < FAR else FAR


@njit(cache=True)
def _host(states, program, host, cycle):  # type: ignore[no-untyped-def]
    """One cycle of the host unit: send what is left over, else decode the next instruction."""
    had, has = False, False
    for channel in range(len(states)):
        if states[channel].unsent:
            had = True
            has |= not _send(states[channel], program[host[AT]], cycle)
    if host[STALLED] or has:
        return
    if not had:
        if not _decode(states, program[host[AT]], host, cycle):
            return
    host[AT] += 1


@njit(cache=True)
def _decode(states, instruction, host, cycle):  # type: ignore[no-untyped-def]
    """Send an instruction's commands; whether it is over with that."""
    command = instruction[COMMAND]
    if command == NOTHING:
        return True
    waits = command == SYNC or command == RDMAC or command == RDAF
    sent = True
    for channel in range(len(states)):
        if not (instruction[CHANNELS] >> channel) & 1:
            continue
        states[channel].unsent = instruction[COUNT]
        if waits:
            host[STALLED] += instruction[COUNT]
        sent &= _send(states[channel], instruction, cycle)
    return sent and not waits


@njit(cache=True)
def _send(state, instruction, cycle):  # type: ignore[no-untyped-def]
    """Send a channel its share of the instruction as far as there is room; whether all of it went."""
    while state.unsent:
        column, row = instruction[COUNT] - state.unsent, instruction[ROW]
        if state.columns:
            row, column = row + (column // state.columns if row >= 0 else 0), column % state.columns
        if not _accept(state, instruction[COMMAND], instruction[BANK], row, column, cycle):
            return False
        state.unsent -= 1
        state.wake = min(state.wake, cycle + 1)
    return True


@njit(cache=True)
def _accept(state, command, bank, row, column, cycle):  # type: ignore[no-untyped-def]
    if command != RD and command != WR:
        if state.size[READS] or state.size[WRITES] or state.aim_size >= PLACES:
            return False
        at = (state.aim_head + state.aim_size) % _QUEUE
        state.aim[at, 0], state.aim[at, 1], state.aim[at, 2], state.aim[at, 3] = command, bank, row, column
        state.aim_size += 1
        return True
    if state.aim_size:
        return False
    if command == RD and state.forwards and state.size[WRITES]:
        _answer_at(state, cycle + 1, 0)
        return True
    queue = WRITES if command == WR else READS
    if state.size[queue] >= PLACES:
        return False
    _append(state, queue, bank, row, column, command == WR, cycle)
    return True


@njit(cache=True)
def _append(state, queue, bank, row, column, write, cycle):  # type: ignore[no-untyped-def]
    at = state.size[queue]
    state.line[queue, at, 0], state.line[queue, at, 1] = bank, row
    state.line[queue, at, 2], state.line[queue, at, 3] = column, write
    state.arrived[queue, at] = cycle
    state.size[queue] += 1


@njit(cache=True)
def _answer_at(state, cycle, kind):  # type: ignore[no-untyped-def]
    at = (state.answer_head + state.answer_size) % len(state.answers)
    state.answers[at, 0], state.answers[at, 1] = cycle, kind
    state.answer_size += 1


@njit(cache=True)
def _tick(state, channel, host, log, cycle):  # type: ignore[no-untyped-def]
    """One cycle of a channel; whether the host may go on because of it."""
    answered = _give_answer(state, host, cycle)
    state.wake = FAR
    if state.answer_size:
        due = state.answers[state.answer_head, 0]
        if state.answers[state.answer_head, 1] == 2:
            due = max(due, state.last_write + 1)
        state.wake = max(due, cycle + 1)
    issued = _issue_one(state, channel, host, log, cycle)
    if issued:
        state.wake = cycle + 1
    return answered or issued


@njit(cache=True)
def _give_answer(state, host, cycle):  # type: ignore[no-untyped-def]
    """The oldest answer, if it is there; SYNC and EOC stand behind all writes. One a cycle."""
    if state.answer_size == 0 or state.answers[state.answer_head, 0] > cycle:
        return False
    kind = state.answers[state.answer_head, 1]
    if kind == 2 and state.last_write >= cycle:
        return False
    state.answer_head = (state.answer_head + 1) % len(state.answers)
    state.answer_size -= 1
    if kind:
        host[STALLED] -= 1
        if host[STALLED] == 0:
            host[AT] += 1
    return kind > 0


@njit(cache=True)
def _issue_one(state, channel, host, log, cycle):  # type: ignore[no-untyped-def]
    """Issue one command, if any is ready: of requests with an opened row, refresh, AiM, other requests."""
    if cycle >= state.next_refresh:
        state.next_refresh += state.refresh_interval
        state.refreshing += 1
    if state.size[OPENED]:
        place, command = _first_ready(state, OPENED, cycle)
        if place >= 0:
            return _serve(state, channel, host, log, OPENED, place, command, cycle)
    if state.refreshing:
        return _refresh(state, channel, host, log, cycle)
    if state.aim_size:
        return _play(state, channel, host, log, cycle)
    queue = _queue_to_serve(state)
    place, command = _first_ready(state, queue, cycle)
    if place < 0 or (command == PRE and _row_is_wanted(state, state.line[queue, place, 0])):
        return False
    return _serve(state, channel, host, log, queue, place, command, cycle)


@njit(cache=True)
def _refresh(state, channel, host, log, cycle):  # type: ignore[no-untyped-def]
    command = REFAB
    for bank in range(state.banks):
        if state.open_row[bank] >= 0:
            command = PREA
    if not _is_ready(state, command, -1, cycle):
        return False
    _do(state, channel, host, log, command, -1, -1, 0, cycle)
    state.refreshing -= command == REFAB
    return True


@njit(cache=True)
def _is_ready(state, command, bank, cycle):  # type: ignore[no-untyped-def]
    """Whether the rules allow the command now; if not, notes when they will."""
    if bank >= 0 or state.below[command] == 1:
        when = ready_cycle(state, command, max(bank, 0))
    else:
        when = ready_cycle_of_all(state, command, 0, state.banks)
    if when > cycle:
        state.wake = min(state.wake, when)
    return when <= cycle


@njit(cache=True)
def _queue_to_serve(state):  # type: ignore[no-untyped-def]
    if state.draining:
        if state.size[WRITES] < _DRAIN_BELOW and state.size[READS]:
            state.draining = 0
    elif state.size[WRITES] > _DRAIN_ABOVE or state.size[READS] == 0:
        state.draining = 1
    return WRITES if state.draining else READS


@njit(cache=True)
def _first_ready(state, queue, cycle):  # type: ignore[no-untyped-def]
    """The oldest request whose next command is ready, and that command; -1 if none."""
    best, chosen = -1, 0
    for place in range(state.size[queue]):
        bank = state.line[queue, place, 0]
        row = state.open_row[bank]
        command = ACT if row < 0 else PRE
        if row == state.line[queue, place, 1]:
            command = WR if state.line[queue, place, 3] else RD
        if best >= 0 and state.arrived[queue, place] >= state.arrived[queue, best]:
            continue
        if _is_ready(state, command, bank, cycle):
            best, chosen = place, command
    return best, chosen


@njit(cache=True)
def _row_is_wanted(state, bank):  # type: ignore[no-untyped-def]
    for place in range(state.size[OPENED]):
        if state.line[OPENED, place, 0] == bank:
            return True
    return False


@njit(cache=True)
def _serve(state, channel, host, log, queue, place, command, cycle):  # type: ignore[no-untyped-def]
    """Issue a request's next command; leaving register mode comes first."""
    if state.register_mode:
        return _change_mode(state, channel, host, log, state.line[queue, place, 0], state.line[queue, place, 1], cycle)
    bank, row, column = state.line[queue, place, 0], state.line[queue, place, 1], state.line[queue, place, 2]
    _do(state, channel, host, log, command, bank, row, column, cycle)
    if (command == RD or command == WR) and queue != OPENED:
        state.row_hits += 1
    if command == RD:
        _answer_at(state, cycle + state.latency[RD], 0)
    elif command == WR:
        state.last_write = max(state.last_write, cycle + state.latency[WR])
    elif command == ACT and queue != OPENED:
        _append(state, OPENED, bank, row, column, state.line[queue, place, 3], state.arrived[queue, place])
    if command == RD or command == WR or (command == ACT and queue != OPENED):
        for at in range(place, state.size[queue] - 1):
            state.line[queue, at] = state.line[queue, at + 1]
            state.arrived[queue, at] = state.arrived[queue, at + 1]
        state.size[queue] -= 1
    return True


@njit(cache=True)
def _change_mode(state, channel, host, log, bank, row, cycle):  # type: ignore[no-untyped-def]
    state.register_mode = 1 - state.register_mode
    _do(state, channel, host, log, TMOD, bank, row, 0, cycle)
    return True


@njit(cache=True)
def _play(state, channel, host, log, cycle):  # type: ignore[no-untyped-def]
    """Bring the first AiM command forward by one command."""
    final, bank, row, column = state.aim[state.aim_head]
    if final == SYNC:
        _answer_at(state, cycle, 2)
        _drop_first(state)
        return True
    command = _needed(state, final, bank, row)
    if not _is_ready(state, command, bank, cycle):
        return False
    if command == PRE and _row_is_wanted(state, bank):
        return False
    registers = final == WRGB or final == WRBIAS or final == RDMAC or final == RDAF
    if state.uses_modes and registers != (state.register_mode == 1):
        return _change_mode(state, channel, host, log, bank, row, cycle)
    _do(state, channel, host, log, command, bank, row, column, cycle)
    if command != final:
        state.row_changed = 1
    else:
        state.row_hits += not registers and state.row_changed == 0
        state.row_changed = 0
        _drop_first(state)
        if final == RDMAC or final == RDAF:
            _answer_at(state, cycle + state.latency[final], 1)
        else:
            state.last_write = max(state.last_write, cycle + state.latency[final])
    return True


@njit(cache=True)
def _drop_first(state):  # type: ignore[no-untyped-def]
    state.aim_head = (state.aim_head + 1) % _QUEUE
    state.aim_size -= 1


@njit(cache=True)
def _needed(state, final, bank, row):  # type: ignore[no-untyped-def]
    """What has to come before an AiM command, or itself."""
    if final == MACSB or final == RDCP or final == WRCP:
        open_row = state.open_row[bank]
        return final if open_row == row else (ACT if open_row < 0 else PRE)
    if final == WRGB or final == WRBIAS or final == RDMAC or final == RDAF:
        return final
    closed, right = 0, 0
    for at in range(state.banks):
        closed += state.open_row[at] < 0
        right += state.open_row[at] == row
    if right == state.banks:
        return final
    if closed == state.banks or (state.partly_open and closed + right == state.banks):
        return ACT16
    return PREA


@njit(cache=True)
def _do(state, channel, host, log, command, bank, row, column, cycle):  # type: ignore[no-untyped-def]
    """Issue: rules, rows, count, log."""
    if bank >= 0:
        issue(state, command, bank, 1, cycle)
    else:
        issue(state, command, 0, state.below[command], cycle)
    state.counts[command] += 1
    if host[LOGGED] < log.shape[1]:
        at = host[LOGGED]
        log[LOG_CYCLE, at], log[LOG_CHANNEL, at], log[LOG_COMMAND, at] = cycle, channel, command
        log[LOG_BANK, at], log[LOG_ROW, at], log[LOG_COLUMN, at] = bank, row, column
    host[LOGGED] += 1
    if command == ACT or command == PRE:
        state.open_row[bank] = row if command == ACT else -1
    elif command == ACT16 or command == PREA or command == WRBK:
        for at in range(state.banks):
            state.open_row[at] = row if command == ACT16 else -1


def new_aim_states(channels: int) -> Record:
    """Empty states, one a channel: rows closed, queues empty. Clocks and the machine's numbers are the caller's."""
    states = np.zeros(channels, AIM_STATE)
    states["open_row"] = -1
    return states

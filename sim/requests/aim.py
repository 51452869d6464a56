"""The host unit of AiM and the run of its instructions, compiled; the channels are `aim_channel`.

The host unit takes one instruction a cycle, in order, and sends its commands to the queues of the channels it names;
it waits while a queue is full and, after SYNC, EOC and reads of registers, until they are done. Cycles in which nothing
can happen are skipped, exactly.
"""

# ruff: noqa: SIM110  (compiled code: plain comparisons and loops)

import numpy as np

from nearbank.compiled import compiled, compiled_part
from nearbank.sim.pointers import pointer
from nearbank.sim.requests import aim_state as at
from nearbank.sim.requests.aim_channel import append, give_answer_at, tick
from nearbank.sim.requests.aim_state import FAR, READS, WRITES


@compiled
def run_aim(tables, memory, program, host, issued):  # type: ignore[no-untyped-def]
    """Play the instructions; host[CYCLE] is the cycle after the last one is done. Returns False on a dead end."""
    t, log, p = pointer(tables, 0), pointer(issued, 0), pointer(program, 0)
    for channel in range(len(memory)):
        m = pointer(memory, channel)
        m[at.WAKE] = FAR
        m[at.NEXT_REFRESH] = t[at.REFRESH_INTERVAL] if t[at.REFRESH_INTERVAL] else FAR
    cycle = np.int64(0)
    while host[at.AT] < len(program):
        _host(t, memory, p, host, cycle)
        moved = False
        for channel in range(len(memory)):
            m = pointer(memory, channel)
            if min(m[at.WAKE], m[at.NEXT_REFRESH]) <= cycle + 1:
                moved |= tick(t, m, channel, host, log, cycle + 1)
        host[at.CYCLE] = cycle + 1
        cycle = cycle + 1 if moved or _host_can_move(memory, host) else _next_cycle(memory, cycle)
        if cycle >= FAR:
            return False
    return True


@compiled_part
def _host_can_move(memory, host):  # type: ignore[no-untyped-def]
    if host[at.STALLED]:
        return False
    for channel in range(len(memory)):
        if pointer(memory, channel)[at.UNSENT]:
            return False
    return True


@compiled_part
def _next_cycle(memory, cycle):  # type: ignore[no-untyped-def]
    soonest = FAR
    for channel in range(len(memory)):
        m = pointer(memory, channel)
        soonest = min(soonest, m[at.WAKE], m[at.NEXT_REFRESH])
    return max(cycle + 1, soonest - 1) if soonest < FAR else FAR


@compiled_part
def _host(t, memory, p, host, cycle):  # type: ignore[no-untyped-def]
    """One cycle of the host unit: send what is left over, else decode the next instruction."""
    had, has = False, False
    instruction = host[at.AT] * at.INSTRUCTION_WIDTH
    for channel in range(len(memory)):
        m = pointer(memory, channel)
        if m[at.UNSENT]:
            had = True
            has |= not _send(t, m, p, instruction, cycle)
    if host[at.STALLED] or has:
        return
    if had or _decode(t, memory, p, instruction, host, cycle):
        host[at.AT] += 1


@compiled_part
def _decode(t, memory, p, instruction, host, cycle):  # type: ignore[no-untyped-def]
    """Send an instruction's commands; whether it is over with that."""
    command, count = p[instruction + at.COMMAND], p[instruction + at.COUNT]
    if command == at.NOTHING:
        return True
    waits = command == at.SYNC or command == at.RDMAC or command == at.RDAF
    sent = True
    for channel in range(len(memory)):
        if not (p[instruction + at.CHANNELS] >> channel) & 1:
            continue
        m = pointer(memory, channel)
        m[at.UNSENT] = count
        if waits:
            host[at.STALLED] += count
        sent &= _send(t, m, p, instruction, cycle)
    return sent and not waits


@compiled_part
def _send(t, m, p, instruction, cycle):  # type: ignore[no-untyped-def]
    """Send a channel its share of the instruction as far as there is room; whether all of it went."""
    while m[at.UNSENT]:
        column, row = p[instruction + at.COUNT] - m[at.UNSENT], p[instruction + at.ROW]
        if t[at.ROW_COLUMNS]:
            row += column // t[at.ROW_COLUMNS] if row >= 0 else 0
            column %= t[at.ROW_COLUMNS]
        if not _accept(t, m, p[instruction + at.COMMAND], p[instruction + at.BANK], row, column, cycle):
            return False
        m[at.UNSENT] -= 1
        m[at.WAKE] = min(m[at.WAKE], cycle + 1)
    return True


@compiled_part
def _accept(t, m, command, bank, row, column, cycle):  # type: ignore[no-untyped-def]
    """Queue one command, if there is room; AiM commands and ordinary requests do not mix."""
    if command != at.RD and command != at.WR:
        if m[at.SIZE + READS] or m[at.SIZE + WRITES] or m[at.AIM_SIZE] >= at.PLACES:
            return False
        place = at.AIM_RING + (m[at.AIM_HEAD] + m[at.AIM_SIZE]) % at.AIM_PLACES * at.AIM_WIDTH
        m[place] = command
        m[place + 1] = bank
        m[place + 2] = row
        m[place + 3] = column
        m[at.AIM_SIZE] += 1
        return True
    if m[at.AIM_SIZE]:
        return False
    if command == at.RD and t[at.FORWARDS] and m[at.SIZE + WRITES]:
        give_answer_at(m, cycle + 1, 0)
        return True
    queue = WRITES if command == at.WR else READS
    if m[at.SIZE + queue] >= at.PLACES:
        return False
    append(m, queue, bank, row, column, command == at.WR, cycle)
    return True

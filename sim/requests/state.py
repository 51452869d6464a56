"""What both compiled schedulers share: requests, banks, counters and the command log."""

# ruff: noqa: SIM109  (compiled code: plain comparisons and loops)

import numpy as np
from numba import njit

from nearbank.sim.requests.clocks import (
    ACT,
    ACT2,
    COMMANDS,
    MOST_BANKS,
    PRE,
    PREA,
    RDA,
    WRA,
    issue,
)

FAR = 1 << 60  # a cycle that never comes

# Counters, after those of the commands
HITS, MISSES, CONFLICTS, READ_CYCLES, READS_DONE, WRITES_DONE, LAST_ACCEPTED, LAST_DONE = range(
    len(COMMANDS), len(COMMANDS) + 8
)
COUNTERS = len(COMMANDS) + 8

# Requests are an array [field, request]: BLOCK identifies the address, ARRIVAL is the earliest cycle.
CHANNEL, BANK, ROW, COLUMN, BLOCK, WRITE, ARRIVAL = range(7)

# The command log is an array [field, command] that is filled as far as it reaches; its last column holds the count.
LOG_CYCLE, LOG_CHANNEL, LOG_COMMAND, LOG_BANK, LOG_ROW, LOG_COLUMN = range(6)

# Per bank: the open row (-1 closed), column accesses since it opened, the cycle of the last one.
BANK_FIELDS = [
    ("open_row", np.int64, (MOST_BANKS,)),
    ("used", np.int64, (MOST_BANKS,)),
    ("touched", np.int64, (MOST_BANKS,)),
    ("counters", np.int64, (COUNTERS,)),
]


@njit(cache=True)
def do_command(state, log, command, channel, first_bank, count, row, column, cycle):  # type: ignore[no-untyped-def]
    """Issue a command: timing, row state, count and log."""
    issue(state, command, first_bank, count, cycle)
    state.counters[command] += 1
    at, places = log[0, -1], log.shape[1] - 1
    if at < places:
        log[LOG_CYCLE, at], log[LOG_CHANNEL, at], log[LOG_COMMAND, at] = cycle, channel, command
        log[LOG_BANK, at], log[LOG_ROW, at], log[LOG_COLUMN, at] = first_bank, row, column
    log[0, places] += 1
    for bank in range(first_bank, first_bank + count):
        if command == ACT or command == ACT2:
            state.open_row[bank], state.used[bank], state.touched[bank] = row, 0, cycle
        elif command == PRE or command == PREA or command == RDA or command == WRA:
            state.open_row[bank], state.used[bank] = -1, 0
        else:
            state.used[bank] += 1
            state.touched[bank] = cycle

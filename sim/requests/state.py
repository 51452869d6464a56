"""What both compiled schedulers share: commands, requests, banks, counters and the command log.

`q` holds the requests, `m` a channel's memory (counters, the scheduler's scalars, a record a bank, the rest), `log`
the issued commands. All are flat arrays of int64.
"""

# ruff: noqa: SIM109  (compiled code: plain comparisons and loops)

from nearbank.compiled import compiled_part
from nearbank.sim.requests.timing import MOST_BANKS, issue, issue_to_all

# Order of commands in every table. A standard without one of them leaves its place empty.
COMMANDS = ("ACT", "PRE", "PREA", "RD", "WR", "RDA", "WRA", "REFab", "REFpb", "ACT2", "CASRD", "CASWR")
ACT, PRE, PREA, RD, WR, RDA, WRA, REFAB, REFPB, ACT2, CASRD, CASWR = range(len(COMMANDS))

FAR = 1 << 60  # a cycle that never comes

# q: a request. BLOCK identifies the address, ARRIVAL is the earliest cycle; schedulers may use what is theirs.
CHANNEL, BANK, ROW, COLUMN, BLOCK, WRITE, ARRIVAL, MERGED, REQUEST_WIDTH = range(9)

# log: how many commands there were and how many have a place; then a row each
LOG_COUNT, LOG_PLACES = range(2)
LOG_CYCLE, LOG_CHANNEL, LOG_COMMAND, LOG_BANK, LOG_ROW, LOG_COLUMN, LOG_WIDTH = range(7)

# m: counters, after those of the commands; then scalars of the scheduler; then banks
HITS, MISSES, CONFLICTS, READ_CYCLES, READS_DONE, WRITES_DONE, LAST_ACCEPTED, LAST_DONE = range(
    len(COMMANDS), len(COMMANDS) + 8
)
COUNTERS = len(COMMANDS) + 8
SCALARS = 24
BANKS_AT, BANK_WIDTH = 64, 24
AFTER_BANKS = BANKS_AT + MOST_BANKS * BANK_WIDTH

# A bank: the open row (-1 closed), column accesses since it opened, the cycle of the last one; then a scheduler's own
OPEN_ROW, USED, TOUCHED, BANK_FIELDS = range(4)

ANSWERED, QUEUED = 1, 2  # what happened to a request that was taken


@compiled_part
def bank_at(bank):  # type: ignore[no-untyped-def]
    """Where the bank's record is in `m`."""
    return BANKS_AT + bank * BANK_WIDTH


@compiled_part
def do_command(t, m, log, command, channel, bank, row, column, cycle):  # type: ignore[no-untyped-def]
    """Issue a command to one bank: timing, row state, count and log."""
    issue(t, m, command, bank, cycle)
    m[command] += 1
    note(log, command, channel, bank, row, column, cycle)
    _move_row(m, command, bank, row, cycle)


@compiled_part
def do_to_all(t, m, log, command, channel, first_bank, count, cycle):  # type: ignore[no-untyped-def]
    """Issue a command without a row to a range of banks."""
    issue_to_all(t, m, command, first_bank, count, cycle)
    m[command] += 1
    note(log, command, channel, first_bank, -1, -1, cycle)
    for bank in range(first_bank, first_bank + count):
        _move_row(m, command, bank, -1, cycle)


@compiled_part
def note(log, command, channel, bank, row, column, cycle):  # type: ignore[no-untyped-def]
    log[LOG_COUNT] += 1
    if log[LOG_COUNT] <= log[LOG_PLACES]:
        at = log[LOG_COUNT] * LOG_WIDTH
        log[at + LOG_CYCLE] = cycle
        log[at + LOG_CHANNEL] = channel
        log[at + LOG_COMMAND] = command
        log[at + LOG_BANK] = bank
        log[at + LOG_ROW] = row
        log[at + LOG_COLUMN] = column


@compiled_part
def _move_row(m, command, bank, row, cycle):  # type: ignore[no-untyped-def]
    b = bank_at(bank)
    if command == ACT or command == ACT2:
        m[b + OPEN_ROW] = row
        m[b + USED] = 0
        m[b + TOUCHED] = cycle
    elif command == PRE or command == PREA or command == RDA or command == WRA:
        m[b + OPEN_ROW] = -1
        m[b + USED] = 0
    else:
        m[b + USED] += 1
        m[b + TOUCHED] = cycle


@compiled_part
def answer(m, write, cycle, latency):  # type: ignore[no-untyped-def]
    """The front end hears of the end of a request."""
    if write:
        m[WRITES_DONE] += 1
    else:
        m[READS_DONE] += 1
        m[READ_CYCLES] += latency
    m[LAST_DONE] = max(m[LAST_DONE], cycle)

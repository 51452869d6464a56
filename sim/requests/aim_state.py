"""What the players of AiM instructions share: commands, instructions, where things lie; compiled code reads it.

`t` are the tables, `m` one channel's memory, `host` the host unit, `program` the instructions: flat arrays of int64.
"""

from nearbank.sim.requests.timing import MOST_COMMANDS

COMMANDS = (
    "ACT", "PRE", "ACT16", "PREA", "RD", "WR", "WRBK", "WRGB", "MACSB", "MACAB", "RDMAC", "WRBIAS", "AF", "RDAF",
    "EWMUL", "RDCP", "WRCP", "TMOD", "REFab",
)  # fmt: skip
ACT, PRE, ACT16, PREA, RD, WR, WRBK, WRGB, MACSB, MACAB, RDMAC, WRBIAS, AF, RDAF, EWMUL, RDCP, WRCP, TMOD, REFAB = (
    range(len(COMMANDS))
)
SYNC, NOTHING = len(COMMANDS), len(COMMANDS) + 1  # instructions without a command: wait for all, and nothing at all

MOST_CHANNELS, MOST_BANKS = 62, 64
FAR = 1 << 60
PLACES = 33  # of each queue; the AiM simulator's takes one more than it says
DRAIN_ABOVE, DRAIN_BELOW = 25, 7  # writes waiting, of 32

# An instruction: its command, how often (columns from 0 on), channels as bits, bank and row (-1 none).
COMMAND, COUNT, CHANNELS, BANK, ROW, INSTRUCTION_WIDTH = range(6)

# What the host unit is doing, and results
AT, STALLED, CYCLE, HOST_SIZE = range(4)

# t: the machine in numbers. With FORWARDS a waiting write answers any read; with PARTLY_OPEN ACT16 may open banks
# beside open ones; longer instructions than COLUMNS go on in the next row (0: rows have no end). Then by command: its
# latency, and the banks its rules look at, 1 if only the channel counts.
SETUP = ("banks", "refresh_interval", "forwards", "partly_open", "columns", "uses_modes")
BANKS, REFRESH_INTERVAL, FORWARDS, PARTLY_OPEN, ROW_COLUMNS, USES_MODES = range(len(SETUP))
LATENCY = 8
BELOW = LATENCY + MOST_COMMANDS

# m: counts of the commands, scalars. ROW_CHANGED: the first AiM command had to open or close a row; UNSENT: commands of
# the current instruction that found no place
(
    NEXT_REFRESH, REFRESHING, REGISTER_MODE, AIM_HEAD, AIM_SIZE, SIZE, _, _, DRAINING,
    ANSWER_HEAD, ANSWER_SIZE, LAST_WRITE, UNSENT, WAKE, ROW_HITS, ROW_CHANGED,
) = range(MOST_COMMANDS, MOST_COMMANDS + 16)  # fmt: skip
OPEN_ROWS = 64  # by bank, -1 closed

# m: a ring of AiM commands: command, bank, row, column
AIM_RING, AIM_PLACES, AIM_WIDTH = OPEN_ROWS + MOST_BANKS, 64, 4

# m: ordinary requests by age in three queues; OPENED: a row was opened for them
READS, WRITES, OPENED = 0, 1, 2
LINES, LINE_PLACES = AIM_RING + AIM_PLACES * AIM_WIDTH, 128
LINE_BANK, LINE_ROW, LINE_COLUMN, LINE_WRITE, ARRIVED, LINE_WIDTH = range(6)

# m: a ring of answers: cycle, and 1 if the host waits for it, 2 if it waits for the writes too
ANSWERS, ANSWER_PLACES = LINES + 3 * LINE_PLACES * LINE_WIDTH, 1 << 12
AIM_MEMORY = ANSWERS + 2 * ANSWER_PLACES  # the clocks' nodes follow

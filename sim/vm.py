"""What lies where in the integers that the engine's compiled code works on.

Everything is int64, and everything of one kind lies in one flat array, which keeps the compiled code small: `t` the
tables, `m` one lane's memory (a row of `memory`; a lane stands for a group of identical channels), `g` what all lanes
share, `code` a program's rows, `kept` what stretches did, `record` issued commands. `sim.engine` fills them, the
compiled code in `sim/lanes` plays them.
"""

# --- code rows -----------------------------------------------------------------------------------------------------
COMMAND, LOOP, END, START, WAIT, MARK, HALT = range(7)
OP, A, B, C, DEPTH, MEETS, MOVES_ROWS, HAS_BANK, HAS_ROW = range(9)
BANK, ROW, COLUMN = 9, 10, 11
MAX_DEPTH = 9
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
MANY_REFRESHES = 200  # in a row without a command in between, and nothing else to wait for

# A loop's memory of the end of its last round: these, then ages of last issues, open rows, counters. BEGAN is when the
# round began, kept by the first lane for loops in which lanes meet.
(S_STORED, S_NOW, S_GAP, S_DUE, S_OPEN, S_TOUCHED, S_UNIT, S_LABEL, S_BEGAN, S_SIZE) = range(10)

# A stretch's key, followed by rows of open banks and ages of the last issues that its commands look at; PHASE is how
# soon the refresh was due, where one came. Then what it did, followed by open rows, last issues and counters.
(K_STRETCH, K_PHASE, K_REGION, K_OPEN, K_TOUCHED, K_SIZE) = range(6)
(D_CYCLES, D_DUE, D_REGION, D_OPEN, D_TOUCHED, D_SAME_ROW, D_SIZE) = range(7)
ANY_PHASE, UNCHANGED = -1, 1 << 60

# A record's rows: cycle, command, bank, row, column, slot; the first one is its window, first and last cycle.
RECORD_WIDTH = 6

# --- g: [0] jobs and [1] labels it has room for, time of the last mark, label; then units, jobs (time, count), labels,
# and the same again per loop depth
(G_JOBS, G_LABELS, G_MARKED, G_LABEL, G_UNITS) = range(5)
G_BUSY = G_UNITS + MAX_UNITS

# A passage in `through`, and what is being played of it: see `nearbank.sim.passages` and `sim/lanes/passage.py`
P_NUMBER, P_ROOM, P_STRIDES, P_ENDS = 0, 1, 2, 2 + MAX_DEPTH
PP_AT, PP_ENTRY, PP_ORIGIN, PP_BEGAN, PP_LANES, PP_SIZE = range(6)
# What is kept of passages: three rooms, where each begins and for how many there is room, then room for a key, then a
# key and what was done of each. A passage that is alike in all lanes is kept for one of them, in a room of its own if
# the last program had it too; all others are kept for every lane. A key: its number, label and units, then of every
# lane these, ages of last issues, open rows
NEW_PASSAGE, OLD_PASSAGE, JOINT_PASSAGE, PASSAGE_ROOMS = range(4)
P_KEY = 2 * PASSAGE_ROOMS
PK_NUMBER, PK_LABEL, PK_UNITS, PK_SHARED = 0, 1, 2, 2 + MAX_UNITS
(PK_PREVIOUS, PK_NOW, PK_UNIT, PK_DUE, PK_REGION, PK_OPEN, PK_TOUCHED, PK_SIZE) = range(8)
# What was done: these, jobs and labels; then of every lane these, counters, last issues, open rows
PD_CYCLES, PD_LABEL, PD_UNITS, PD_BUSY = 0, 1, 2, 2 + MAX_UNITS
(PD_PREVIOUS, PD_FLOOR, PD_UNIT, PD_DUE, PD_REGION, PD_OPEN, PD_TOUCHED, PD_SAME_ROW, PD_STORED) = range(9)
PD_SIZE = PD_STORED + MAX_DEPTH

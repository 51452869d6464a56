"""When a channel's rules allow each command next, compiled.

Scopes are nodes of a tree: the channel, its pseudo-channels, their ranks, bank groups and banks. Each node holds, for
every command, the first cycle at which its rules allow it; issuing a command pushes those cycles on.

Everything is int64 in flat arrays: `t` the tables, the same for all channels, and `m` one channel's memory. The
constants below say what lies where; `clocks` fills it.
"""

from nearbank.compiled import compiled_part

# --- t: the scheduler's own numbers come first
SETUP_SIZE = 64
MOST_COMMANDS, LEVELS, MOST_RULES = 24, 5, 1024
USED_LEVELS, HAS_ROOT = SETUP_SIZE, SETUP_SIZE + 1  # HAS_ROOT: the first level is one node
FIRST = HAS_ROOT + 1  # where each command's rules begin in t (and the last one's end)
SPECIAL = FIRST + MOST_COMMANDS + 1  # where, among them, those begin that need more than their level and delay
RULES = SPECIAL + MOST_COMMANDS
RULE_WIDTH = 8
# A rule delays command LATER at the node of LEVEL. With RING >= 0 it counts from the WINDOW-th last issue, which rules
# with KEEP note; OTHERS means the node's siblings.
LEVEL, LATER, DELAY, OTHERS, RING, WINDOW, KEEP = range(7)
# For each bank, those of its 64 in a row that have another node on the first level, as bits
ELSEWHERE, MOST_BANKS = RULES + MOST_RULES * RULE_WIDTH, 512
PATH = ELSEWHERE + MOST_BANKS  # the nodes above each bank, as places in m

# --- m: a node
SIBLINGS = 7
RINGS, RING_WIDTH = 4, 9  # the slot to be used next, then the slots
NODE_RINGS = SIBLINGS
NODE_READY = 48  # by command; a cache line begins here
NODE_WIDTH = NODE_READY + MOST_COMMANDS


@compiled_part
def ready_cycle(t, m, command, bank):  # type: ignore[no-untyped-def]
    """The first cycle at which every node above `bank` allows `command`."""
    earliest = 0
    path = PATH + bank * LEVELS
    for level in range(path, path + t[USED_LEVELS]):
        earliest = max(earliest, m[t[level] + NODE_READY + command])
    return earliest


@compiled_part
def ready_cycle_anywhere(t, m, command):  # type: ignore[no-untyped-def]
    """A cycle before which no bank allows `command`: that of the node above all, if there is one."""
    return m[t[PATH] + NODE_READY + command] if t[HAS_ROOT] else 0


@compiled_part
def ready_cycle_of_all(t, m, command, first_bank, banks):  # type: ignore[no-untyped-def]
    """The first cycle at which every bank of a range allows `command`."""
    earliest = 0
    for bank in range(first_bank, first_bank + banks):
        earliest = max(earliest, ready_cycle(t, m, command, bank))
    return earliest


@compiled_part
def issue(t, m, command, bank, cycle):  # type: ignore[no-untyped-def]
    """Note that `command` issues at `cycle` to one bank."""
    path = PATH + bank * LEVELS
    special = t[SPECIAL + command]
    for rule in range(t[FIRST + command], special, RULE_WIDTH):
        at = t[path + t[rule + LEVEL]] + NODE_READY + t[rule + LATER]
        m[at] = max(m[at], cycle + t[rule + DELAY])
    for rule in range(special, t[FIRST + command + 1], RULE_WIDTH):
        _push(t, m, rule, t[path + t[rule + LEVEL]], cycle)


@compiled_part
def issue_to_all(t, m, command, first_bank, banks, cycle):  # type: ignore[no-untyped-def]
    """Note that `command` issues at `cycle` to a range of banks."""
    for rule in range(t[FIRST + command], t[FIRST + command + 1], RULE_WIDTH):
        last = 0
        for bank in range(first_bank, first_bank + banks):
            node = t[PATH + bank * LEVELS + t[rule + LEVEL]]
            if node != last:
                _push(t, m, rule, node, cycle)
            last = node


@compiled_part
def _push(t, m, rule, node, cycle):  # type: ignore[no-untyped-def]
    later = NODE_READY + t[rule + LATER]
    if t[rule + RING] >= 0:
        cycle = _window_start(t, m, rule, node, cycle)
    allowed = cycle + t[rule + DELAY]
    if t[rule + OTHERS]:
        for at in range(node, node + SIBLINGS):
            if m[at]:
                m[m[at] + later] = max(m[m[at] + later], allowed)
    else:
        m[node + later] = max(m[node + later], allowed)


@compiled_part
def _window_start(t, m, rule, node, cycle):  # type: ignore[no-untyped-def]
    """Note the issue in the rule's ring and give the window-th last one: the slot that comes to be used next."""
    ring = node + NODE_RINGS + t[rule + RING] * RING_WIDTH
    if t[rule + KEEP]:
        m[ring + 1 + m[ring]] = cycle
        m[ring] = (m[ring] + 1) % t[rule + WINDOW]
    return m[ring + 1 + m[ring]]

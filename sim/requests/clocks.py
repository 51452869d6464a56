"""A standard's rules for one machine as the fields of one record, for the compiled controllers.

Scopes become nodes of a tree: the channel, its pseudo-channels, their ranks, bank groups and banks. Each node holds,
for every command, the first cycle at which its rules allow it; issuing a command pushes those cycles on. The schedulers
that use the arrays are elsewhere; the tree is the same for all of them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine, Organization
from nearbank.sim.standard import Rule, Scope, Standard, delay_cycles, missing_names

Ints = NDArray[np.int64]
Record = Any  # one NumPy record; compiled functions take it as a pointer, which arrays would not be

# Order of commands in every array. A standard without one of them leaves its column empty.
COMMANDS = ("ACT", "PRE", "PREA", "RD", "WR", "RDA", "WRA", "REFab", "REFpb", "ACT2", "CASRD", "CASWR")
ACT, PRE, PREA, RD, WR, RDA, WRA, REFAB, REFPB, ACT2, CASRD, CASWR = range(len(COMMANDS))
_ALIASES = {"ACT1": "ACT"}
_SCOPES = (Scope.CHANNEL, Scope.PSEUDO_CHANNEL, Scope.RANK, Scope.BANK_GROUP, Scope.BANK)
_NEVER = -(1 << 60)

MOST_BANKS = 512
_RULES, _RINGS, _WINDOW, _SIBLINGS = 1024, 4, 8, 7


def clock_fields(commands: int, banks: int) -> list[tuple[Any, ...]]:
    """The fields of a record for so many commands and banks.

    When each node next allows each command; the nodes above each bank; the other ranks beside a rank; the rules that
    push the cycles on. Rule i of command c, first[c] <= i < first[c + 1], delays command later[i] at level[i] by
    delay[i] cycles; with ring[i] >= 0 it counts from the window[i]-th last issue kept in rings[ring[i], node], where
    rules with keep[i] note it; others[i] means the siblings of the node.
    """
    nodes = 2 * banks + 8
    return [
        ("ready", np.int64, (nodes, commands)),
        ("levels", np.int64),
        ("path", np.int64, (banks, len(_SCOPES))),
        ("siblings", np.int64, (nodes, _SIBLINGS)),
        ("first", np.int64, (commands + 1,)),
        *((name, np.int64, (_RULES,)) for name in ("level", "later", "delay", "others", "ring", "window", "keep")),
        ("rings", np.int64, (_RINGS, nodes, _WINDOW)),
        ("ring_next", np.int64, (_RINGS, nodes)),
    ]


CLOCK_FIELDS = clock_fields(len(COMMANDS), MOST_BANKS)


def set_clocks(
    state: Record,
    standard: Standard,
    machine: Machine,
    unused: Sequence[str] = (),
    commands: Sequence[str] = COMMANDS,
) -> None:
    """Fill the clock fields for one channel of `machine`; `NearbankError` when a timing value is missing.

    Rules about `unused` commands, which the caller never issues, are left out; `commands` are those of the record.
    """
    rules = [rule for rule in standard.rules if _applies(rule, machine)]
    used = [scope for scope in _SCOPES if any(_scope(rule) is scope for rule in rules)]
    never, alone = set(_known(unused, commands)), machine.organization.ranks == 1
    rows = [
        r
        for r in _strongest(rules, machine, used, commands)
        if not never & {r.earlier, r.later} and not (alone and r.others) and not _is_bus(r, standard, commands)
    ]
    _check_sizes(state, machine, rows)
    path = _paths(machine.organization, used)
    state["levels"] = len(used)
    state["path"][: len(path), : len(used)] = path
    state["siblings"] = _siblings(state, machine.organization, used, path)
    state["first"] = np.searchsorted([row.earlier for row in rows], np.arange(len(commands) + 1))
    state["rings"] = _NEVER
    rings = sorted({row.rule for row in rows if row.window > 1})
    columns: dict[str, list[int]] = {"keep": [int(_is_first(row, rows)) for row in rows]}
    columns["ring"] = [rings.index(row.rule) if row.window > 1 else -1 for row in rows]
    columns |= {name: [getattr(row, name) for row in rows] for name in ("level", "later", "delay", "others", "window")}
    for name, values in columns.items():
        state[name][: len(rows)] = values


def _check_sizes(state: Record, machine: Machine, rows: Sequence["_Row"]) -> None:
    most = len(state["path"])
    if machine.organization.banks > most:
        raise NearbankError(
            f"machine {machine.name}: {machine.organization.banks} banks a channel; at most {most} work here"
        )
    windows = {row.rule: row.window for row in rows if row.window > 1}
    if len(rows) > _RULES or len(windows) > _RINGS or max(windows.values(), default=0) > _WINDOW:
        raise NearbankError(f"standard {machine.standard}: too many timing rules for requests; {len(rows)} rows")


class _Row(NamedTuple):
    earlier: int
    level: int
    later: int
    others: int
    window: int
    rule: int
    delay: int


def _applies(rule: Rule, machine: Machine) -> bool:
    """Whether the machine has the rule's values; an optional rule may lack them."""
    missing = missing_names(rule.delay, machine.timing)
    if missing and not rule.optional:
        raise NearbankError(
            f"machine {machine.name}: timing {missing[0]} is missing; the {machine.standard} rules need it"
        )
    return not missing


def _scope(rule: Rule) -> Scope:
    return Scope.CHANNEL if rule.scope is Scope.ALL_BANKS else rule.scope


def _strongest(rules: Sequence[Rule], machine: Machine, used: list[Scope], commands: Sequence[str]) -> list[_Row]:
    """One row per pair of commands, level and window, by earlier command; of several delays the longest counts."""
    cycles = {name: machine.cycles(name) for name in machine.timing}
    best: dict[tuple[int, ...], int] = {}
    for number, rule in enumerate(rules):
        delay = delay_cycles(rule.delay, cycles)
        for earlier in _known(rule.earlier, commands):
            for later in _known(rule.later, commands):
                window_of = number if rule.window > 1 else -1
                key = (earlier, used.index(_scope(rule)), later, int(rule.others), rule.window, window_of)
                best[key] = max(best.get(key, 0), delay)
    return sorted(_Row._make((*key, delay)) for key, delay in best.items())


def _is_bus(row: _Row, standard: Standard, commands: Sequence[str]) -> bool:
    """Whether the row only says that a command bus holds one command a clock, which is the schedulers' business.

    DRAMsim3's scheduler offers a precharge in the clock of an activation and then loses its turn: to see that, the
    precharge must count as ready.
    """
    buses = [commands[i] in standard.row_bus for i in (row.earlier, row.later)]
    return row.delay <= 1 and row.window == 1 and buses[0] == buses[1] and not standard.any_edge


def _known(names: Sequence[str], commands: Sequence[str]) -> list[int]:
    plain = [_ALIASES.get(name, name) for name in names]
    return [commands.index(name) for name in plain if name in commands]


def _counts(organization: Organization) -> dict[Scope, int]:
    """How many of each scope a channel has."""
    pseudo = organization.pseudo_channels
    ranks = pseudo * organization.ranks
    groups = ranks * organization.bank_groups
    counts = (1, pseudo, ranks, groups, groups * organization.banks_per_group)
    return dict(zip(_SCOPES, counts, strict=True))


def _paths(organization: Organization, used: list[Scope]) -> Ints:
    """Node numbers [bank, level]; nodes of one level are numbered in a row, levels one after another."""
    counts = _counts(organization)
    banks = np.arange(counts[Scope.BANK])
    starts = np.cumsum([0] + [counts[scope] for scope in used])
    columns = [starts[i] + banks * counts[scope] // len(banks) for i, scope in enumerate(used)]
    return np.stack(columns, axis=1).astype(np.int64)


def _siblings(state: Record, organization: Organization, used: list[Scope], path: Ints) -> Ints:
    """The other ranks on the same bus, for every node of the rank level; -1 elsewhere."""
    result: Ints = np.full(state["siblings"].shape, -1, np.int64)
    if Scope.RANK not in used or organization.ranks == 1:
        return result
    ranks = np.unique(path[:, used.index(Scope.RANK)]).reshape(-1, organization.ranks)
    for together in ranks:
        for node in together:
            result[node, : len(together) - 1] = [other for other in together if other != node]
    return result


def _is_first(row: _Row, rows: list[_Row]) -> bool:
    """Whether the row is the first of its command and rule, the one that notes the issue."""
    return row.window > 1 and row == next(r for r in rows if (r.earlier, r.rule) == (row.earlier, row.rule))


@njit(cache=True)
def ready_cycle(state, command, bank):  # type: ignore[no-untyped-def]
    """The first cycle at which every node above `bank` allows `command`."""
    earliest = 0
    for level in range(state.levels):
        allowed = state.ready[state.path[bank, level], command]
        if allowed > earliest:
            earliest = allowed
    return earliest


@njit(cache=True)
def ready_cycle_of_all(state, command, first_bank, banks):  # type: ignore[no-untyped-def]
    """The first cycle at which every bank of a range allows `command`."""
    earliest = 0
    for bank in range(first_bank, first_bank + banks):
        earliest = max(earliest, ready_cycle(state, command, bank))
    return earliest


@njit(cache=True)
def issue(state, command, first_bank, banks, cycle):  # type: ignore[no-untyped-def]
    """Note that `command` issues at `cycle` to a range of banks (one bank for ordinary commands)."""
    for rule in range(state.first[command], state.first[command + 1]):
        last = -1
        for bank in range(first_bank, first_bank + banks):
            node = state.path[bank, state.level[rule]]
            if node != last:
                _push(state, rule, node, cycle)
                last = node


@njit(cache=True)
def _push(state, rule, node, cycle):  # type: ignore[no-untyped-def]
    later, allowed = state.later[rule], cycle + state.delay[rule]
    if state.ring[rule] >= 0:
        allowed = _window_start(state, rule, node, cycle) + state.delay[rule]
    if state.others[rule]:
        for at in range(_SIBLINGS):
            sibling = state.siblings[node, at]
            if sibling >= 0 and state.ready[sibling, later] < allowed:
                state.ready[sibling, later] = allowed
    elif state.ready[node, later] < allowed:
        state.ready[node, later] = allowed


@njit(cache=True)
def _window_start(state, rule, node, cycle):  # type: ignore[no-untyped-def]
    """Note the issue in the rule's ring and give the window-th last one."""
    ring = state.ring[rule]
    if state.keep[rule]:
        state.rings[ring, node, state.ring_next[ring, node]] = cycle
        state.ring_next[ring, node] = (state.ring_next[ring, node] + 1) % state.window[rule]
    # The slot to be overwritten next holds the oldest of the window.
    return state.rings[ring, node, state.ring_next[ring, node]]

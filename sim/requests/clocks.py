"""A standard's rules for one machine as the tables of the compiled controllers: `timing` says what lies where."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine, Organization
from nearbank.sim.requests import timing
from nearbank.sim.requests.state import COMMANDS
from nearbank.sim.standard import Rule, Scope, Standard, delay_cycles, missing_names

Ints = NDArray[np.int64]

_ALIASES = {"ACT1": "ACT"}
_SCOPES = (Scope.CHANNEL, Scope.PSEUDO_CHANNEL, Scope.RANK, Scope.BANK_GROUP, Scope.BANK)
_NEVER = -(1 << 60)


def new_channels(
    machine: Machine,
    standard: Standard,
    setup: Sequence[int] | Ints,
    nodes_at: int,
    most_banks: int,
    unused: Sequence[str] = (),
    commands: Sequence[str] = COMMANDS,
) -> tuple[Ints, Ints]:
    """The tables `t`, with the scheduler's numbers in front, and `m` [channel, place], zero but for the clocks' nodes.

    Rules about `unused` commands, which the caller never issues, are left out. The nodes begin at `nodes_at`.
    `NearbankError` when a timing value is missing, or there are more than `most_banks`.
    """
    rules = [rule for rule in standard.rules if _applies(rule, machine)]
    used = [scope for scope in _SCOPES if any(_scope(rule) is scope for rule in rules)]
    rows = _rows(rules, machine, standard, used, unused, commands)
    _check_sizes(machine, rows, most_banks)
    path = _paths(machine.organization, used)
    nodes = _nodes(machine.organization, used, path, nodes_at)
    memory = np.zeros((machine.organization.channels, _spread(nodes_at + nodes.size)), np.int64)
    memory[:, nodes_at : nodes_at + nodes.size] = nodes.ravel()
    return _table(setup, rows, len(commands), nodes_at + path * timing.NODE_WIDTH), memory


def _spread(size: int) -> int:
    """At least `size`, so that the same place of neighbouring channels falls into different sets of a cache."""
    return (size + 7) // 8 * 8 | 8


def _table(setup: Sequence[int] | Ints, rows: list["_Row"], commands: int, path: Ints) -> Ints:
    """The tables; `path` is [bank, level]."""
    table = np.zeros(timing.PATH + len(path) * timing.LEVELS, np.int64)
    table[: len(setup)] = setup
    table[timing.USED_LEVELS] = path.shape[1]
    table[timing.HAS_ROOT] = int((path[:, 0] == path[0, 0]).all())
    rings = sorted({row.rule for row in rows if row.window > 1})
    for number, row in enumerate(rows):
        ring = rings.index(row.rule) if row.window > 1 else -1
        at = timing.RULES + number * timing.RULE_WIDTH
        table[at : at + 7] = row.level, row.later, row.delay, row.others, ring, row.window, _is_first(row, rows)
    begins = [(row.earlier, _is_special(row)) for row in rows]
    for command in range(commands + 1):
        table[timing.FIRST + command] = timing.RULES + timing.RULE_WIDTH * bisect_left(begins, (command, False))
    for command in range(commands):
        table[timing.SPECIAL + command] = timing.RULES + timing.RULE_WIDTH * bisect_left(begins, (command, True))
    table[timing.ELSEWHERE : timing.ELSEWHERE + len(path)] = _elsewhere(path[:, 0])
    padded = np.zeros((len(path), timing.LEVELS), np.int64)
    padded[:, : path.shape[1]] = path
    table[timing.PATH :] = padded.ravel()
    return table


def _elsewhere(top: Ints) -> Ints:
    """For each bank, the banks of its word (64 in a row) whose first node is another one, as bits."""
    bits = np.zeros(len(top), np.uint64)
    for bank, node in enumerate(top):
        word = top[bank // 64 * 64 :][:64]
        bits[bank] = sum(1 << place for place in np.flatnonzero(word != node).tolist())
    return bits.astype(np.int64)


def _nodes(organization: Organization, used: list[Scope], path: Ints, nodes_at: int) -> Ints:
    """The nodes of one channel as they are before the first command."""
    nodes = np.zeros((int(path.max()) + 1, timing.NODE_WIDTH), np.int64)
    siblings = nodes[:, : timing.SIBLINGS]
    siblings[:] = _siblings(len(nodes), organization, used, path)
    siblings[:] = np.where(siblings < 0, 0, nodes_at + siblings * timing.NODE_WIDTH)
    for ring in range(timing.RINGS):
        first = timing.NODE_RINGS + ring * timing.RING_WIDTH + 1
        nodes[:, first : first + timing.RING_WIDTH - 1] = _NEVER
    return nodes


def _rows(
    rules: Sequence[Rule],
    machine: Machine,
    standard: Standard,
    used: list[Scope],
    unused: Sequence[str],
    commands: Sequence[str],
) -> list["_Row"]:
    """The rules that matter, by earlier command, those that need more than level and delay last."""
    never, alone = set(_known(unused, commands)), machine.organization.ranks == 1
    rows = [
        r
        for r in _strongest(rules, machine, used, commands)
        if not never & {r.earlier, r.later} and not (alone and r.others) and not _is_bus(r, standard, commands)
    ]
    return sorted(rows, key=lambda row: (row.earlier, _is_special(row)))


def _is_special(row: "_Row") -> bool:
    return row.window > 1 or row.others > 0


def _check_sizes(machine: Machine, rows: Sequence["_Row"], most_banks: int) -> None:
    if machine.organization.banks > most_banks:
        raise NearbankError(
            f"machine {machine.name}: {machine.organization.banks} banks a channel; at most {most_banks} work here"
        )
    windows = {row.rule: row.window for row in rows if row.window > 1}
    longest = max(windows.values(), default=0)
    if len(rows) > timing.MOST_RULES or len(windows) > timing.RINGS or longest >= timing.RING_WIDTH:
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


def _siblings(nodes: int, organization: Organization, used: list[Scope], path: Ints) -> Ints:
    """The other ranks on the same bus, for every node of the rank level; -1 elsewhere."""
    result: Ints = np.full((nodes, timing.SIBLINGS), -1, np.int64)
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

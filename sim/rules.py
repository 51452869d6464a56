"""A standard's timing table with one machine's numbers in it: what the engine, the reference and the checker read.

Delays are in clock cycles, scopes in numbers of banks, and a rule that the machine cannot have is dropped (optional)
or refused here. Banks are numbered flat in the channel, so every scope is an aligned run of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine
from nearbank.sim.standard import CommandSpec, Effect, Row, Rule, Scope, Standard, delay_cycles, missing_names
from nearbank.sim.standards import standard_named


@dataclass(frozen=True, slots=True)
class Limit:
    """One rule in numbers: `later` waits `delay` cycles after the `window`-th last of `earlier` in the same scope.

    A scope is a run of `size` banks; with `others` the rule counts in every other scope of the same `within` banks.
    """

    rule: Rule
    name: str
    earlier: frozenset[str]
    later: frozenset[str]
    delay: int
    window: int
    size: int
    others: bool
    within: int


@dataclass(frozen=True, slots=True)
class RefreshPlan:
    """How a controller refreshes: every `interval` cycles, the banks of one `region`-bank run after another.

    `interval` 0 means never. All rows of the region are closed with `precharge`, refreshed with `refresh`, and those
    that were open are opened again: with `activate_all` if every bank of the channel held the same row; else each rank
    whose banks all held the same row with `activate_rank`, in standards that have such a command, and the rest one by
    one with `activate`.
    """

    interval: int
    region: int
    precharge: str
    refresh: str
    activate: str
    activate_all: str
    activate_rank: str = ""

    @property
    def commands(self) -> frozenset[str]:
        """All commands of a refresh."""
        names = (self.precharge, self.refresh, self.activate, self.activate_all, self.activate_rank)
        return frozenset(name for name in names if name and self.interval)


@dataclass(frozen=True, slots=True)
class RuleBook:
    """Everything the players need to know about a machine's commands."""

    machine: Machine
    standard: Standard
    specs: dict[str, CommandSpec]
    reach: dict[str, int]
    latency: dict[str, int]
    limits: tuple[Limit, ...]
    refresh: RefreshPlan
    banks: int
    group: int  # banks in a bank group

    def is_on_clock(self, name: str) -> bool:
        """Whether the command may issue in odd cycles only, on the first half of a clock."""
        return bool(self.standard.any_edge) and name not in self.standard.any_edge

    def first_bank(self, name: str, bank: int) -> int:
        """The first of the banks that the command reaches when told `bank`."""
        return bank - bank % self.reach[name]


@dataclass(frozen=True, slots=True)
class _ByDigest:
    """A machine as a key: machines hold dictionaries, so they cannot be hashed themselves."""

    machine: Machine

    def __hash__(self) -> int:
        return hash(self.machine.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByDigest) and other.machine.digest == self.machine.digest


def rulebook(machine: Machine) -> RuleBook:
    """The machine's rules in numbers; `NearbankError` names a rule whose timing value is missing."""
    return _rulebook(_ByDigest(machine))


@lru_cache(maxsize=64)
def _rulebook(key: _ByDigest) -> RuleBook:
    return _build(key.machine)


def _build(machine: Machine) -> RuleBook:
    standard = standard_named(machine.standard)
    cycles = {name: machine.cycles(name) for name in machine.timing}
    standard, cycles = _within_budget(machine, standard, cycles)
    sizes = scope_sizes(machine)
    specs = {spec.name: spec for spec in standard.commands}
    return RuleBook(
        machine=machine,
        standard=standard,
        specs=specs,
        reach={name: sizes[spec.reach] for name, spec in specs.items()},
        latency={name: _delay(machine, f"latency of {name}", spec.latency, cycles) for name, spec in specs.items()},
        limits=_limits(machine, standard, cycles, sizes),
        refresh=_refresh_plan(machine, standard, sizes),
        banks=sizes[Scope.CHANNEL],
        group=sizes[Scope.BANK_GROUP],
    )


def _within_budget(machine: Machine, standard: Standard, cycles: dict[str, int]) -> tuple[Standard, dict[str, int]]:
    """The standard with the rules that keep a power budget, and their delays."""
    if machine.power.budget_per_channel is None:
        return standard, cycles
    from nearbank.sim.throttle import power_delays, power_rules  # it asks for the rules of the machine without a budget

    delays = power_delays(machine)
    return replace(standard, rules=standard.rules + power_rules(delays)), cycles | delays


def scope_sizes(machine: Machine) -> dict[Scope, int]:
    """Banks in each scope; scopes nest in this order, so each size divides the next."""
    organization = machine.organization
    group = organization.banks_per_group
    rank = organization.bank_groups * group
    pseudo = rank * organization.ranks
    banks = pseudo * organization.pseudo_channels
    sizes = {
        Scope.BANK: 1,
        Scope.FOUR_BANKS: 4 if group % 4 == 0 else 1,
        Scope.BANK_GROUP: group,
        Scope.RANK: rank,
        Scope.PSEUDO_CHANNEL: pseudo,
        Scope.ALL_BANKS: banks,
        Scope.CHANNEL: banks,
    }
    if any(size & (size - 1) for size in sizes.values()) or banks > 64:
        raise NearbankError(
            f"machine {machine.name}: organization: {banks} banks a channel in groups of {group}; "
            "expected powers of two, at most 64 banks"
        )
    return sizes


def _delay(machine: Machine, what: str, delay: str, cycles: dict[str, int]) -> int:
    missing = missing_names(delay, cycles)
    if missing:
        raise NearbankError(
            f"machine {machine.name}: timing {' and '.join(missing)} is missing; {machine.standard} needs it for {what}"
        )
    return delay_cycles(delay, cycles)


def _limits(machine: Machine, standard: Standard, cycles: dict[str, int], sizes: dict[Scope, int]) -> tuple[Limit, ...]:
    kept = [rule for rule in standard.rules if not (rule.optional and missing_names(rule.delay, cycles))]
    return tuple(
        Limit(
            rule=rule,
            name=_resolved(rule.delay, cycles),
            earlier=frozenset(rule.earlier),
            later=frozenset(rule.later),
            delay=_delay(machine, f"the rule {rule}", rule.delay, cycles),
            window=rule.window,
            size=sizes[rule.scope],
            others=rule.others,
            within=sizes[Scope.PSEUDO_CHANNEL] if rule.scope is Scope.RANK else sizes[Scope.CHANNEL],
        )
        for rule in kept
    )


def _resolved(delay: str, cycles: dict[str, int]) -> str:
    """The delay with each "a|b" replaced by the alternative that the machine has."""
    words = [next((n for n in word.split("|") if n in cycles or n.isdigit()), word) for word in delay.split()]
    return " ".join(words)


def _refresh_plan(machine: Machine, standard: Standard, sizes: dict[Scope, int]) -> RefreshPlan:
    activate = _first(standard, Effect.OPENS, 1, sizes)
    everything = sizes[Scope.CHANNEL]
    activate_all = _first(standard, Effect.OPENS, everything, sizes) if everything > 1 else ""
    if machine.refresh.policy == "per_bank":
        close = _first(standard, Effect.CLOSES, 1, sizes)
        return RefreshPlan(machine.cycles("tREFIpb"), 1, close, standard.refresh_bank, activate, activate_all)
    interval = machine.cycles("tREFI") if machine.refresh.policy == "all_bank" else 0
    part = sizes[Scope.RANK]
    activate_rank = _first(standard, Effect.OPENS, part, sizes) if 1 < part < everything else ""
    names = (standard.precharge_all, standard.refresh, activate, activate_all, activate_rank)
    return RefreshPlan(interval, everything, *names)


def _first(standard: Standard, effect: Effect, reach: int, sizes: dict[Scope, int]) -> str:
    """The first command with that effect and reach that needs no open row; "" if there is none."""
    for spec in standard.commands:
        if spec.effect is effect and sizes[spec.reach] == reach and spec.row is not Row.OPEN:
            return spec.name
    return ""

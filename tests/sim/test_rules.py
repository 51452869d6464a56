"""Every rule of the tables with MAC commands, alone: the engine waits for it exactly, one clock less is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from tests.sim.strategies import machine_with

from nearbank.errors import NearbankError
from nearbank.sim import rules
from nearbank.sim.checker import Flat, check
from nearbank.sim.engine import Issued, Player
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.program import Builder, Program, Start, Stream, Wait
from nearbank.sim.rules import RuleBook, rulebook
from nearbank.sim.standard import Effect, Row, Rule, Scope
from nearbank.sim.standards import standard_named

CYCLES = 9


@contextmanager
def without_modes() -> Iterator[None]:
    """Timing alone: rules between commands that no mode allows side by side are tried all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "standard_named", lambda name: replace(standard_named(name), modes=None))
        rules._rulebook.cache_clear()
        yield
    rules._rulebook.cache_clear()


@pytest.fixture(autouse=True)
def timing_alone() -> Iterator[None]:
    with without_modes():
        yield


MACHINES = ("pim-gpt", "hbm-pim", "attacc-like", "attacc-like-groups", "lpddr5-pim")
STANDARDS = {standard_named(load_machine(name).standard).name: name for name in MACHINES}
PAIRS = [
    (name, rule, earlier, later)
    for standard, name in STANDARDS.items()
    for rule in standard_named(standard).rules
    for earlier in rule.earlier
    for later in rule.later
]
OPENERS = {"ACT": 1, "ACT4": 4, "ACTAB": 8}


def terms(rule: Rule) -> list[list[str]]:
    """The delay's terms, each with its alternatives."""
    return [term.strip().split("|") for term in rule.delay.split("+")]


def machine_with_only(name: str, rule: Rule) -> Machine:
    """All timing 0 but the names of this rule; of alternatives, only the last."""
    everything = [term for r in standard_named(load_machine(name).standard).rules for term in terms(r)]
    times: dict[str, int | None] = {first: None for term in everything for first in term[:-1]}
    times |= {term[-1]: 0 for term in everything} | {"tCL": 0}
    times |= {term[-1]: CYCLES for term in terms(rule)}
    times["tRC"] = max(times["tRC"] or 0, (times["tRAS"] or 0) + (times["tRP"] or 0))
    return machine_with(name, **times, tREFI=1000, policy="none")


def banks_of(rule: Rule, book: RuleBook, earlier: str, later: str) -> tuple[int, int]:
    """Two banks that meet in the rule's scope and, where the commands leave a choice, in no smaller one."""
    apart = {Scope.BANK: 0, Scope.BANK_GROUP: 1, Scope.CHANNEL: 4, Scope.RANK: 8}[rule.scope]
    if rule.scope is Scope.BANK_GROUP and max(book.reach[earlier], book.reach[later]) >= 4:
        return 0, 0
    return 0, apart


def opened(book: RuleBook, name: str) -> bool:
    return book.specs[name].row is Row.OPEN


class Case:
    """A program in which `earlier`, alone for long, is followed by `later` as soon as may be."""

    def __init__(self, book: RuleBook, rule: Rule, earlier: str, later: str) -> None:
        self.book, self.rule, self.names = book, rule, (earlier, later)
        self.b = Builder()
        self.first, self.second = banks_of(rule, book, earlier, later)
        self.prepare()
        for i in range(rule.window):
            self.b.command(earlier, bank=4 * i if rule.window > 1 else self.first)
        if book.specs[later].row is Row.CLOSED and (
            book.specs[earlier].effect is Effect.OPENS or opened(book, earlier)
        ):
            self.b.command("PREA")
        last = 4 * (rule.window - 1) + 1 if rule.window > 1 else self.second
        self.b.command(later, bank=last - last % book.reach[later] if book.reach[later] < book.banks else 0)

    def prepare(self) -> None:
        """Open the rows that the two need and that the first does not open itself, long before."""
        earlier, later = self.names
        if opened(self.book, earlier) or (opened(self.book, later) and self.book.specs[earlier].effect is Effect.NONE):
            self.b.command("ACT16")
        elif opened(self.book, later) and self.book.reach[earlier] < self.book.reach[later]:
            reach = self.book.reach[earlier]
            for bank in range(reach, self.book.banks, reach):
                self.b.command(next(name for name, banks in OPENERS.items() if banks == reach), bank=bank)
        self.b.add(Start("far", "away", 10**6))
        self.b.add(Wait("far"))

    @property
    def feasible(self) -> bool:
        """Not if the second needs a row that the first closes or needs closed."""
        earlier, later = (self.book.specs[name] for name in self.names)
        closed = earlier.effect is Effect.CLOSES or (earlier.row is Row.CLOSED and earlier.effect is Effect.NONE)
        return not (closed and later.row is Row.OPEN)

    def program(self) -> Program:
        return Program("pair", (Stream((0,), self.b.body()),))


@pytest.mark.parametrize(("name", "rule", "earlier", "later"), PAIRS)
def test_waits_exactly_as_long(name: str, rule: Rule, earlier: str, later: str) -> None:
    machine = machine_with_only(name, rule)
    book = rulebook(machine)
    case = Case(book, rule, earlier, later)
    if not case.feasible:
        pytest.skip("the second cannot follow the first without a command that waits for it as well")
    issued = [Flat(i.cycle, i.command, i.bank, i.row, i.column) for i in play(machine, case.program())]
    limit = next(x for x in book.limits if x.rule is rule)
    first = next(i for i, c in enumerate(issued) if c.command == earlier and c.cycle > 500)
    gap = issued[-1].cycle - issued[first].cycle
    assert gap == max(limit.delay, rule.window, len(issued) - 1 - first)
    assert check(machine, issued) is None
    assert_refused_one_earlier(machine, issued, limit.delay)


def play(machine: Machine, program: Program) -> list[Issued]:
    return Player(machine).record(program, 0, 10**4)


def assert_refused_one_earlier(machine: Machine, issued: list[Flat], required: int) -> None:
    sooner = [*issued[:-1], issued[-1]._replace(cycle=issued[-1].cycle - 1)]
    violation = check(machine, sooner)
    assert violation is not None
    assert violation.later == sooner[-1]
    assert violation.required == required
    assert violation.actual == required - 1


def test_a_missing_timing_value_is_named() -> None:
    machine = machine_with(tRTP=None)
    with pytest.raises(NearbankError, match=r"machine pim-gpt: timing tRTP is missing; gddr6-aim needs it"):
        rulebook(machine)


def test_an_optional_rule_goes_without() -> None:
    names = {limit.name for limit in rulebook(machine_with(tFAW=None)).limits}
    assert "tFAW" not in names
    assert "tFAW" in {limit.name for limit in rulebook(machine_with()).limits}

"""The independent check: does a flat list of commands obey every rule and find the rows as it needs them?

It takes any list, ours or another tool's, knows nothing of programs or engines, and names the first violation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine
from nearbank.sim.rules import Limit, RuleBook, rulebook
from nearbank.sim.standard import Effect, Row


class Flat(NamedTuple):
    """One command of one channel: issue cycle, name, flat bank number, row, column."""

    cycle: int
    command: str
    bank: int = 0
    row: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Violation:
    """The first thing wrong: the command, what it breaks, and for timing rules the earlier command and distances."""

    rule: str
    later: Flat
    earlier: Flat | None = None
    required: int | None = None
    actual: int | None = None

    def __str__(self) -> str:
        late = f"{self.later.command} at cycle {self.later.cycle} (bank {self.later.bank}, row {self.later.row})"
        if self.earlier is None:
            return f"{late}: {self.rule}"
        early = f"{self.earlier.command} at cycle {self.earlier.cycle} (bank {self.earlier.bank})"
        return f"{late} breaks {self.rule}: {self.actual} cycles after {early}, expected at least {self.required}"


def check(machine: Machine, commands: Iterable[Flat]) -> Violation | None:
    """The first violation among one channel's commands in order of issue, or None if there is none."""
    checker = _Checker(rulebook(machine))
    for command in commands:
        violation = checker.step(command)
        if violation is not None:
            return violation
    return None


class _Checker:
    """Remembers the last commands of every name that some rule may still ask for."""

    def __init__(self, book: RuleBook) -> None:
        self.book = book
        self.row_bus = frozenset(book.standard.row_bus)
        self.recent: list[Flat] = []
        self.rows: list[int | None] = [None] * book.banks
        self.mode = book.standard.modes.first if book.standard.modes else ""
        self.horizon = max((limit.delay for limit in book.limits), default=0)
        self.limits = {name: [limit for limit in book.limits if name in limit.later] for name in book.specs}

    def step(self, command: Flat) -> Violation | None:
        self._known(command)
        found = self._bus(command) or self._edge(command) or self._timing(command) or self._row_state(command)
        found = found or self._mode(command)
        self._apply(command)
        return found

    def _known(self, command: Flat) -> None:
        if command.command not in self.book.specs:
            raise NearbankError(
                f"cycle {command.cycle}: unknown command {command.command!r}; "
                f"{self.book.standard.name} has {', '.join(self.book.specs)}"
            )
        if not 0 <= command.bank < self.book.banks:
            raise NearbankError(f"cycle {command.cycle}: bank {command.bank}; expected 0 to {self.book.banks - 1}")

    def _bus(self, command: Flat) -> Violation | None:
        """Commands come in order, one a cycle on each command bus; some standards have one for rows alone."""
        own = command.command in self.row_bus
        for before in reversed(self.recent):
            if command.cycle > before.cycle:
                return None
            if command.cycle < before.cycle or (before.command in self.row_bus) == own:
                rule = "one command a cycle on each bus, in order" if self.row_bus else "one command a cycle, in order"
                return Violation(rule, command, before, 1, command.cycle - before.cycle)
        return None

    def _edge(self, command: Flat) -> Violation | None:
        """In a standard that counts half clocks, most commands start on the first half, the odd cycle."""
        if command.cycle % 2 == 0 and self.book.is_on_clock(command.command):
            return Violation("only precharges may issue on the second half of a clock, an even cycle", command)
        return None

    def _mode(self, command: Flat) -> Violation | None:
        modes = self.book.standard.modes
        if modes is not None and not modes.allows(self.mode, command.command):
            return Violation(modes.refusal(self.mode, command.command), command)
        return None

    def _timing(self, command: Flat) -> Violation | None:
        for limit in self.limits[command.command]:
            for own in self._scopes(limit, command):
                found = self._scope_timing(limit, own, command)
                if found is not None:
                    return found
        return None

    def _scope_timing(self, limit: Limit, own: int, command: Flat) -> Violation | None:
        """Walk back from the newest to the `window`-th command that the rule counts in this scope."""
        seen = 0
        for before in reversed(self.recent):
            if command.cycle - before.cycle >= limit.delay:
                return None
            if before.command in limit.earlier and self._counts(limit, own, before, command):
                seen += 1
                if seen == limit.window:
                    actual = command.cycle - before.cycle
                    return Violation(f"{limit.name} ({limit.rule})", command, before, limit.delay, actual)
        return None

    def _counts(self, limit: Limit, own: int, before: Flat, command: Flat) -> bool:
        theirs = self._scopes(limit, before)
        if not limit.others:
            return own in theirs
        per_group = limit.within // limit.size
        single = len(theirs) == 1 and len(self._scopes(limit, command)) == 1
        return single and theirs[0] != own and theirs[0] // per_group == own // per_group

    def _scopes(self, limit: Limit, command: Flat) -> range:
        reach = self.book.reach[command.command]
        first = self.book.first_bank(command.command, command.bank)
        return range(first // limit.size, (first + reach - 1) // limit.size + 1)

    def _row_state(self, command: Flat) -> Violation | None:
        need = self.book.specs[command.command].row
        rows = [self.rows[b] for b in self._banks(command)]
        if need is Row.CLOSED and any(row is not None for row in rows):
            return Violation("its banks must be closed, but one has an open row", command)
        if need is Row.OPEN and any(row is None for row in rows):
            return Violation("its banks must have an open row, but one is closed", command)
        if need is Row.OPEN and any(row != command.row for row in rows):
            return Violation(f"row {command.row} must be open, but {rows} are", command)
        return None

    def _banks(self, command: Flat) -> range:
        first = self.book.first_bank(command.command, command.bank)
        return range(first, first + self.book.reach[command.command])

    def _apply(self, command: Flat) -> None:
        effect = self.book.specs[command.command].effect
        if effect is not Effect.NONE:
            for bank in self._banks(command):
                self.rows[bank] = command.row if effect is Effect.OPENS else None
        if self.book.standard.modes is not None:
            bank = self.book.first_bank(command.command, command.bank)
            self.mode = self.book.standard.modes.after(self.mode, command.command, bank, command.row)
        self.recent = [c for c in self.recent if command.cycle - c.cycle < self.horizon]
        self.recent.append(command)

"""Everything issued so far, and whether the rules allow one command more: for the plain Python controllers.

It looks at the whole list again for every question, so that it is obviously right. Tests alone use it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nearbank.sim.rules import Limit, RuleBook

Issue = tuple[int, str, int, int, int]  # cycle, command, first bank, banks, row


@dataclass(slots=True)
class History:
    """Issued commands of one channel. With `bus_is_free`, commands that share a bus do not keep each other waiting."""

    book: RuleBook
    bus_is_free: bool = False
    issued: list[Issue] = field(default_factory=list)

    def allows(self, command: str, bank: int, cycle: int) -> bool:
        """Whether every rule allows `command` at `bank` (and the banks it reaches from there on) in `cycle`."""
        limits = [limit for limit in self.book.limits if command in limit.later]
        banks = range(bank, bank + self.book.reach[command])
        return all(
            self._keeps(limit, command, scope, cycle) for limit in limits for scope in {b // limit.size for b in banks}
        )

    def _keeps(self, limit: Limit, later: str, scope: int, cycle: int) -> bool:
        """Whether the `window`-th last of the limit's earlier commands in the scope is `delay` cycles ago."""
        seen = 0
        for when, command, first, count, _ in reversed(self.issued):
            if cycle - when >= limit.delay:
                return True
            scopes = {bank // limit.size for bank in range(first, first + count)}
            inside = self._beside(limit, scope, scopes) if limit.others else scope in scopes
            seen += command in limit.earlier and inside and not self._is_bus(limit, command, later)
            if seen == limit.window:
                return False
        return True

    def _is_bus(self, limit: Limit, earlier: str, later: str) -> bool:
        row_bus = self.book.standard.row_bus
        same = (earlier in row_bus) == (later in row_bus)
        return self.bus_is_free and limit.delay <= 1 and limit.window == 1 and same

    def _beside(self, limit: Limit, scope: int, scopes: set[int]) -> bool:
        each = limit.within // limit.size
        return any(other != scope and other // each == scope // each for other in scopes)

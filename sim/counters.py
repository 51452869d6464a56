"""What the engine's counters mean: from one lane's row of integers to a `ChannelResult`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nearbank.sim import vm
from nearbank.sim.layout import FIXED_REASONS, Ints, uses_bank
from nearbank.sim.result import ChannelResult
from nearbank.sim.rules import RuleBook
from nearbank.sim.standard import Row

_Key = tuple[str, str]


@dataclass(frozen=True)
class Meaning:
    """`slots` has the first counter of every (command, MAC format); `waits` the reasons of the known units."""

    book: RuleBook
    slots: Mapping[_Key, int]
    waits: tuple[str, ...]

    def channel_result(self, count: Ints, channels: tuple[int, ...], cycles: int) -> ChannelResult:
        """The counts of these channels over so many cycles."""
        values = count.tolist()
        groups = {key: self._groups(values, key) for key in self.slots}
        issued = {key: sum(own) for key, own in groups.items() if any(own)}
        accesses = sum(n * self.book.reach[name] for (name, _), n in issued.items() if self._accesses(name))
        return ChannelResult(
            channels=channels,
            cycles=cycles,
            commands=issued,
            row_hits=values[vm.ROW_HITS],
            row_misses=values[vm.ROW_MISSES],
            open_cycles=values[vm.OPEN_CYCLES],
            refreshes=values[vm.REFRESHES],
            stalls=self._stalls(values),
            bank_hits=accesses - values[vm.BANK_MISSES],
            bank_misses=values[vm.BANK_MISSES],
            open_bank_cycles=values[vm.OPEN_BANK_CYCLES],
            group_commands={key: groups[key] for key in issued if uses_bank(self.book, key[0])},
        )

    def _groups(self, values: list[int], key: _Key) -> tuple[int, ...]:
        """How often the command was issued, by the first bank group it reaches; all in one if it is told no bank."""
        first = vm.FIXED_COUNTERS + self.slots[key]
        return tuple(
            values[first : first + (self.book.banks // self.book.group if uses_bank(self.book, key[0]) else 1)]
        )

    def _accesses(self, name: str) -> bool:
        return self.book.specs[name].row is Row.OPEN

    def _stalls(self, values: list[int]) -> dict[str, int]:
        limits = [limit.name for limit in self.book.limits]
        spare = [""] * (vm.MAX_UNITS - len(self.waits))
        names = [*FIXED_REASONS, *self.waits, *spare, *limits]
        stalls: dict[str, int] = {}
        for name, cycles in zip(names, values[-len(names) :], strict=True):
            if cycles:
                stalls[name] = stalls.get(name, 0) + cycles
        return stalls

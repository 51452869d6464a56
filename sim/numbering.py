"""Numbers for what programs name: units, jobs, labels, counters of commands, sets of commands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from nearbank.sim import vm
from nearbank.sim.layout import Ints, uses_bank
from nearbank.sim.rules import RuleBook

_K = TypeVar("_K")


@dataclass
class Numbering:
    """Numbers are given in the order in which names come, from 0; `slots` are where a command's counters begin."""

    book: RuleBook
    units: dict[str, int] = field(default_factory=dict)
    jobs: dict[tuple[str, str], int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=lambda: {"": 0})
    bodies: dict[frozenset[tuple[str, str]], int] = field(default_factory=dict)
    slots: dict[tuple[str, str], int] = field(default_factory=dict)
    slot_count: int = 0

    def __post_init__(self) -> None:
        unit = self.book.machine.mac_unit
        for name, spec in self.book.specs.items():
            for number_format in ("", *(unit.formats if unit and spec.macs else ())):
                self.slots[name, number_format] = self.slot_count
                self.slot_count += self.slots_of(name)

    def slots_of(self, name: str) -> int:
        """How many counters a command has, side by side: one a bank group if it is told a bank."""
        return self.book.banks // self.book.group if uses_bank(self.book, name) else 1

    def body_of(self, commands: Ints) -> int:
        """The number of the set of commands in some rows and of those of a refresh that may come between them."""
        names = {slot: key for key, slot in self.slots.items()}
        refresh = {(name, "") for name in self.book.refresh.commands}
        return number(self.bodies, frozenset(names[slot] for slot in commands[:, vm.B].tolist()) | refresh)


def number(numbers: dict[_K, int], key: _K) -> int:
    """The number of `key`; the next one where it has none yet."""
    return numbers.setdefault(key, len(numbers))

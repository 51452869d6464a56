"""What a DRAM standard is: a set of commands and one declarative table of timing rules.

The engine, the reference and the checker all read the same table, so a rule is written once. The tables themselves
are in `sim.standards`, one module a standard; values of the named delays come from the machine.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum

from nearbank.errors import NearbankError

# Commands of units that scale: a column of scales into the unit; a MAC that ends a group and scales its sum.
LOAD_SCALES, MAC_AND_SCALE = "LDSC", "MACSC"


class Scope(Enum):
    """Where a rule counts, and what a command reaches."""

    BANK = "bank"
    FOUR_BANKS = "four banks"
    BANK_GROUP = "bank group"
    ALL_BANKS = "all banks"
    RANK = "rank"  # also a stack id (SID) of HBM
    PSEUDO_CHANNEL = "pseudo-channel"
    CHANNEL = "channel"


class Row(Enum):
    """What a command asks of the row of every bank it reaches."""

    ANY = "any"
    CLOSED = "closed"
    OPEN = "open"  # and the open row is the one addressed


class Effect(Enum):
    """What a command does to the row of every bank it reaches."""

    NONE = "none"
    OPENS = "opens"
    CLOSES = "closes"


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """One command of a standard: what it reaches, what row state it needs and leaves, when its data are there.

    `latency` names the delays from issue until the data are at the unit beside the memory (reads) or until the
    command's work is done; `macs` is true for commands that use the MAC units; `bursts` counts column accesses over
    the channel's pins.
    """

    name: str
    reach: Scope
    row: Row = Row.ANY
    effect: Effect = Effect.NONE
    latency: str = "0"
    bursts: int = 0
    macs: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """In every `scope`, each of `later` waits `delay` after the `window`-th last of `earlier`.

    `delay` is a sum of named timing values and whole clock cycles, such as "tCWL + tBL + tWR"; a term may be taken
    off ("tCL + tBL + 2 - tCWL"), and "tRCDRD|tRCD" is the first of the two that the machine has. With scope BANK a
    command that reaches several banks counts in each of them. With `others` the rule counts in every other scope of
    that kind instead (rank to rank on one bus). A machine without the values of an `optional` rule does without the
    rule; with any other rule it is an error.
    """

    scope: Scope
    earlier: tuple[str, ...]
    later: tuple[str, ...]
    delay: str
    window: int = 1
    others: bool = False
    optional: bool = False

    def __str__(self) -> str:
        """How results name the rule, such as "ACT16→MACAB tRCD"; long lists are shortened to their first name."""
        return f"{_short(self.earlier)}→{_short(self.later)} {self.delay}"


def _short(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]}…"


@dataclass(frozen=True, slots=True)
class Change:
    """The command, to this row of a bank of this aligned run, takes the memory from one mode to another."""

    mode: str
    command: str
    row: int
    bank: int
    to: str


@dataclass(frozen=True, slots=True)
class Modes:
    """Modes of a memory: the one after power-up, the commands that only some modes allow, and what changes the mode."""

    first: str
    only_in: Mapping[str, tuple[str, ...]]
    changes: tuple[Change, ...]

    @property
    def commands(self) -> frozenset[str]:
        """All commands that look at the mode or change it."""
        return frozenset(self.only_in) | frozenset(change.command for change in self.changes)

    def allows(self, mode: str, command: str) -> bool:
        """Whether the command may issue in the mode."""
        return mode in self.only_in.get(command, (mode,))

    def after(self, mode: str, command: str, bank: int, row: int) -> str:
        """The mode after the command, whose first bank is `bank`."""
        for change in self.changes:
            if (change.mode, change.command, change.bank, change.row) == (mode, command, bank, row):
                return change.to
        return mode

    def refusal(self, mode: str, command: str) -> str:
        """Why the command may not issue, in a line."""
        return f"{command} is for {' or '.join(self.only_in[command])} mode, but the memory is in {mode} mode"


@dataclass(frozen=True, slots=True)
class Standard:
    """Commands and rules by name; `refresh` and `precharge_all` name the commands a controller refreshes with.

    `refresh_bank` refreshes one bank at a time, for machines with that refresh policy. Commands in `row_bus` have a
    command bus of their own (HBM), so that one of them and one of the others may issue in the same cycle. In a
    standard that counts half clocks only the commands in `any_edge` may issue in even cycles. `modes` says which
    commands a mode of the memory allows, where it has modes.
    """

    name: str
    commands: tuple[CommandSpec, ...]
    rules: tuple[Rule, ...]
    precharge_all: str
    refresh: str
    refresh_bank: str = ""
    row_bus: tuple[str, ...] = ()
    any_edge: tuple[str, ...] = ()
    modes: Modes | None = None

    def command(self, name: str) -> CommandSpec:
        """The command of that name; `NearbankError` lists the known ones."""
        for spec in self.commands:
            if spec.name == name:
                return spec
        known = ", ".join(c.name for c in self.commands)
        raise NearbankError(f"standard {self.name} has no command {name!r}; it has: {known}")


def delay_names(delay: str) -> list[str]:
    """The timing values a delay expression names, alternatives included."""
    return [name for _, term in _terms(delay) for name in term.split("|") if not name.isdigit()]


def missing_names(delay: str, known: Collection[str]) -> list[str]:
    """The terms of a delay for which none of the alternatives is known."""
    return [term for _, term in _terms(delay) if not any(n.isdigit() or n in known for n in term.split("|"))]


def delay_cycles(delay: str, cycles: Mapping[str, int]) -> int:
    """The delay in clock cycles, given the named values in cycles; never less than 0."""
    return max(sum(sign * _term_cycles(term, cycles) for sign, term in _terms(delay)), 0)


def _term_cycles(term: str, cycles: Mapping[str, int]) -> int:
    """The value of the first alternative that is a number or known."""
    for name in term.split("|"):
        if name.isdigit():
            return int(name)
        if name in cycles:
            return cycles[name]
    raise NearbankError(f"timing {term} is missing; the delay rules need it")


def _terms(delay: str) -> list[tuple[int, str]]:
    """The terms of a sum with their signs: "tCL + 2 - tCWL" is [(1, "tCL"), (1, "2"), (-1, "tCWL")]."""
    signed = delay.replace("-", "+ -").split("+")
    parts = [part.strip() for part in signed if part.strip()]
    return [(-1, part[1:].strip()) if part.startswith("-") else (1, part) for part in parts]

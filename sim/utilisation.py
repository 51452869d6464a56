"""How busy a machine's parts were: command bus, pins, banks and MAC units, exactly, over a run or a bin of its profile.

Each part has busy and available time in its own unit, so that bins add up to the run. A roofline needs the same counts:
multiply-accumulates done, bytes over the pins, and the most of either that the machine can do in a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine
from nearbank.sim.result import ChannelResult, SimResult
from nearbank.sim.rules import RuleBook, rulebook


@dataclass(frozen=True, slots=True)
class Busy:
    """Busy and available time of a part, in cycles times buses, banks or units, or in bits for the pins."""

    busy: Fraction
    available: Fraction

    @property
    def share(self) -> float:
        return float(self.busy / self.available) if self.available else 0.0


def utilisation(parts: Sequence[ChannelResult], machine: Machine) -> dict[str, Busy]:
    """By part, over the channels and cycles of `parts`: `result.channels`, or a bin of `result.profile.bins`.

    A bank is busy while it has an open row, a MAC unit for the cycles that its command keeps the next one waiting.
    """
    book = rulebook(machine)
    cycles = sum(part.cycles * len(part.channels) for part in parts)
    counts: dict[str, tuple[Fraction | int, Fraction | int]] = {
        "command bus": (sum(part.issued * len(part.channels) for part in parts), cycles),
        "MAC units": (sum(_mac_cycles(part, book) * len(part.channels) for part in parts), cycles * book.banks),
        "open banks": (sum(part.open_bank_cycles * len(part.channels) for part in parts), cycles * book.banks),
    }
    if machine.pins is not None:
        bits = 8 * pin_bytes(parts, machine)
        counts["pins"] = (bits, Fraction(machine.pins.bits_per_s * cycles * machine.tck_ps, 10**12))
    return {name: Busy(Fraction(busy), Fraction(available)) for name, (busy, available) in counts.items()}


def _mac_cycles(part: ChannelResult, book: RuleBook) -> int:
    """Cycles in which each bank's unit was busy, added up over the banks."""
    macs = ((name, n) for (name, _), n in part.commands.items() if book.specs[name].macs)
    return sum(n * book.reach[name] * mac_interval(book, name) for name, n in macs)


def mac_interval(book: RuleBook, name: str) -> int:
    """Cycles from one such command to the next at the earliest."""
    own = (x.delay for x in book.limits if name in x.earlier and name in x.later and x.window == 1 and not x.others)
    return max(own, default=1) or 1


def pin_bytes(parts: Sequence[ChannelResult], machine: Machine) -> int:
    """Bytes over the pins of all channels."""
    specs = rulebook(machine).specs
    bursts = sum(n * specs[name].bursts * len(p.channels) for p in parts for (name, _), n in p.commands.items())
    return bursts * machine.organization.column_bytes


@dataclass(frozen=True, slots=True)
class Roof:
    """A machine's limits: multiply-accumulates a second in one format, bytes a second over the pins."""

    format: str
    macs_per_s: float
    bytes_per_s: float


def roof(machine: Machine, weights: str) -> Roof:
    """The limits for weights in that format; `NearbankError` when the machine has no units or pins for it."""
    book = rulebook(machine)
    lanes = machine.mac_unit.formats.get(weights) if machine.mac_unit else None
    if lanes is None or "MACAB" not in book.specs or machine.pins is None:
        raise NearbankError(f"machine {machine.name} has no roofline for {weights!r}: it needs units, MACAB and pins")
    channels = machine.organization.channels
    a_command = Fraction(book.banks * lanes.per_step, lanes.serial)
    seconds = Fraction(mac_interval(book, "MACAB") * machine.tck_ps, 10**12)
    return Roof(weights, float(channels * a_command / seconds), channels * machine.pins.bits_per_s / 8)


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a run lies under a roof; padding counts as work."""

    macs: int
    bytes: int
    time_ps: int

    @property
    def macs_per_byte(self) -> float | None:
        return self.macs / self.bytes if self.bytes else None

    @property
    def macs_per_s(self) -> float:
        return self.macs * 1e12 / self.time_ps


def placed(result: SimResult, machine: Machine) -> Placed:
    """The run's multiply-accumulates, bytes over the pins and time."""
    book = rulebook(machine)
    formats = machine.mac_unit.formats if machine.mac_unit else {}
    macs = Fraction(0)
    for (name, weights), n in result.commands().items():
        if book.specs[name].macs and weights in formats:
            macs += Fraction(n * book.reach[name] * formats[weights].per_step, formats[weights].serial)
    return Placed(int(macs), pin_bytes(result.channels, machine), result.time_ps)

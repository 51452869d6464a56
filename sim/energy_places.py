"""Where a run's energy goes: by chip, channel and bank group, adding up to the run's total to the femtojoule.

A bank group has what its banks do: rows, columns, MACs, its share of a refresh. What a channel has once (pins, global
buffer, standby) is the channel's own, and units beside the memory are nobody's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nearbank.sim.energy import Activity, EnergyReport, Exact, banks_reached, exact_energy, rounded
from nearbank.sim.machine import Machine
from nearbank.sim.result import ChannelResult, SimResult
from nearbank.sim.rules import RuleBook, rulebook

_NOTHING: Mapping[tuple[str, str], int] = {}


@dataclass(frozen=True)
class Place:
    """A part of the machine and its energy; `group` None is what the channel has once, `channel` None the units'.

    `chip` is None where the machine file does not say how many channels a chip has.
    """

    chip: int | None
    channel: int | None
    group: int | None
    energy: EnergyReport


@dataclass(frozen=True)
class Places:
    """Every place once, by channel and group; the sum over any split is the run's energy."""

    places: tuple[Place, ...]

    def by_chip(self) -> dict[int | None, int]:
        """Femtojoules by chip; None holds what belongs to no known chip."""
        return self._sums("chip")

    def by_channel(self) -> dict[int | None, int]:
        """Femtojoules by channel; None holds the units beside the memory."""
        return self._sums("channel")

    def by_group(self, channel: int | None) -> dict[int | None, int]:
        """Femtojoules by bank group of one channel; None holds what the channel has once, or the units."""
        return {p.group: p.energy.total_fj for p in self.places if p.channel == channel}

    def _sums(self, name: str) -> dict[int | None, int]:
        sums: Counter[int | None] = Counter()
        for place in self.places:
            sums[getattr(place, name)] += place.energy.total_fj
        return dict(sums)


def energy_by_place(result: SimResult, machine: Machine) -> Places:
    """The run's energy, place by place."""
    book = rulebook(machine)
    found = [*_memory(result, machine, book), ((None, None, None), _units(result, machine))]
    reports = rounded([exact for _, exact in found])
    return Places(tuple(Place(*where, report) for (where, _), report in zip(found, reports, strict=True)))


_Where = tuple[int | None, int | None, int | None]


def _memory(result: SimResult, machine: Machine, book: RuleBook) -> Iterator[tuple[_Where, Exact]]:
    alike = {channel: part for part in result.channels for channel in part.channels}
    known = {id(part): [exact_energy(a, machine) for a in _activities(part, result, book)] for part in result.channels}
    per_chip = machine.organization.channels_per_chip
    for channel in sorted(alike):
        chip = None if per_chip is None else channel // per_chip
        for number, exact in enumerate(known[id(alike[channel])]):
            yield (chip, channel, number - 1 if number else None), exact


def _activities(part: ChannelResult, result: SimResult, book: RuleBook) -> Iterator[Activity]:
    """One channel's own activity, then that of each of its bank groups."""
    tck = result.tck_ps
    yield Activity(part.commands, _NOTHING, part.open_cycles * tck, part.precharged_cycles * tck, 0, {})
    for group in range(book.banks // book.group):
        yield Activity(_NOTHING, _banks_in(part, group, book), 0, 0, 0, {})


def _banks_in(part: ChannelResult, group: int, book: RuleBook) -> dict[tuple[str, str], int]:
    """Banks of the group that the commands reached."""
    everywhere = {key: n for key, n in part.commands.items() if key not in part.group_commands}
    groups = book.banks // book.group
    banks = {key: n // groups for key, n in banks_reached(everywhere, book).items()}
    for (name, weights), counts in part.group_commands.items():
        wide = max(book.reach[name] // book.group, 1)
        began = sum(counts[first] for first in range(group - group % wide, group + 1))
        banks[name, weights] = began * min(book.reach[name], book.group)
    return banks


def _units(result: SimResult, machine: Machine) -> Exact:
    """The units beside the memory."""
    return exact_energy(Activity(_NOTHING, _NOTHING, 0, 0, result.time_ps, result.unit_busy_ps()), machine)

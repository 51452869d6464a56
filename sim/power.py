"""Power over time: the energy model applied to the parts of a run.

A run's profile gives all of it, however long, in bins of equal length (`profile_power`); recorded commands give any
windows of what was recorded (`power`). Either way windows add up: every command counts in the window in which it
issues, standby by the cycles of the window with and without an open row, and rounding loses nothing. Units beside the
memory are not part of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from nearbank.errors import NearbankError
from nearbank.sim.energy import Activity, EnergyReport, banks_reached, exact_energy, rounded
from nearbank.sim.engine import Issued
from nearbank.sim.machine import Machine
from nearbank.sim.result import ChannelResult, SimResult
from nearbank.sim.rules import rulebook
from nearbank.sim.standard import Effect


@dataclass(frozen=True, slots=True)
class Window:
    """Energy of `cycles` cycles from `first` on, summed over the channels looked at."""

    first: int
    cycles: int
    time_ps: int
    energy: EnergyReport

    @property
    def power_nw(self) -> Fraction:
        """Average power in nanowatts, exactly: times the window's time it is the window's energy."""
        return Fraction(self.energy.total_fj * 10**6, self.time_ps)


def profile_power(result: SimResult, machine: Machine) -> tuple[Window, ...]:
    """The power of the whole run, a window for every bin of its profile; needs a run with `bins`."""
    if result.profile is None:
        raise NearbankError("the run has no profile; play it with bins, such as simulate(machine, programs, bins=512)")
    spans = list(pairwise(result.profile.edges))
    activities = [
        _of_bin(parts, machine, end - begin) for (begin, end), parts in zip(spans, result.profile.bins, strict=True)
    ]
    return _windows([(begin, end - begin) for begin, end in spans], activities, machine)


def _of_bin(parts: tuple[ChannelResult, ...], machine: Machine, cycles: int) -> Activity:
    commands: Counter[tuple[str, str]] = Counter()
    for part in parts:
        commands.update({key: n * len(part.channels) for key, n in part.commands.items()})
    open_cycles = sum(part.open_cycles * len(part.channels) for part in parts)
    channels = sum(len(part.channels) for part in parts)
    return _activity(commands, open_cycles, cycles * channels, machine)


def _activity(commands: Counter[tuple[str, str]], open_cycles: int, cycles: int, machine: Machine) -> Activity:
    """Of the memory alone: units have neither time nor work."""
    tck = machine.tck_ps
    banks = banks_reached(commands, rulebook(machine))
    return Activity(commands, banks, open_cycles * tck, (cycles - open_cycles) * tck, 0, {})


def _windows(spans: Sequence[tuple[int, int]], activities: Sequence[Activity], machine: Machine) -> tuple[Window, ...]:
    reports = rounded([exact_energy(activity, machine) for activity in activities])
    return tuple(
        Window(first, cycles, cycles * machine.tck_ps, report)
        for (first, cycles), report in zip(spans, reports, strict=True)
    )


def power(machine: Machine, issued: Iterable[Issued], first: int, last: int, window: int) -> tuple[Window, ...]:
    """Windows of `window` cycles from `first` to `last`, from all commands issued since the machine was idle.

    The commands are those of `Player.record` from cycle 0 (or from a cycle without open rows); each of its channels
    counts once. The last window may be shorter.
    """
    if not 0 <= first < last or window < 1:
        raise NearbankError(f"windows of {window} cycles from {first} to {last}; expected at least one cycle in order")
    starts = range(first, last, window)
    counts: list[Counter[tuple[str, str]]] = [Counter() for _ in starts]
    active = [0] * len(starts)
    channels: dict[int, list[Issued]] = {}
    for command in issued:
        channels.setdefault(command.channel, []).append(command)
        if first <= command.cycle < last:
            counts[(command.cycle - first) // window][command.command, command.format] += 1
    for commands in channels.values():
        for begin, end in _open_spans(machine, commands, last):
            _spread(active, begin, end, first, window)
    spans = [(start, min(start + window, last) - start) for start in starts]
    parts = zip(counts, active, spans, strict=True)
    return _windows(spans, [_activity(n, busy, size * len(channels), machine) for n, busy, (_, size) in parts], machine)


def _open_spans(machine: Machine, commands: list[Issued], last: int) -> Iterable[tuple[int, int]]:
    """Spans of cycles in which at least one row is open: after the cycle that opens it, up to the one that closes."""
    book = rulebook(machine)
    opened: set[int] = set()
    since = 0
    for command in commands:
        effect = book.specs[command.command].effect
        start = book.first_bank(command.command, command.bank)
        banks = set(range(start, start + book.reach[command.command]))
        before = bool(opened)
        if effect is Effect.OPENS:
            opened |= banks
        elif effect is Effect.CLOSES:
            opened -= banks
        if opened and not before:
            since = command.cycle + 1
        elif before and not opened:
            yield since, command.cycle + 1
    if opened:
        yield since, last


def _spread(active: list[int], begin: int, end: int, first: int, window: int) -> None:
    """Add the cycles from `begin` to `end` to the windows that they fall into."""
    begin, end = max(begin, first), min(end, first + window * len(active))
    while begin < end:
        at = (begin - first) // window
        stop = min(end, first + (at + 1) * window)
        active[at] += stop - begin
        begin = stop


def average_nw(windows: tuple[Window, ...]) -> Fraction:
    """Average power over all windows."""
    return Fraction(sum(w.energy.total_fj for w in windows) * 10**6, sum(w.time_ps for w in windows))


def peak_nw(windows: tuple[Window, ...]) -> Fraction:
    """The greatest power of any window."""
    return max(w.power_nw for w in windows)

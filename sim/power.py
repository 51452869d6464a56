"""Power over time: the energy model applied to equal windows of the issued commands.

Windows add up to the whole: every command counts in the window in which it issues, standby by the cycles of the
window with and without an open row. Units beside the memory are not part of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from nearbank.errors import NearbankError
from nearbank.sim.energy import Activity, EnergyReport, energy_of
from nearbank.sim.engine import Issued
from nearbank.sim.machine import Machine
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
    def power_nw(self) -> int:
        """Average power in nanowatts: fJ / ps is mW."""
        return self.energy.total_fj * 10**6 // self.time_ps


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
            counts[(command.cycle - first) // window][command.command, ""] += 1
    for commands in channels.values():
        for begin, end in _open_spans(machine, commands, last):
            _spread(active, begin, end, first, window)
    sizes = [min(start + window, last) - start for start in starts]
    return tuple(
        _window(machine, start, size, count, busy, len(channels))
        for start, size, count, busy in zip(starts, sizes, counts, active, strict=True)
    )


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


def _window(
    machine: Machine, first: int, cycles: int, counts: Counter[tuple[str, str]], active: int, channels: int
) -> Window:
    tck = machine.tck_ps
    what = Activity(counts, active * tck, (cycles * channels - active) * tck, cycles * tck, {})
    return Window(first, cycles, cycles * tck, energy_of(what, machine))


def average_nw(windows: tuple[Window, ...]) -> int:
    """Average power over all windows."""
    return sum(w.energy.total_fj for w in windows) * 10**6 // sum(w.time_ps for w in windows)


def peak_nw(windows: tuple[Window, ...]) -> int:
    """The greatest power of any window."""
    return max(w.power_nw for w in windows)

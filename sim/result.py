"""What a simulation found: cycles, counts, and where the time went. Energy is made of it in `sim.energy`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ChannelResult:
    """One of the identical `channels`; all counts are per channel.

    `commands` counts by (command, MAC format or ""). A row hit is a column command whose rows were all accessed
    before since they were opened, a row miss any other column command. `open_cycles` are those in which at least one
    row was open. `stalls` has every idle cycle of the command bus under what held the next command: a timing rule by
    its delay, "refresh", "wait UNIT", "clock edge", or "end of program".

    Bank hits and misses are the same seen by each bank that a command reaches: a MACAB over 16 banks is 16 accesses.
    `open_bank_cycles` adds up the open banks of every cycle. `group_commands` splits those of `commands` that are told
    a bank by the bank group, in order, of the first bank they reach.
    """

    channels: tuple[int, ...]
    cycles: int
    commands: Mapping[tuple[str, str], int]
    row_hits: int
    row_misses: int
    open_cycles: int
    refreshes: int
    stalls: Mapping[str, int]
    bank_hits: int = 0
    bank_misses: int = 0
    open_bank_cycles: int = 0
    group_commands: Mapping[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)

    @property
    def issued(self) -> int:
        """Commands issued, each in a cycle of its own."""
        return sum(self.commands.values())

    @property
    def idle_cycles(self) -> int:
        """Cycles without a command; the stalls add up to it."""
        return self.cycles - self.issued

    @property
    def precharged_cycles(self) -> int:
        """Cycles in which no row was open."""
        return self.cycles - self.open_cycles


@dataclass(frozen=True, slots=True)
class Profile:
    """A run over time: bin i has the counts of cycles `edges[i]` to `edges[i + 1] - 1`, by group of channels.

    Bins are exact, not samples: each of their counts adds up to that of the run.
    """

    edges: tuple[int, ...]
    bins: tuple[tuple[ChannelResult, ...], ...]


@dataclass(frozen=True, slots=True)
class SimResult:
    """The whole machine's run. `time_ps` is exact: 64 bits of picoseconds last 106 days, longer runs are refused.

    `program_ends` has the end cycle of each program in order; `label_cycles` splits the wall time by mark and adds up
    to `cycles`; `jobs` has picoseconds and number of the jobs by (unit, job).
    """

    machine: str
    machine_digest: str
    tck_ps: int
    cycles: int
    program_ends: tuple[int, ...]
    channels: tuple[ChannelResult, ...]
    label_cycles: Mapping[str, int]
    jobs: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    profile: Profile | None = field(default=None, repr=False)

    @property
    def time_ps(self) -> int:
        return self.cycles * self.tck_ps

    def commands(self) -> Counter[tuple[str, str]]:
        """Commands of all channels by (command, MAC format or "")."""
        total: Counter[tuple[str, str]] = Counter()
        for group in self.channels:
            total.update({key: n * len(group.channels) for key, n in group.commands.items()})
        return total

    def command_counts(self) -> Counter[str]:
        """Commands of all channels by name."""
        total: Counter[str] = Counter()
        for (name, _), n in self.commands().items():
            total[name] += n
        return total

    @property
    def row_hits(self) -> int:
        return sum(group.row_hits * len(group.channels) for group in self.channels)

    @property
    def row_misses(self) -> int:
        return sum(group.row_misses * len(group.channels) for group in self.channels)

    @property
    def row_hit_rate(self) -> float | None:
        """Hits among column commands; None if there were none."""
        accesses = self.row_hits + self.row_misses
        return self.row_hits / accesses if accesses else None

    @property
    def bank_hit_rate(self) -> float | None:
        """Hits among the banks' own column accesses, as their row buffers see them; None if there were none."""
        hits = sum(group.bank_hits * len(group.channels) for group in self.channels)
        misses = sum(group.bank_misses * len(group.channels) for group in self.channels)
        return hits / (hits + misses) if hits + misses else None

    @property
    def refreshes(self) -> int:
        return sum(group.refreshes * len(group.channels) for group in self.channels)

    def stalls(self) -> Counter[str]:
        """Idle cycles of all channels by reason."""
        total: Counter[str] = Counter()
        for group in self.channels:
            total.update({reason: n * len(group.channels) for reason, n in group.stalls.items()})
        return total

    def unit_busy_ps(self) -> Counter[str]:
        """Busy picoseconds of each unit beside the memory."""
        total: Counter[str] = Counter()
        for (unit, _), (busy, _) in self.jobs.items():
            total[unit] += busy
        return total

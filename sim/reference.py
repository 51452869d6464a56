"""The slow twin of the engine: plain Python, one clock tick at a time, nothing skipped. Only tests use it.

Every tick, every channel group (in order of streams) first passes the starts, waits and marks it stands at, then puts
at most one command on its bus: one of the refresh's if a refresh is due or going on, else the program's next. A
command goes when every rule of the table, looked at over the whole history, lets it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine
from nearbank.sim.program import Command, Mark, Node, Program, Start, Wait, unrolled
from nearbank.sim.rules import Limit, RuleBook, rulebook
from nearbank.sim.standard import Effect, Row


@dataclass(frozen=True, slots=True)
class Played:
    """One issued command; `banks` are those it reaches."""

    cycle: int
    name: str
    bank: int
    row: int
    column: int
    banks: range


def ready_cycle(history: list[Played], limit: Limit, banks: range) -> int | None:
    """The first cycle at which this rule lets a later command to these banks go; None if it says nothing about it."""
    earlier = [p for p in history if p.name in limit.earlier]
    own = _scopes(limit, banks)
    if limit.others:
        earlier = [p for p in earlier if _on_another(limit, own, _scopes(limit, p.banks))]
        return max((p.cycle + limit.delay for p in earlier), default=None)
    if limit.window == 1:
        return max((p.cycle + limit.delay for p in earlier if _meet(own, _scopes(limit, p.banks))), default=None)
    return max((bound for scope in own for bound in _windowed(limit, earlier, scope)), default=None)


def _windowed(limit: Limit, earlier: list[Played], scope: int) -> Iterator[int]:
    cycles = sorted(p.cycle for p in earlier if scope in _scopes(limit, p.banks))
    if len(cycles) >= limit.window:
        yield cycles[-limit.window] + limit.delay


def _scopes(limit: Limit, banks: range) -> range:
    """The scopes of the rule that these banks lie in."""
    return range(banks.start // limit.size, (banks.stop - 1) // limit.size + 1)


def _meet(a: range, b: range) -> bool:
    return a.start < b.stop and b.start < a.stop


def _on_another(limit: Limit, a: range, b: range) -> bool:
    """Both in one scope each, not the same, of one group (rank to rank says nothing of commands to all ranks)."""
    per_group = limit.within // limit.size
    return len(a) == len(b) == 1 and a != b and a.start // per_group == b.start // per_group


@dataclass
class Channel:
    """One group of identical channels: its history, its rows, and its place in the program."""

    book: RuleBook
    history: list[Played] = field(default_factory=list)
    rows: list[int | None] = field(default_factory=list)
    touched: list[bool] = field(default_factory=list)
    previous: int = -1
    floor: int = 0
    floor_unit: str = ""
    due: int = 0
    region: int = 0
    refresh: list[tuple[str, int, int]] = field(default_factory=list)
    nodes: list[tuple[Node, tuple[int, ...]]] = field(default_factory=list)
    at: int = 0
    met: list[Node] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    group_counts: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    stalls: Counter[str] = field(default_factory=Counter)
    hits: int = 0
    misses: int = 0
    bank_hits: int = 0
    bank_misses: int = 0
    open_cycles: int = 0
    open_bank_cycles: int = 0
    refreshes: int = 0
    mode: str = ""
    log: list[Played] = field(default_factory=list)
    bounds: dict[tuple[str, int, int, str], tuple[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = [None] * self.book.banks
        self.touched = [False] * self.book.banks
        self.due = self.book.refresh.interval or 1 << 61
        self.mode = self.book.standard.modes.first if self.book.standard.modes else ""

    @property
    def node(self) -> Node | None:
        return self.nodes[self.at][0] if self.at < len(self.nodes) else None

    @property
    def now(self) -> int:
        """The first cycle at which the program could issue its next command."""
        return max(self.previous + 1, self.floor)

    @property
    def data_ready(self) -> int:
        return max((p.cycle + self.book.latency[p.name] for p in self.history), default=0)

    def banks(self, name: str, bank: int) -> range:
        first = bank - bank % self.book.reach[name]
        return range(first, first + self.book.reach[name])

    def bound(self, name: str, bank: int, start: int, reason: str) -> tuple[int, str]:
        """The first cycle from `start` on that every rule allows, and what held the command longest.

        Looked up once per history: only a command that is issued can change it.
        """
        question = name, bank, start, reason
        if question not in self.bounds:
            self.bounds[question] = self.look_up(*question)
        return self.bounds[question]

    def look_up(self, name: str, bank: int, start: int, reason: str) -> tuple[int, str]:
        for limit in self.book.limits:
            ready = ready_cycle(self.history, limit, self.banks(name, bank)) if name in limit.later else None
            if ready is not None and ready > start:
                start, reason = ready, limit.name
        if self.book.is_on_clock(name) and start % 2 == 0:
            start, reason = start + 1, "clock edge" if reason == "end of program" else reason
        return start, reason

    def tick(self, now: int) -> None:
        """Put at most one command on the bus."""
        if not self.refresh and now >= self.due:
            self.refresh = self.plan_refresh()
        if self.refresh:
            self.tick_refresh(now)
        elif isinstance(self.node, Command) and now >= self.now:
            self.tick_program(now, self.node, self.nodes[self.at][1])

    def plan_refresh(self) -> list[tuple[str, int, int]]:
        """The commands of one refresh; see `sim.rules.RefreshPlan`."""
        plan, book = self.book.refresh, self.book
        region = range(self.region, self.region + plan.region)
        closes = [first for first in region[:: book.reach[plan.precharge]] if self.any_open(plan.precharge, first)]
        reopened = [b for first in closes for b in self.banks(plan.precharge, first) if self.rows[b] is not None]
        held = [self.rows[b] or 0 for b in reopened]
        opens = self.plan_opens(reopened)
        if plan.activate_all and len(reopened) == book.banks and len(set(held)) == 1:
            opens = [(plan.activate_all, 0, held[0])]
        refreshes = [(plan.refresh, first, 0) for first in region[:: book.reach[plan.refresh]]]
        return [*((plan.precharge, first, 0) for first in closes), *refreshes, *opens]

    def plan_opens(self, reopened: list[int]) -> list[tuple[str, int, int]]:
        """Rank by rank where one command opens the rank's banks and all held one row, else bank by bank."""
        plan, opens = self.book.refresh, []
        for bank in reopened:
            rank = self.banks(plan.activate_rank, bank) if plan.activate_rank else range(0)
            whole = bool(rank) and set(rank) <= set(reopened) and len({self.rows[b] for b in rank}) == 1
            if not whole:
                opens.append((plan.activate, bank, self.rows[bank] or 0))
            elif bank == rank.start:
                opens.append((plan.activate_rank, bank, self.rows[bank] or 0))
        return opens

    def any_open(self, name: str, bank: int) -> bool:
        return any(self.rows[b] is not None for b in self.banks(name, bank))

    def tick_refresh(self, now: int) -> None:
        name, bank, row = self.refresh[0]
        start = max(self.previous + 1, self.due)
        if now < self.bound(name, bank, start, "")[0]:
            return
        self.issue(now, name, "", bank, row, 0, "refresh")
        self.refreshes += name == self.book.refresh.refresh
        self.refresh.pop(0)
        if not self.refresh:
            self.due += self.book.refresh.interval
            self.region = (self.region + self.book.refresh.region) % self.book.banks

    def tick_program(self, now: int, node: Command, counters: tuple[int, ...]) -> None:
        banked = self.book.reach[node.name] < self.book.banks
        bank = node.bank.at(counters) if banked else 0
        row, column = node.row.at(counters), node.column.at(counters)
        start, reason = self.previous + 1, "end of program"
        if self.floor > start:
            start, reason = self.floor, f"wait {self.floor_unit}"
        earliest, reason = self.bound(node.name, bank, start, reason)
        if now < earliest:
            return
        self.check_rows(node.name, bank, row)
        self.check_mode(node.name, bank, row)
        self.issue(now, node.name, node.format, bank, row, column, reason)
        self.at += 1

    def check_mode(self, name: str, bank: int, row: int) -> None:
        """The mode allows the command; then it is the mode after it. A refresh asks for no mode."""
        modes = self.book.standard.modes
        if modes is None:
            return
        if not modes.allows(self.mode, name):
            raise NearbankError(modes.refusal(self.mode, name))
        self.mode = modes.after(self.mode, name, self.banks(name, bank).start, row)

    def check_rows(self, name: str, bank: int, row: int) -> None:
        spec, banks = self.book.specs[name], self.banks(name, bank)
        if spec.row is Row.CLOSED and any(self.rows[b] is not None for b in banks):
            raise NearbankError(f"{name} needs its banks closed, but one has an open row")
        if spec.row is not Row.OPEN:
            return
        if any(self.rows[b] is None for b in banks):
            raise NearbankError(f"{name} needs an open row, but one of its banks has none")
        if any(self.rows[b] != row for b in banks):
            raise NearbankError(f"{name} addresses a row that is not the open one")
        hit = all(self.touched[b] for b in banks)
        self.hits += hit
        self.misses += not hit
        for b in banks:
            self.bank_hits += self.touched[b]
            self.bank_misses += not self.touched[b]
            self.touched[b] = True

    def issue(self, now: int, name: str, fmt: str, bank: int, row: int, column: int, reason: str) -> None:
        spec, banks = self.book.specs[name], self.banks(name, bank)
        opens = spec.effect is Effect.OPENS
        kept_row = row if opens or spec.row is Row.OPEN else 0
        self.account(now, reason)
        played = Played(now, name, bank, kept_row, column, banks)
        longest = max([*(limit.delay for limit in self.book.limits), *self.book.latency.values()])
        self.history = [*(p for p in self.history if p.cycle > now - longest), played]
        self.bounds.clear()
        self.log.append(played)
        self.counts[name, fmt] += 1
        self.group_counts[name, fmt, bank // self.book.group] += 1
        if spec.effect is not Effect.NONE:
            for b in banks:
                self.rows[b], self.touched[b] = (row if opens else None), False

    def account(self, now: int, reason: str) -> None:
        """The cycles from the last command to this one: idle for that reason, active if a row is open."""
        self.stalls[reason] += now - self.previous - 1
        self.count_open(now - self.previous)
        self.previous = now

    def count_open(self, cycles: int) -> None:
        """So many cycles went by with the rows as they are."""
        banks = sum(row is not None for row in self.rows)
        self.open_cycles += cycles * (banks > 0)
        self.open_bank_cycles += cycles * banks

    def finish(self, end: int) -> None:
        """Wait for the program's end."""
        self.stalls["end of program"] += end - 1 - self.previous
        self.count_open(end - 1 - self.previous)
        self.previous, self.floor = end - 1, end


class Reference:
    """A machine that plays programs tick by tick; one `Channel` per stream, the same in every program."""

    def __init__(self, machine: Machine, groups: int = 1) -> None:
        self.book = rulebook(machine)
        self.tck_ps = machine.tck_ps
        self.channels = [Channel(self.book) for _ in range(groups)]
        self.free_ps: Counter[str] = Counter()
        self.jobs: Counter[tuple[str, str]] = Counter()
        self.labels: Counter[str] = Counter()
        self.now = 0
        self.ends: list[int] = []

    def play(self, program: Program) -> int:
        """Play one more program, its stream i on channel group i; returns the cycle at which it ends."""
        active = self.channels[: len(program.streams)]
        for channel, stream in zip(active, program.streams, strict=True):
            channel.nodes, channel.at, channel.met = list(unrolled(stream.body)), 0, []
        meetings: list[list[tuple[int, int]]] = []
        marks: list[tuple[int, str]] = [(self.now, "")]
        while True:
            while any(self.pass_meetings(channel, active, meetings, marks) for channel in active):
                pass  # what one channel has passed may let another one go on
            if self.ended(active):
                break
            for channel in self.channels:
                channel.tick(self.now)
            self.now += 1
        self.close(marks)
        return self.now

    def ended(self, active: list[Channel]) -> bool:
        """Every node done, no refresh going on, data there, units idle."""
        if any(c.node is not None for c in active) or any(c.refresh for c in self.channels):
            return False
        busy = max([-(-free // self.tck_ps) for free in self.free_ps.values()], default=0)
        return self.now >= max([busy, *(max(c.now, c.data_ready) for c in self.channels)])

    def close(self, marks: list[tuple[int, str]]) -> None:
        self.ends.append(self.now)
        for channel in self.channels:
            channel.finish(self.now)
        for (begin, label), (end, _) in zip(marks, [*marks[1:], (self.now, "")], strict=True):
            self.labels[label] += end - begin

    def pass_meetings(
        self,
        channel: Channel,
        active: list[Channel],
        meetings: list[list[tuple[int, int]]],
        marks: list[tuple[int, str]],
    ) -> bool:
        """Go on over the starts, waits and marks that the channel stands at, as far as it may; whether it did."""
        before = channel.at
        while isinstance(channel.node, Start | Wait | Mark):
            node = channel.node
            if isinstance(node, Wait) and not self.wait(channel, node, active, meetings):
                break
            if len(channel.met) == len(meetings):
                meetings.append([])
            here = meetings[len(channel.met)]
            here.append((channel.now, channel.data_ready))
            channel.met.append(node)
            channel.at += 1
            if len(here) == len(active):
                self.all_passed(node, here, marks)
        return channel.at > before

    def all_passed(self, node: Node, here: list[tuple[int, int]], marks: list[tuple[int, str]]) -> None:
        if isinstance(node, Start):
            begin = max(max(both) for both in here) * self.tck_ps
            self.free_ps[node.unit] = max(begin, self.free_ps[node.unit]) + node.duration_ps
            self.jobs[node.unit, node.job] += node.duration_ps
        elif isinstance(node, Mark):
            marks.append((max(now for now, _ in here), node.label))

    def wait(self, channel: Channel, node: Wait, active: list[Channel], meetings: list[list[tuple[int, int]]]) -> bool:
        """Whether the end of every job queued before this wait is known; then the channel's floor rises to it."""
        starts = [at for at, start in enumerate(channel.met) if isinstance(start, Start) and start.unit == node.unit]
        if any(len(meetings[at]) < len(active) for at in starts):
            return False
        free = -(-self.free_ps[node.unit] // self.tck_ps)
        if free > channel.floor:
            channel.floor, channel.floor_unit = free, node.unit
        return True

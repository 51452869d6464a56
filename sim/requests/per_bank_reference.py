"""The controller with a queue per bank once more: one cycle at a time, in plain Python, so short that it is right.

Tests hold the compiled scheduler against it. It knows no shortcut: every cycle every channel looks at every queue.
"""

from __future__ import annotations

from dataclasses import dataclass

from nearbank.sim.machine import Machine
from nearbank.sim.policy import Policy
from nearbank.sim.requests.controller import Trace
from nearbank.sim.requests.history import History
from nearbank.sim.requests.mapping import address_map
from nearbank.sim.requests.reference import Outcome
from nearbank.sim.rules import RuleBook, rulebook
from nearbank.sim.standard import Effect


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in a queue."""

    bank: int
    row: int
    block: int
    write: bool


def serve_per_bank_slowly(machine: Machine, trace: Trace, policy: Policy) -> list[Outcome]:
    """Serve every request, one outcome a channel; the front end hands over one request a cycle, in order."""
    place = address_map(policy.mapping, machine.organization).place(trace.addresses)
    columns = (place.channel, place.bank, place.row, place.block, trace.writes, trace.arrivals)
    todo = list(zip(*(column.tolist() for column in columns), strict=True))
    channels = [_Channel(machine, policy) for _ in range(machine.organization.channels)]
    cycle = 0
    while todo or any(c.is_busy() or cycle <= c.out.last_done for c in channels):
        for channel in channels:
            channel.tick(cycle, empty_writes=not todo)
        if todo and todo[0][5] <= cycle:
            number, bank, row, block, write, _ = todo[0]
            if channels[number].take(Waiting(bank, row, block, bool(write)), cycle):
                todo.pop(0)
        cycle += 1
    return [channel.out for channel in channels]


class _Channel:
    def __init__(self, machine: Machine, policy: Policy) -> None:
        self.machine, self.policy = machine, policy
        self.book: RuleBook = rulebook(machine)
        self.history = History(self.book, bus_is_free=True)
        self.out = Outcome(self.history.issued)
        self.rows: list[int | None] = [None] * self.book.banks
        self.used, self.touched = [0] * self.book.banks, [0] * self.book.banks
        self.conflict = [False] * self.book.banks
        self.lines: list[list[Waiting]] = [[] for _ in range(self.book.banks)]
        self.reads: list[Waiting] = []
        self.writes: list[Waiting] = []
        self.refreshes: list[range] = []
        self.turn = self.draining = self.next_unit = 0

    def is_busy(self) -> bool:
        return bool(self.reads or self.writes or any(self.lines))

    def take(self, request: Waiting, cycle: int) -> bool:
        queue = self.writes if request.write else self.reads
        if len(queue) == (self.policy.write_queue if request.write else self.policy.read_queue):
            return False
        written, read = self._waits(request.block, True), self._waits(request.block, False)
        if request.write or written:
            self.out.last_done = max(self.out.last_done, cycle + 2)
        if not written and (request.write or not read):
            queue.append(request)
        return True

    def _waits(self, block: int, write: bool) -> bool:
        everyone = [*self.reads, *self.writes, *(r for line in self.lines for r in line)]
        return any(r.block == block and r.write == write for r in everyone)

    def tick(self, cycle: int, empty_writes: bool) -> None:
        self._refresh_due(cycle)
        first = self._refresh(cycle) if self.refreshes else None
        first = first or self._issue_for(self._next(cycle), cycle) or self._close_idle(cycle)
        if first and self.book.standard.row_bus:
            second = self._next(cycle)
            if second and (self._needed(second) in self.book.standard.row_bus) != (first in self.book.standard.row_bus):
                self._issue_for(second, cycle)
        self._move(empty_writes)

    def _refresh_due(self, cycle: int) -> None:
        kind = self.machine.refresh.policy
        if kind == "none":
            return
        size = self.book.reach[self.book.standard.refresh] if kind == "all_bank" else 1
        units = self.book.banks // size
        interval = self.machine.cycles("tREFI") // units if kind == "all_bank" else self.machine.cycles("tREFIpb")
        if cycle and cycle % interval == 0:
            first = self.next_unit * size if kind == "all_bank" else self._group_by_group(self.next_unit)
            self.refreshes.append(range(first, first + size))
            self.next_unit = (self.next_unit + 1) % units

    def _group_by_group(self, unit: int) -> int:
        """Single banks are refreshed the first of every group first, rank after rank."""
        org = self.machine.organization
        in_rank = [g * org.banks_per_group + b for b in range(org.banks_per_group) for g in range(org.bank_groups)]
        return unit // len(in_rank) * len(in_rank) + in_rank[unit % len(in_rank)]

    def _refresh(self, cycle: int) -> str | None:
        banks = self.refreshes[0]
        for bank in banks:
            if self.rows[bank] is not None and self.history.allows("PRE", bank, cycle):
                self.conflict[bank] = False
                return self._issue("PRE", bank, -1, cycle)
        standard = self.book.standard
        command = standard.refresh if self.machine.refresh.policy == "all_bank" else str(standard.refresh_bank)
        if any(self.rows[bank] is not None for bank in banks) or not self.history.allows(command, banks[0], cycle):
            return None
        self.refreshes.pop(0)
        return self._issue(command, banks[0], -1, cycle)

    def _next(self, cycle: int) -> Waiting | None:
        """The first ready request of the next bank in turn that has one; banks about to be refreshed stand back."""
        for step in range(1, self.book.banks + 1):
            bank = (self.turn + step) % self.book.banks
            if self.refreshes and bank in self.refreshes[0]:
                continue
            for request in self.lines[bank]:
                if self._is_ready(request, cycle):
                    self.turn = bank
                    return request
        return None

    def _close_idle(self, cycle: int) -> str | None:
        """With the policy "timeout", close the first row long unused that no request in line is for."""
        if self.policy.row_policy != "timeout":
            return None
        for bank, row in enumerate(self.rows):
            old = row is not None and cycle - self.touched[bank] >= self.policy.row_timeout
            if old and not self.lines[bank] and self.history.allows("PRE", bank, cycle):
                self.conflict[bank] = False
                return self._issue("PRE", bank, -1, cycle)
        return None

    def _needed(self, request: Waiting) -> str:
        row, closes = self.rows[request.bank], "A" if self.policy.row_policy == "closed" else ""
        if row is None:
            return "ACT"
        return ("WR" if request.write else "RD") + closes if row == request.row else "PRE"

    def _is_ready(self, request: Waiting, cycle: int) -> bool:
        command, line = self._needed(request), self.lines[request.bank]
        older = line[: line.index(request)]
        if command == "PRE":
            hit = any(r.row == self.rows[r.bank] for r in line)
            if older or (hit and self.used[request.bank] < self.policy.row_hit_cap):
                return False
        elif command.startswith("WR") and any(r.block == request.block and not r.write for r in older):
            return False
        return self.history.allows(command, request.bank, cycle)

    def _issue_for(self, request: Waiting | None, cycle: int) -> str | None:
        if request is None:
            return None
        bank, command = request.bank, self._needed(request)
        if command == "PRE":
            self.conflict[bank] = True
        elif command != "ACT":
            self._count(bank)
            self.lines[bank].remove(request)
            if not request.write:
                self.out.last_done = max(self.out.last_done, cycle + self.book.latency["RD"])
        return self._issue(command, bank, request.row, cycle)

    def _count(self, bank: int) -> None:
        self.out.hits += self.used[bank] > 0
        self.out.conflicts += self.used[bank] == 0 and self.conflict[bank]
        self.out.misses += self.used[bank] == 0 and not self.conflict[bank]
        self.conflict[bank] = self.conflict[bank] and self.policy.row_policy != "closed"

    def _issue(self, command: str, bank: int, row: int, cycle: int) -> str:
        count, effect = self.book.reach[command], self.book.specs[command].effect
        self.history.issued.append((cycle, command, bank, count, row))
        for at in range(bank, bank + count):
            if effect is Effect.OPENS or effect is Effect.CLOSES:
                self.rows[at], self.used[at] = (row if effect is Effect.OPENS else None), 0
            else:
                self.used[at] += 1
            self.touched[at] = cycle
        return command

    def _move(self, empty_writes: bool) -> None:
        """One request from the read queue, or the write queue while it is drained, to its bank's line."""
        waiting, idle = len(self.writes), not any(self.lines)
        least = 0 if empty_writes else self.policy.write_idle
        if not self.draining and (waiting >= self.policy.write_queue or (idle and waiting > least)):
            self.draining = waiting
        queue = self.writes if self.draining else self.reads
        for request in queue:
            if len(self.lines[request.bank]) == self.policy.bank_queue:
                continue
            if request.write and self._waits(request.block, False):
                self.draining = 0
                if idle:
                    oldest = self.reads.pop(0)
                    self.lines[oldest.bank].append(oldest)
                return
            self.draining -= request.write
            self.lines[request.bank].append(request)
            queue.remove(request)
            return

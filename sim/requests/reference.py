"""The shared-queue controller once more: one cycle at a time, in plain Python, so short that it is obviously right.

Tests hold the compiled scheduler against it. It asks the rules of the machine's rule book about a list of everything
issued so far, and knows no shortcut at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nearbank.sim.machine import Machine
from nearbank.sim.policy import Policy
from nearbank.sim.requests.controller import Trace
from nearbank.sim.requests.history import History, Issue
from nearbank.sim.requests.mapping import address_map
from nearbank.sim.rules import RuleBook, rulebook
from nearbank.sim.standard import Effect


@dataclass(slots=True)
class Waiting:
    """A request in a queue."""

    bank: int
    row: int
    block: int
    write: bool
    arrived: int
    counted: bool = False


@dataclass(slots=True)
class Outcome:
    """What serving a trace took; `issued` holds every command."""

    issued: list[Issue] = field(default_factory=list)
    hits: int = 0
    misses: int = 0
    conflicts: int = 0
    last_accepted: int = 0
    last_done: int = 0
    latency: int = 0


def serve_slowly(machine: Machine, trace: Trace, policy: Policy) -> Outcome:
    """Serve every request of a one-channel machine."""
    return _Controller(machine, policy).run(trace)


class _Controller:
    def __init__(self, machine: Machine, policy: Policy) -> None:
        self.machine, self.policy = machine, policy
        self.book: RuleBook = rulebook(machine)
        self.rows: list[int | None] = [None] * self.book.banks
        self.used = [0] * self.book.banks
        self.touched = [0] * self.book.banks
        self.reads: list[Waiting] = []
        self.writes: list[Waiting] = []
        self.opened: list[Waiting] = []
        self.refreshes: list[int] = []
        self.draining = False
        self.next_single = 0
        self.history = History(self.book)
        self.allows = self.history.allows
        self.out = Outcome(self.history.issued)

    def run(self, trace: Trace) -> Outcome:
        place = address_map(self.policy.mapping, self.machine.organization).place(trace.addresses)
        columns = (place.bank, place.row, place.block, trace.writes, trace.arrivals)
        todo = list(zip(*(column.tolist() for column in columns), strict=True))
        cycle = 0
        while todo or self.reads or self.writes or self.opened:
            if todo and self._take(todo[0], cycle):
                self.out.last_accepted = cycle
                todo.pop(0)
            cycle += 1
            self._tick(cycle)
        return self.out

    def _take(self, request: tuple[int, ...], cycle: int) -> bool:
        bank, row, block, write, arrival = request
        if arrival > cycle:
            return False
        if any(w.block == block for w in self.writes):
            self.out.latency += 0 if write else 1
            self.out.last_done = max(self.out.last_done, cycle + 1)
            return True
        queue = self.writes if write else self.reads
        if len(queue) == (self.policy.write_queue if write else self.policy.read_queue):
            return False
        queue.append(Waiting(bank, row, block, bool(write), cycle))
        return True

    def _tick(self, cycle: int) -> None:
        self._refresh_due(cycle)
        standard = self.book.standard
        if standard.any_edge and cycle % 2 == 0:
            self._slot(cycle, frozenset(standard.any_edge))
        elif standard.row_bus:
            self._slot(cycle, frozenset(self.book.specs) - frozenset(standard.row_bus))
            self._slot(cycle, frozenset(standard.row_bus))
        else:
            self._slot(cycle, frozenset(self.book.specs))

    def _refresh_due(self, cycle: int) -> None:
        kind = self.machine.refresh.policy
        if kind == "none" or cycle % self.machine.cycles("tREFI" if kind == "all_bank" else "tREFIpb"):
            return
        if kind == "all_bank":
            self.refreshes += range(0, self.book.banks, self.book.reach[self.book.standard.refresh])
        else:
            self.refreshes.append(self.next_single)
            self.next_single = (self.next_single + 1) % self.book.banks

    def _slot(self, cycle: int, bus: frozenset[str]) -> None:
        """One command of those on this bus."""
        ready = [r for r in self.opened if self._needed(r) in bus and self.allows(self._needed(r), r.bank, cycle)]
        if ready:
            return self._serve(min(ready, key=lambda r: r.arrived), self.opened, cycle)
        if self.refreshes:
            return self._refresh(cycle, bus)
        queue = self._queue()
        for request in queue:
            command = self._needed(request)
            if command in bus and self._may(command, request, queue) and self.allows(command, request.bank, cycle):
                return self._serve(request, queue, cycle)
        if self.policy.row_policy == "timeout" and "PRE" in bus:
            self._close_idle(cycle)
        return None

    def _needed(self, request: Waiting) -> str:
        row = self.rows[request.bank]
        if row is None:
            return "ACT"
        return ("WR" if request.write else "RD") if row == request.row else "PRE"

    def _may(self, command: str, request: Waiting, queue: list[Waiting]) -> bool:
        """A row stays open for the requests it was opened for, and for older hits if the policy says so."""
        if command != "PRE":
            return True
        if any(r.bank == request.bank for r in self.opened):
            return False
        older = queue[: queue.index(request)]
        hit = any(r.bank == request.bank and r.row == self.rows[r.bank] for r in older)
        return not (hit and self.policy.keep_hits)

    def _queue(self) -> list[Waiting]:
        if self.draining:
            if len(self.writes) < self.policy.write_low * self.policy.write_queue and self.reads:
                self.draining = False
        elif len(self.writes) > self.policy.write_high * self.policy.write_queue or not self.reads:
            self.draining = True
        return self.writes if self.draining else self.reads

    def _serve(self, request: Waiting, queue: list[Waiting], cycle: int) -> None:
        row, command = self.rows[request.bank], self._needed(request)
        if not request.counted:
            request.counted = True
            self.out.hits += row == request.row
            self.out.misses += row is None
            self.out.conflicts += row is not None and row != request.row
        done = row == request.row
        others = sum(r.bank == request.bank for r in self.opened) - (queue is self.opened)
        if done and self.policy.row_policy == "closed":
            closes = self.used[request.bank] + 1 >= self.policy.row_cap and not others
            command += "A" if closes else ""
        self._issue(cycle, command, request.bank, request.row)
        if done or (command == "ACT" and queue is not self.opened):
            queue.remove(request)
            self.opened += [] if done else [request]
        if done:
            end = cycle + self.book.latency["WR" if request.write else "RD"]
            self.out.last_done = max(self.out.last_done, end)
            self.out.latency += 0 if request.write else end - request.arrived

    def _refresh(self, cycle: int, bus: frozenset[str]) -> None:
        standard, kind = self.book.standard, self.machine.refresh.policy
        command, close = standard.refresh, standard.precharge_all
        if kind == "per_bank":
            command, close = standard.refresh_bank, "PRE"
        first = self.refreshes[0]
        banks = range(first, first + self.book.reach[command])
        if any(self.rows[bank] is not None and any(r.bank == bank for r in self.opened) for bank in banks):
            return
        if any(self.rows[bank] is not None for bank in banks):
            command = close
        if command in bus and self.allows(command, first, cycle):
            self._issue(cycle, command, first, -1)
            if command != close:
                self.refreshes.pop(0)

    def _close_idle(self, cycle: int) -> None:
        for bank, row in enumerate(self.rows):
            wanted = any(r.bank == bank for r in self.opened)
            hit = any(r.bank == bank and r.row == row for r in self.reads + self.writes)
            old = cycle >= self.touched[bank] + self.policy.row_timeout
            if row is not None and old and not wanted and not hit and self.allows("PRE", bank, cycle):
                return self._issue(cycle, "PRE", bank, -1)
        return None

    def _issue(self, cycle: int, command: str, bank: int, row: int) -> None:
        count, spec = self.book.reach[command], self.book.specs[command]
        self.out.issued.append((cycle, command, bank, count, row))
        for at in range(bank, bank + count):
            if spec.effect is Effect.OPENS:
                self.rows[at], self.used[at] = row, 0
            elif spec.effect is Effect.CLOSES:
                self.rows[at], self.used[at] = None, 0
            else:
                self.used[at] += 1
            self.touched[at] = cycle

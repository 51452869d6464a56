"""Plays programs on a machine, command by command, at the speed of the regular parts being skipped over exactly.

    player = Player(machine)
    for program in programs:
        player.play(program)
    result = player.result()

State lives on from one program to the next: open rows, timing, the refresh that is due. A program begins when the one
before it has ended. Channels that a program treats alike and that have the same past are simulated once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nearbank.errors import NearbankError
from nearbank.sim import vm
from nearbank.sim.compile import Code, Compiler, locate
from nearbank.sim.layout import (
    FIXED_REASONS,
    NEVER,
    Ints,
    Layout,
    Lists,
    command_table,
    fixed_list,
    layout,
    lists,
    pull_lists,
    push_lists,
    written_list,
)
from nearbank.sim.machine import Machine
from nearbank.sim.program import Program
from nearbank.sim.result import ChannelResult, SimResult
from nearbank.sim.rules import RuleBook, rulebook

_MAX_UNITS = 16
_NO_DUE = 1 << 61
_NOTHING = vm.Record(np.zeros((1, 1, 5), dtype=np.int64), 0, 0)
_PROBLEMS = {
    vm.CLOSED_ROW: "needs an open row, but one of its banks has none",
    vm.WRONG_ROW: "addresses a row that is not the open one",
    vm.OPEN_ROW: "needs its banks closed, but one has an open row",
}


def simulate(machine: Machine, programs: Program | Iterable[Program], *, fast_forward: bool = True) -> SimResult:
    """Play the programs one after the other from power-up."""
    player = Player(machine, fast_forward=fast_forward)
    for program in [programs] if isinstance(programs, Program) else programs:
        player.play(program)
    return player.result()


@dataclass(frozen=True, slots=True)
class Issued:
    """One issued command of the first channel of a group of identical ones."""

    cycle: int
    channel: int
    command: str
    bank: int
    row: int
    column: int


class Player:
    """A machine that plays one program after another. Errors leave it unusable; make a new one."""

    def __init__(self, machine: Machine, *, fast_forward: bool = True) -> None:
        self.machine = machine
        self._book: RuleBook = rulebook(machine)
        self._layout: Layout = layout(self._book)
        self._compiler = Compiler(self._book)
        self._skips = int(fast_forward)
        self._used: frozenset[str] = _refresh_commands(self._book)
        self._bodies = 0
        self._tables = self._make_tables()
        self._lanes: tuple[tuple[int, ...], ...] = (tuple(range(machine.organization.channels)),)
        self._state = self._first_state()
        self._shared = _first_shared()
        self._ends: list[int] = []

    @property
    def cycle(self) -> int:
        """The end of the last program."""
        return self._ends[-1] if self._ends else 0

    def play(self, program: Program) -> int:
        """Play one more program; returns the cycle at which it ends."""
        return self._play(program, _NOTHING)

    def record(self, program: Program, first: int, last: int) -> list[Issued]:
        """Play one more program and list the commands issued in cycles `first` to `last - 1`, by channel and cycle."""
        code = self._prepare(program)
        capacity = max(last - max(first, self.cycle), 0)
        lanes = len(self._lanes)
        record = vm.Record(np.zeros((lanes, capacity + 1, 5), dtype=np.int64), first, last)
        self._state.lane[:, vm.RECORDED] = 0
        self._run(program, code, record)
        return [issued for lane in range(lanes) for issued in self._issued(record, lane)]

    def _issued(self, record: vm.Record, lane: int) -> Iterable[Issued]:
        names = self._layout.names
        channel = self._lanes[lane][0]
        for row in record.commands[lane, : self._state.lane[lane, vm.RECORDED]].tolist():
            yield Issued(row[0], channel, names[row[1]], *row[2:])

    def _play(self, program: Program, record: vm.Record) -> int:
        return self._run(program, self._prepare(program), record)

    def _prepare(self, program: Program) -> Code:
        code = self._compiler.code(program)
        self._regroup(program)
        self._grow()
        used = self._used | code.commands
        if used != self._used or len(self._compiler.bodies) != self._bodies:
            self._used = used
            self._tables = self._make_tables()
        return code

    def _run(self, program: Program, code: Code, record: vm.Record) -> int:
        streams = self._streams(program)
        entries = np.array([code.entries[s] for s in streams], dtype=np.int64)
        end = int(vm.play(self._tables, self._state, self._shared, entries, code.rows, record))
        if end < 0:
            self._fail(program, code, streams, -1 - end)
        self._ends.append(end)
        return end

    def _streams(self, program: Program) -> list[int]:
        """The stream that each of the first lanes plays; lanes without a stream come last."""
        owner = {channel: i for i, stream in enumerate(program.streams) for channel in stream.channels}
        return [owner[lane[0]] for lane in self._lanes if lane[0] in owner]

    def _regroup(self, program: Program) -> None:
        """Split the lanes so that all channels of one follow one stream, or none; those without come last."""
        owner = {channel: i for i, stream in enumerate(program.streams) for channel in stream.channels}
        idle = len(program.streams)
        groups: dict[tuple[int, int], list[int]] = {}
        for number, lane in enumerate(self._lanes):
            for channel in lane:
                groups.setdefault((owner.get(channel, idle), number), []).append(channel)
        ordered = sorted(groups)
        lanes = tuple(tuple(groups[key]) for key in ordered)
        if lanes != self._lanes:
            self._lanes = lanes
            self._state = vm.State(*(_taken(array, [key[1] for key in ordered]) for array in self._state))

    def _grow(self) -> None:
        """Room for the units, jobs and labels that the program brought."""
        compiler = self._compiler
        if len(compiler.units) > _MAX_UNITS:
            raise NearbankError(f"programs name {len(compiler.units)} units beside the memory; expected {_MAX_UNITS}")
        old = self._shared
        jobs, labels = len(compiler.jobs), len(compiler.labels)
        if jobs > old.busy.shape[0] or labels > old.label_cycles.shape[0]:
            self._shared = _grown(old, 2 * jobs, 2 * labels)

    def _make_tables(self) -> vm.Tables:
        book, plan, used = self._book, self._book.refresh, self._used
        self._bodies = len(self._compiler.bodies)
        pulls, pushes = pull_lists(self._layout, used), push_lists(self._layout, used)
        numbers = {name: i for i, name in enumerate(self._layout.names)}
        reasons = pulls.columns[5] + len(FIXED_REASONS) + _MAX_UNITS
        written, fixed = self._body_lists()
        data = [(self._layout.channel_entry[n], book.latency[n]) for n in sorted(used) if book.latency[n]]
        return vm.Tables(
            command_table(self._layout),
            pulls.start,
            *pulls.columns[:5],
            reasons,
            pushes.start,
            *pushes.columns,
            written.start,
            *written.columns,
            fixed.start,
            *fixed.columns,
            *lists([list(data)], 2).columns,
            banks=book.banks,
            tck_ps=self.machine.tck_ps,
            interval=plan.interval,
            region=plan.region,
            precharge=numbers.get(plan.precharge, -1),
            refresh=numbers.get(plan.refresh, -1),
            activate=numbers.get(plan.activate, -1),
            activate_all=numbers.get(plan.activate_all, -1),
            count_first=vm.FIXED_COUNTERS,
            reason_first=vm.FIXED_COUNTERS + len(self._compiler.slots),
            unit_reason=len(FIXED_REASONS),
            horizon=(1 << 62) // self.machine.tck_ps,
            skips=self._skips,
        )

    def _body_lists(self) -> tuple[Lists, Lists]:
        bodies = list(self._compiler.bodies)
        written = [written_list(self._layout, self._used, body) for body in bodies]
        fixed = [fixed_list(self._layout, self._used, body) for body in bodies]
        return lists(list(written), 2), lists(list(fixed), 2)

    def _first_state(self) -> vm.State:
        banks, entries = self._book.banks, self._layout.size
        counters = vm.FIXED_COUNTERS + len(self._compiler.slots)
        counters += len(FIXED_REASONS) + _MAX_UNITS + len(self._book.limits)
        lane = np.zeros((1, vm.LANE_SIZE), dtype=np.int64)
        lane[0, vm.PREVIOUS] = -1
        lane[0, vm.DUE] = self._book.refresh.interval or _NO_DUE
        depth = vm.MAX_DEPTH
        return vm.State(
            last=np.full((1, entries), NEVER, dtype=np.int64),
            lane=lane,
            rows=np.zeros((1, banks), dtype=np.int64),
            count=np.zeros((1, counters), dtype=np.int64),
            counter=np.zeros((1, depth), dtype=np.int64),
            snap=np.zeros((1, depth, vm.SNAP_SIZE), dtype=np.int64),
            snap_last=np.zeros((1, depth, entries), dtype=np.int64),
            snap_rows=np.zeros((1, depth, banks), dtype=np.int64),
            snap_count=np.zeros((1, depth, counters), dtype=np.int64),
        )

    def _fail(self, program: Program, code: Code, streams: list[int], lane: int) -> None:
        status = int(self._state.lane[lane, vm.STATUS])
        if status == vm.OVERFLOW:
            raise NearbankError(f"program {program.name}: runs for more than 2^62 ps (53 days); split it")
        row = int(self._state.lane[lane, vm.PC])
        name = self._layout.names[code.rows[row, vm.A]]
        path, _ = locate(program, streams[lane], row - code.entries[streams[lane]])
        rounds = self._state.counter[lane, : code.rows[row, vm.DEPTH]].tolist()
        raise NearbankError(
            f"program {program.name}, stream {streams[lane]}, node {path}, rounds {rounds}: "
            f"{name} {_PROBLEMS[status]}; activate or precharge before it"
        )

    def result(self) -> SimResult:
        """Everything counted so far."""
        compiler, shared = self._compiler, self._shared
        return SimResult(
            machine=self.machine.name,
            machine_digest=self.machine.digest,
            tck_ps=self.machine.tck_ps,
            cycles=self.cycle,
            program_ends=tuple(self._ends),
            channels=tuple(self._channel_result(i) for i in range(len(self._lanes))),
            label_cycles={n: int(shared.label_cycles[i]) for n, i in compiler.labels.items() if shared.label_cycles[i]},
            jobs={key: (int(shared.busy[i, 0]), int(shared.busy[i, 1])) for key, i in compiler.jobs.items()},
        )

    def _channel_result(self, lane: int) -> ChannelResult:
        count = self._state.count[lane].tolist()
        slots = self._compiler.slots
        return ChannelResult(
            channels=self._lanes[lane],
            cycles=self.cycle,
            commands={key: count[vm.FIXED_COUNTERS + i] for key, i in slots.items() if count[vm.FIXED_COUNTERS + i]},
            row_hits=count[vm.ROW_HITS],
            row_misses=count[vm.ROW_MISSES],
            open_cycles=count[vm.OPEN_CYCLES],
            refreshes=count[vm.REFRESHES],
            stalls=self._stalls(count[vm.FIXED_COUNTERS + len(slots) :]),
        )

    def _stalls(self, idle: list[int]) -> dict[str, int]:
        units = [f"wait {unit}" for unit in self._compiler.units]
        names = [
            *FIXED_REASONS,
            *units,
            *[""] * (_MAX_UNITS - len(units)),
            *(limit.name for limit in self._book.limits),
        ]
        stalls: dict[str, int] = {}
        for name, cycles in zip(names, idle, strict=True):
            if cycles:
                stalls[name] = stalls.get(name, 0) + cycles
        return stalls


def _refresh_commands(book: RuleBook) -> frozenset[str]:
    plan = book.refresh
    names = (plan.precharge, plan.refresh, plan.activate, plan.activate_all) if plan.interval else ()
    return frozenset(name for name in names if name)


def _first_shared() -> vm.Shared:
    empty = vm.Shared(
        free_ps=np.zeros(_MAX_UNITS, dtype=np.int64),
        busy=np.zeros((0, 2), dtype=np.int64),
        label_cycles=np.zeros(0, dtype=np.int64),
        clock=np.zeros(2, dtype=np.int64),
        snap_free=np.zeros((vm.MAX_DEPTH, _MAX_UNITS), dtype=np.int64),
        snap_busy=np.zeros((vm.MAX_DEPTH, 0, 2), dtype=np.int64),
        snap_label=np.zeros((vm.MAX_DEPTH, 0), dtype=np.int64),
    )
    return _grown(empty, 16, 16)


def _grown(old: vm.Shared, jobs: int, labels: int) -> vm.Shared:
    busy = np.zeros((max(jobs, old.busy.shape[0]), 2), dtype=np.int64)
    busy[: old.busy.shape[0]] = old.busy
    label_cycles = np.zeros(max(labels, old.label_cycles.shape[0]), dtype=np.int64)
    label_cycles[: old.label_cycles.shape[0]] = old.label_cycles
    return old._replace(
        busy=busy,
        label_cycles=label_cycles,
        snap_busy=np.zeros((vm.MAX_DEPTH, *busy.shape), dtype=np.int64),
        snap_label=np.zeros((vm.MAX_DEPTH, *label_cycles.shape), dtype=np.int64),
    )


def _taken(array: Ints, lanes: list[int]) -> Ints:
    return np.ascontiguousarray(array[lanes])

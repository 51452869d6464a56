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
from nearbank.sim.counters import Meaning
from nearbank.sim.layout import (
    NEVER,
    Ints,
    Layout,
    Lists,
    binding_limits,
    command_table,
    fixed_list,
    horizons,
    layout,
    lists,
    pull_lists,
    push_lists,
    written_list,
)
from nearbank.sim.machine import Machine
from nearbank.sim.modes import ModeWalk
from nearbank.sim.program import Program
from nearbank.sim.result import ChannelResult, Profile, SimResult
from nearbank.sim.rules import RuleBook, rulebook

_NO_DUE = 1 << 61
FINEST = 64  # cycles a bin, where a profile begins
_PROBLEMS = {
    vm.CLOSED_ROW: "needs an open row, but one of its banks has none",
    vm.WRONG_ROW: "addresses a row that is not the open one",
    vm.OPEN_ROW: "needs its banks closed, but one has an open row",
}


def simulate(
    machine: Machine, programs: Program | Iterable[Program], *, fast_forward: bool = True, bins: int = 0
) -> SimResult:
    """Play the programs one after the other from power-up; `bins` above 0 adds a profile, as `Player` says."""
    player = Player(machine, fast_forward=fast_forward, bins=bins)
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
    format: str = ""


class Player:
    """A machine that plays one program after another. Errors leave it unusable; make a new one."""

    def __init__(self, machine: Machine, *, fast_forward: bool = True, bins: int = 0) -> None:
        """`bins` above 0 keeps a profile over time, of half as many to as many bins however long the run."""
        if bins < 0 or bins % 2:
            raise NearbankError(f"a profile of {bins} bins; expected an even number, or 0 for none")
        self.machine = machine
        self._bins = bins
        self._book: RuleBook = rulebook(machine)
        self._layout: Layout = layout(self._book)
        self._compiler = Compiler(self._book)
        # where there are half clocks, a round may begin on either half, and every command is played
        self._skips = int(fast_forward and not self._book.standard.any_edge)
        self._modes = ModeWalk(self._book)
        self._used: frozenset[str] = _refresh_commands(self._book)
        self._known = (0, 0)
        self._tables = self._make_tables()
        self._lanes: tuple[tuple[int, ...], ...] = (tuple(range(machine.organization.channels)),)
        self._grouped: tuple[tuple[int, ...], ...] = ()
        self._memory = self._first_memory()
        self._shared = _shared(16, 16)
        self._ends: list[int] = []

    @property
    def cycle(self) -> int:
        """The end of the last program."""
        return self._ends[-1] if self._ends else 0

    def play(self, program: Program) -> int:
        """Play one more program; returns the cycle at which it ends."""
        code = self._prepare(program)
        return self._run(program, code, np.zeros((len(self._lanes), 1, vm.RECORD_WIDTH), dtype=np.int64))

    def record(self, program: Program, first: int, last: int) -> list[Issued]:
        """Play one more program and list the commands issued in cycles `first` to `last - 1`, by channel and cycle."""
        code = self._prepare(program)
        capacity = max(last - max(first, self.cycle), 0)
        lanes = len(self._lanes)
        record = np.zeros((lanes, 1 + capacity, vm.RECORD_WIDTH), dtype=np.int64)
        record[:, 0, :2] = first, last
        self._memory[:, vm.RECORDED] = 0
        self._run(program, code, record)
        return [issued for lane in range(lanes) for issued in self._issued(record, lane)]

    def _issued(self, record: Ints, lane: int) -> Iterable[Issued]:
        names = {slot: key for key, slot in self._compiler.slots.items()}
        channel = self._lanes[lane][0]
        for row in record[lane, 1 : 1 + self._memory[lane, vm.RECORDED]].tolist():
            name, weights = names[row[5]]
            yield Issued(row[0], channel, name, row[2], row[3], row[4], weights)

    def _prepare(self, program: Program) -> Code:
        code = self._compiler.code(program)
        self._modes.follow(program, code.commands)
        self._regroup(program)
        self._grow()
        used = self._used | code.commands
        known = (len(self._compiler.bodies), len(self._compiler.units))
        if used != self._used or known != self._known:
            self._used, self._known = used, known
            self._tables = self._make_tables()
        return code

    def _run(self, program: Program, code: Code, record: Ints) -> int:
        streams = self._streams(program)
        entries = np.array([code.entries[s] for s in streams], dtype=np.int64)
        end = int(vm.play(self._tables, self._memory, self._shared, entries, code.rows, record))
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
        channels = tuple(stream.channels for stream in program.streams)
        if channels == self._grouped:
            return
        self._grouped = channels
        owner = {channel: i for i, group in enumerate(channels) for channel in group}
        idle = len(channels)
        groups: dict[tuple[int, int], list[int]] = {}
        for number, lane in enumerate(self._lanes):
            for channel in lane:
                groups.setdefault((owner.get(channel, idle), number), []).append(channel)
        ordered = sorted(groups)
        lanes = tuple(tuple(groups[key]) for key in ordered)
        if lanes != self._lanes:
            self._lanes = lanes
            self._memory = np.ascontiguousarray(self._memory[[key[1] for key in ordered]])

    def _grow(self) -> None:
        """Room for the units, jobs and labels that the program brought."""
        compiler = self._compiler
        if len(compiler.units) > vm.MAX_UNITS:
            raise NearbankError(f"programs name {len(compiler.units)} units beside the memory; expected {vm.MAX_UNITS}")
        jobs, labels = len(compiler.jobs), len(compiler.labels)
        old = self._shared
        if jobs > old[vm.G_JOBS] or labels > old[vm.G_LABELS]:
            self._shared = _shared(max(2 * jobs, int(old[vm.G_JOBS])), max(2 * labels, int(old[vm.G_LABELS])))
            self._shared[vm.G_MARKED : vm.G_BUSY] = old[vm.G_MARKED : vm.G_BUSY]
            _busy(self._shared)[: old[vm.G_JOBS]] = _busy(old)
            _label_cycles(self._shared)[: old[vm.G_LABELS]] = _label_cycles(old)

    def _make_tables(self) -> Ints:
        """All tables behind their header, those of the commands first; see the constants in `sim.vm`."""
        written, fixed, counted = self._body_lists()
        latency = self._book.latency
        data = [(self._layout.channel_entry[n], latency[n]) for n in sorted(self._used) if latency[n]]
        tables = {
            vm.WRITTEN_START: written.start,
            vm.WRITTEN: written.rows,
            vm.FIXED_START: fixed.start,
            vm.FIXED: fixed.rows,
            vm.COUNTED_START: counted.start,
            vm.COUNTED: counted.rows,
            vm.DATA: np.array(data, dtype=np.int64),
            vm.AGES: np.array(horizons(self._layout, frozenset(self._layout.names)), dtype=np.int64),
        }
        header = self._header(len(data))
        parts = [header, *self._command_tables(header)]
        at = sum(part.size for part in parts)
        for slot, table in tables.items():
            header[slot] = at
            parts.append(table.reshape(-1))
            at += table.size
        return np.concatenate(parts)

    def _command_tables(self, header: Ints) -> list[Ints]:
        """The commands, their pulls and pushes, with absolute places."""
        pulls, pushes = pull_lists(self._layout, self._used), push_lists(self._layout, self._used)
        pulls.rows[:, vm.PULL_BASE] += header[vm.LAST]
        pulls.rows[:, vm.PULL_REASON] += vm.UNIT_REASON + vm.MAX_UNITS
        pushes.rows[:, vm.PUSH_BASE] += header[vm.LAST]
        own = command_table(self._layout)
        first = vm.COMMANDS + len(own) * vm.COMMAND_WIDTH
        commands = np.zeros((len(own), vm.COMMAND_WIDTH), dtype=np.int64)
        commands[:, : vm.SLOT] = own
        commands[:, vm.SLOT] = [self._compiler.slots[name, ""] for name in self._layout.names]
        commands[:, vm.PULLS] = first + pulls.start[:-1] * vm.PULL_WIDTH
        commands[:, vm.PULLS_END] = first + pulls.start[1:] * vm.PULL_WIDTH
        commands[:, vm.PUSHES] = first + pulls.rows.size + pushes.start[:-1] * vm.PUSH_WIDTH
        commands[:, vm.PUSHES_END] = first + pulls.rows.size + pushes.start[1:] * vm.PUSH_WIDTH
        return [commands.reshape(-1), pulls.rows.reshape(-1), pushes.rows.reshape(-1)]

    def _header(self, data_count: int) -> Ints:
        book, plan = self._book, self._book.refresh
        numbers = {name: i for i, name in enumerate(self._layout.names)}
        header = np.zeros(vm.COMMANDS, dtype=np.int64)
        header[vm.BANKS] = book.banks
        header[vm.TCK_PS] = self.machine.tck_ps
        header[vm.INTERVAL] = plan.interval
        header[vm.REGION] = plan.region
        header[vm.PRECHARGE] = numbers.get(plan.precharge, -1)
        header[vm.REFRESH] = numbers.get(plan.refresh, -1)
        header[vm.ACTIVATE] = numbers.get(plan.activate, -1)
        header[vm.ACTIVATE_ALL] = numbers.get(plan.activate_all, -1)
        header[vm.ACTIVATE_RANK] = numbers.get(plan.activate_rank, -1)
        header[vm.HORIZON] = (1 << 62) // self.machine.tck_ps
        header[vm.SKIPS] = self._skips
        header[vm.DATA_COUNT] = data_count
        self._place_memory(header)
        return header

    def _place_memory(self, header: Ints) -> None:
        """Where a lane keeps what, and how much of it."""
        book = self._book
        slots = vm.FIXED_COUNTERS + self._compiler.slot_count
        counters = slots + vm.UNIT_REASON + vm.MAX_UNITS + len(book.limits)
        header[vm.COUNT_SIZE] = counters
        header[vm.REASONS] = vm.COUNT + slots
        header[vm.LAST] = vm.COUNT + counters
        header[vm.ROWS] = header[vm.LAST] + self._layout.size
        header[vm.SNAP] = header[vm.ROWS] + book.banks
        header[vm.SNAP_STRIDE] = vm.S_SIZE + counters + book.banks + self._layout.size
        header[vm.PROFILE] = header[vm.SNAP] + vm.MAX_DEPTH * header[vm.SNAP_STRIDE]
        header[vm.ROOM] = self._bins
        header[vm.GROUP_SHIFT] = book.group.bit_length() - 1

    def _body_lists(self) -> tuple[Lists, Lists, Lists]:
        """Per loop body: entries it writes, entries it only reads, counters it moves."""
        bodies = [(body, frozenset(name for name, _ in body)) for body in self._compiler.bodies]
        written = [written_list(self._layout, self._used, names) for _, names in bodies]
        fixed = [fixed_list(self._layout, self._used, names) for _, names in bodies]
        counted = [self._counted(body, names) for body, names in bodies]
        return lists(written, 2), lists(fixed, 2), lists(counted, 1)

    def _counted(self, body: frozenset[tuple[str, str]], names: frozenset[str]) -> list[tuple[int]]:
        """Counters that a round without a refresh may move; in such a round, waits are those for known units."""
        compiler, reasons = self._compiler, vm.FIXED_COUNTERS + self._compiler.slot_count
        moved = [*range(vm.REFRESHES), reasons + vm.END_REASON]
        for name, weights in sorted(body):
            first = vm.FIXED_COUNTERS + compiler.slots[name, weights]
            moved += range(first, first + compiler.slots_of(name))
        moved += [reasons + vm.UNIT_REASON + unit for unit in compiler.units.values()]
        limits = binding_limits(self._layout, self._used, names)
        moved += [reasons + vm.UNIT_REASON + vm.MAX_UNITS + limit for limit in limits]
        return [(index,) for index in moved]

    def _first_memory(self) -> Ints:
        t = self._tables
        memory = np.zeros((1, int(t[vm.PROFILE] + self._bins * t[vm.COUNT_SIZE])), dtype=np.int64)
        memory[0, vm.EDGE] = memory[0, vm.STEP] = FINEST if self._bins else t[vm.HORIZON]
        memory[0, [vm.PREVIOUS, vm.SAME_ROW]] = -1
        memory[0, vm.DUE] = self._book.refresh.interval or _NO_DUE
        memory[0, t[vm.LAST] : t[vm.ROWS]] = NEVER
        return memory

    def _fail(self, program: Program, code: Code, streams: list[int], lane: int) -> None:
        status = int(self._memory[lane, vm.STATUS])
        if status == vm.OVERFLOW:
            raise NearbankError(f"program {program.name}: runs for more than 2^62 ps (53 days); split it")
        if status == vm.STUCK:
            raise NearbankError(
                f"machine {self.machine.name}: refreshes every {self._book.refresh.interval} cycles "
                "leave no time for commands; give a longer tREFI or shorter tRFC"
            )
        row = int(self._memory[lane, vm.PC])
        name = self._layout.names[code.rows[row, vm.A]]
        path, _ = locate(program, streams[lane], row - code.entries[streams[lane]])
        rounds = self._memory[lane, vm.COUNTER :][: code.rows[row, vm.DEPTH]].tolist()
        raise NearbankError(
            f"program {program.name}, stream {streams[lane]}, node {path}, rounds {rounds}: "
            f"{name} {_PROBLEMS[status]}; activate or precharge before it"
        )

    def result(self) -> SimResult:
        """Everything counted so far."""
        compiler = self._compiler
        labels, busy = _label_cycles(self._shared).tolist(), _busy(self._shared).tolist()
        return SimResult(
            machine=self.machine.name,
            machine_digest=self.machine.digest,
            tck_ps=self.machine.tck_ps,
            cycles=self.cycle,
            program_ends=tuple(self._ends),
            channels=tuple(self._channel_result(i) for i in range(len(self._lanes))),
            label_cycles={name: labels[i] for name, i in compiler.labels.items() if labels[i]},
            jobs={key: (busy[i][0], busy[i][1]) for key, i in compiler.jobs.items()},
            profile=self._profile() if self._bins and self.cycle else None,
        )

    def _channel_result(self, lane: int) -> ChannelResult:
        count = self._memory[lane, vm.COUNT : self._tables[vm.LAST]]
        return self._meaning().channel_result(count, self._lanes[lane], self.cycle)

    def _meaning(self) -> Meaning:
        """What the counters stand for."""
        units = tuple(f"wait {unit}" for unit in self._compiler.units)
        return Meaning(self._book, self._compiler.slots, units)

    def _profile(self) -> Profile:
        """The counters at every edge so far, as differences from edge to edge."""
        t, meaning = self._tables, self._meaning()
        taken, step = int(self._memory[0, vm.TAKEN]), int(self._memory[0, vm.STEP])
        edges = (*range(0, taken * step + 1, step), self.cycle)
        size = int(t[vm.COUNT_SIZE])
        kept = self._memory[:, t[vm.PROFILE] :][:, : taken * size].reshape(len(self._lanes), taken, size)
        last = self._memory[:, None, vm.COUNT : t[vm.LAST]]
        moved = np.diff(np.concatenate([kept, last], axis=1), axis=1, prepend=0)
        return Profile(edges, tuple(self._bin(meaning, moved[:, i], edges[i + 1] - edges[i]) for i in range(taken + 1)))

    def _bin(self, meaning: Meaning, counts: Ints, cycles: int) -> tuple[ChannelResult, ...]:
        lanes = zip(counts, self._lanes, strict=True)
        return tuple(meaning.channel_result(count, channels, cycles) for count, channels in lanes)


def _refresh_commands(book: RuleBook) -> frozenset[str]:
    plan = book.refresh
    names = (
        (plan.precharge, plan.refresh, plan.activate, plan.activate_all, plan.activate_rank) if plan.interval else ()
    )
    return frozenset(name for name in names if name)


def _shared(jobs: int, labels: int) -> Ints:
    size = vm.MAX_UNITS + 2 * jobs + labels
    shared = np.zeros(vm.G_UNITS + size * (1 + vm.MAX_DEPTH), dtype=np.int64)
    shared[: vm.G_LABELS + 1] = jobs, labels
    return shared


def _busy(shared: Ints) -> Ints:
    """Picoseconds and count of every job."""
    return shared[vm.G_BUSY :][: 2 * shared[vm.G_JOBS]].reshape(-1, 2)


def _label_cycles(shared: Ints) -> Ints:
    return shared[vm.G_BUSY + 2 * shared[vm.G_JOBS] :][: shared[vm.G_LABELS]]

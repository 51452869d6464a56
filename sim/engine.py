"""Plays programs on a machine, command by command, at the speed of the regular parts being skipped over exactly.

    player = Player(machine)
    for program in programs:
        player.play(program)
    result = player.result()

State lives on from one program to the next: open rows, timing, the refresh that is due. A program begins when the one
before it has ended. Channels that a program treats alike and that have the same past are simulated once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from nearbank.errors import NearbankError
from nearbank.sim import vm
from nearbank.sim.code import Code
from nearbank.sim.compile import Compiler
from nearbank.sim.counters import Meaning
from nearbank.sim.lanes.play import play
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
    seen_list,
    written_list,
)
from nearbank.sim.locate import locate
from nearbank.sim.machine import Machine
from nearbank.sim.modes import ModeWalk
from nearbank.sim.numbering import Numbering
from nearbank.sim.program import Program
from nearbank.sim.result import ChannelResult, Profile, SimResult
from nearbank.sim.rules import RuleBook, rulebook
from nearbank.sim.ways import Ways

_NO_DUE = 1 << 61
_KEPT = 1 << 14  # stretches whose outcome is kept: some 45 MB
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
        self._numbering = Numbering(self._book)
        self._compiler = Compiler(self._book, self._numbering)
        # where there are half clocks, a round may begin on either half, and every command is played
        self._skips = int(fast_forward and not self._book.standard.any_edge)
        self._modes = ModeWalk(self._book)
        self._used: frozenset[str] = self._book.refresh.commands
        self._known = (0, 0)
        self._kept = np.zeros(0, dtype=np.int64)
        self._ways = Ways()
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

    def stream(self, program: Program, first: int, last: int, *, chunk: int = 1 << 13) -> Iterator[list[Issued]]:
        """Play one more program and list the commands of every channel in the cycles `first` to `last - 1`.

        They come in order of issue, `chunk` cycles at a time, however long the program is: it is played again for
        each. Take all of them before the next program.
        """
        begin = max(first, self.cycle)
        done = False
        while not done:
            before = self._memory.copy(), self._shared.copy(), self._lanes, self._grouped
            modes = self._modes.copy()
            issued = self.record(program, begin, min(begin + chunk, last))
            begin += chunk
            done = begin >= min(last, self.cycle)
            yield sorted(self._for_every_channel(issued), key=lambda i: (i.cycle, i.channel))
            if not done:
                self._memory, self._shared, self._lanes, self._grouped = before
                self._modes = modes
                self._ends.pop()

    def _for_every_channel(self, issued: list[Issued]) -> Iterator[Issued]:
        lanes = {lane[0]: lane for lane in self._lanes}
        return (replace(i, channel=channel) for i in issued for channel in lanes[i.channel])

    def _issued(self, record: Ints, lane: int) -> Iterable[Issued]:
        names = {slot: key for key, slot in self._numbering.slots.items()}
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
        known = (len(self._numbering.bodies), len(self._numbering.units))
        if used != self._used or known != self._known:
            counted = (used, known[1]) == (self._used, self._known[1])
            self._used, self._known = used, known
            self._tables = self._make_tables()
            self._make_room(counted)
        return code

    def _run(self, program: Program, code: Code, record: Ints) -> int:
        streams = self._streams(program)
        entries = np.array([code.entries[s] for s in streams], dtype=np.int64)
        told = self._ways.of(code, streams, entries)
        self._ways.make_room(self._tables, self._shared, len(streams))
        kept = self._kept, self._ways.passed
        end = int(play(self._tables, self._memory, self._shared, entries, code.rows, *told, record, *kept))
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
        numbering, units = self._numbering, len(self._numbering.units)
        if units > vm.MAX_UNITS:
            raise NearbankError(f"programs name {units} units beside the memory; expected {vm.MAX_UNITS}")
        jobs, labels = len(numbering.jobs), len(numbering.labels)
        old = self._shared
        if jobs > old[vm.G_JOBS] or labels > old[vm.G_LABELS]:
            self._shared = _shared(max(2 * jobs, int(old[vm.G_JOBS])), max(2 * labels, int(old[vm.G_LABELS])))
            self._shared[vm.G_MARKED : vm.G_BUSY] = old[vm.G_MARKED : vm.G_BUSY]
            _busy(self._shared)[: old[vm.G_JOBS]] = _busy(old)
            _label_cycles(self._shared)[: old[vm.G_LABELS]] = _label_cycles(old)

    def _make_room(self, counted: bool) -> None:
        """Room for what stretches do; what is kept holds as long as the same is `counted`, in entries as long."""
        count = _KEPT if self._skips and not self._bins else 0
        size = count * int(self._tables[vm.KEPT_WIDTH])
        if size != len(self._kept) or not counted:
            self._kept = np.zeros(max(size, 1), dtype=np.int64)
        if not counted:
            self._ways.forget()

    def _make_tables(self) -> Ints:
        """All tables behind their header, those of the commands first; see the constants in `sim.vm`."""
        written, fixed, counted, seen = self._body_lists()
        latency = self._book.latency
        data = [(self._layout.channel_entry[n], latency[n]) for n in sorted(self._used) if latency[n]]
        tables = {
            vm.WRITTEN_START: written.start,
            vm.WRITTEN: written.rows,
            vm.FIXED_START: fixed.start,
            vm.FIXED: fixed.rows,
            vm.COUNTED_START: counted.start,
            vm.COUNTED: counted.rows,
            vm.SEEN_START: seen.start,
            vm.SEEN: seen.rows,
            vm.DATA: np.array(data, dtype=np.int64),
            vm.AGES: np.array(horizons(self._layout, frozenset(self._layout.names)), dtype=np.int64),
        }
        header = self._header(len(data))
        longest = sum(int(np.diff(part.start).max(initial=0)) for part in (written, counted, seen))
        header[vm.KEPT_WIDTH] = vm.K_SIZE + vm.D_SIZE + 2 * self._book.banks + longest
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
        commands[:, vm.SLOT] = [self._numbering.slots[name, ""] for name in self._layout.names]
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
        header[vm.KEPT] = _KEPT if self._skips and not self._bins else 0
        self._place_memory(header)
        return header

    def _place_memory(self, header: Ints) -> None:
        """Where a lane keeps what, and how much of it."""
        book = self._book
        slots = vm.FIXED_COUNTERS + self._numbering.slot_count
        counters = slots + vm.UNIT_REASON + vm.MAX_UNITS + len(book.limits)
        header[vm.COUNT_SIZE] = counters
        header[vm.REASONS] = vm.COUNT + slots
        header[vm.LAST] = vm.COUNT + counters
        header[vm.ROWS] = header[vm.LAST] + self._layout.size
        header[vm.SNAP] = header[vm.ROWS] + book.banks
        header[vm.SNAP_STRIDE] = vm.S_SIZE + counters + book.banks + self._layout.size
        header[vm.KEY] = header[vm.SNAP] + vm.MAX_DEPTH * header[vm.SNAP_STRIDE]
        header[vm.WAS] = header[vm.KEY] + vm.K_SIZE + book.banks + self._layout.size
        header[vm.PROFILE] = header[vm.WAS] + header[vm.ROWS]
        header[vm.ROOM] = self._bins
        header[vm.GROUP_SHIFT] = book.group.bit_length() - 1

    def _body_lists(self) -> tuple[Lists, Lists, Lists, Lists]:
        """Per set of commands: entries they write, entries they only read, counters they move, all they depend on."""
        bodies = [(body, frozenset(name for name, _ in body)) for body in self._numbering.bodies]
        written = [written_list(self._layout, self._used, names) for _, names in bodies]
        fixed = [fixed_list(self._layout, self._used, names) for _, names in bodies]
        counted = [self._counted(body, names) for body, names in bodies]
        seen = [seen_list(self._layout, names) for _, names in bodies]
        return lists(written, 2), lists(fixed, 2), lists(counted, 1), lists(seen, 2)

    def _counted(self, body: frozenset[tuple[str, str]], names: frozenset[str]) -> list[tuple[int]]:
        """Counters that the commands may move; those of a refresh only where it is among them."""
        numbering, reasons = self._numbering, vm.FIXED_COUNTERS + self._numbering.slot_count
        moved = [*range(vm.REFRESHES), reasons + vm.END_REASON]
        for name, weights in sorted(body):
            first = vm.FIXED_COUNTERS + numbering.slots[name, weights]
            moved += range(first, first + numbering.slots_of(name))
        moved += [reasons + vm.UNIT_REASON + unit for unit in numbering.units.values()]
        limits = binding_limits(self._layout, self._used, names)
        moved += [reasons + vm.UNIT_REASON + vm.MAX_UNITS + limit for limit in limits]
        moved += [vm.REFRESHES, reasons + vm.REFRESH_REASON] if self._book.refresh.refresh in names else []
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
        path = locate(program, streams[lane], row - code.entries[streams[lane]])
        rounds = self._memory[lane, vm.COUNTER :][: code.rows[row, vm.DEPTH]].tolist()
        raise NearbankError(
            f"program {program.name}, stream {streams[lane]}, node {path}, rounds {rounds}: "
            f"{name} {_PROBLEMS[status]}; activate or precharge before it"
        )

    def result(self) -> SimResult:
        """Everything counted so far."""
        numbering = self._numbering
        labels, busy = _label_cycles(self._shared).tolist(), _busy(self._shared).tolist()
        return SimResult(
            machine=self.machine.name,
            machine_digest=self.machine.digest,
            tck_ps=self.machine.tck_ps,
            cycles=self.cycle,
            program_ends=tuple(self._ends),
            channels=tuple(self._channel_result(i) for i in range(len(self._lanes))),
            label_cycles={name: labels[i] for name, i in numbering.labels.items() if labels[i]},
            jobs={key: (busy[i][0], busy[i][1]) for key, i in numbering.jobs.items()},
            profile=self._profile() if self._bins and self.cycle else None,
        )

    def _channel_result(self, lane: int) -> ChannelResult:
        count = self._memory[lane, vm.COUNT : self._tables[vm.LAST]]
        return self._meaning().channel_result(count, self._lanes[lane], self.cycle)

    def _meaning(self) -> Meaning:
        """What the counters stand for."""
        units = tuple(f"wait {unit}" for unit in self._numbering.units)
        return Meaning(self._book, self._numbering.slots, units)

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

"""Programs executed for what they compute: banks hold real bytes, MAC commands multiply and accumulate.

Timing plays no part here; row states do: a command that needs an open row and finds another is an error. What stands
beside the memory is a `Unit`: it is asked for the bursts that are written, given those that are read, and told which
of its jobs to do. So a mapping is proved by running it and comparing with the plain arithmetic of a model.

How a MAC unit multiplies and adds is `nearbank.mapping.bank_arithmetic`'s. A read of the accumulators clears them;
with 2 bytes each it rounds to bf16, with 4 it is exact. Units that scale have a float accumulator beside each of them:
the end of a group adds scale · (sum - zero · sum of activations) to it and clears the sum, all in float32.

Loops that hold nothing but MAC commands of one row are executed at once; `execute(…, at_once=False)` takes every
command by itself, and tests hold one against the other, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import mul
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.mapping.bank_arithmetic import (
    Bytes,
    Floats,
    Levels,
    Singles,
    check_codes,
    decode,
    float_macs,
    integer_macs,
    read_out,
)
from nearbank.mapping.bank_scales import scale_of
from nearbank.mapping.target import ColumnUse, Target, activation_bits
from nearbank.sim.mac_unit import SCALE_BYTES, unit_formats
from nearbank.sim.program import Command, Index, Loop, Mark, Node, Program, Start, Stream, Wait
from nearbank.sim.standard import LOAD_SCALES, MAC_AND_SCALE

Ints = npt.NDArray[np.int64]
Counters = tuple[int, ...]

CLOSED = -1
_OF_ALL_BANKS = ("ACT16", "PREA", "MACAB", MAC_AND_SCALE, LOAD_SCALES)


@dataclass(frozen=True, slots=True)
class Moment:
    """Where in a program a command or job stands: the label it counts to and the loop counters around it."""

    label: str
    counters: Counters

    @property
    def layer(self) -> int:
        """The layer, in programs whose second loop runs over layers."""
        return self.counters[1] if len(self.counters) > 1 else 0


class Unit(Protocol):
    """What stands beside the memory. Arrays are [channels of the stream, …]; a burst is one column access."""

    def inputs(self, label: str) -> str:
        """The format of the vectors that are multiplied under a label."""

    def send(self, moment: Moment, command: str, channels: tuple[int, ...], data: int) -> tuple[Bytes, Bytes]:
        """The burst to write, and which of its bits to write: two arrays [channels, column bytes]."""

    def receive(
        self, moment: Moment, command: str, channels: tuple[int, ...], data: int, burst: Floats | Bytes
    ) -> None:
        """A burst that was read: bytes [channels, column bytes] of a row, or accumulators [channels, in a burst]."""

    def job(self, moment: Moment, job: str) -> None:
        """Do a job. All data that it needs were received."""


@dataclass
class BankMemory:
    """Rows [channels, banks, row bytes] that were ever touched, and the state of banks, buffers and accumulators.

    `counts`: commands executed, by name, over all channels.
    """

    target: Target
    rows: dict[int, Bytes] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    _levels: dict[tuple[int, str], Levels] = field(default_factory=dict, repr=False)
    _vectors: dict[str, Levels] = field(default_factory=dict, repr=False)
    _uses: dict[str, ColumnUse] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        t = self.target
        self.open: Ints = np.full((t.channels, t.banks), CLOSED, dtype=np.int64)
        self.buffer: Bytes = np.zeros((t.channels, t.buffer_bytes), dtype=np.uint8)
        self.sums: Floats = np.zeros((t.channels, t.accumulators, t.banks))
        self.read: Ints = np.zeros(t.channels, dtype=np.int64)
        self.scales: Bytes = np.zeros((t.channels, t.banks, t.column_bytes), dtype=np.uint8)
        self.scaled: Singles = np.zeros((t.channels, t.accumulators, t.banks), dtype=np.float32)
        self.has_scaled = np.zeros((t.channels, t.accumulators), dtype=bool)
        self.activations: Floats = np.zeros(
            t.channels
        )  # summed since the last group ended, or the last plain sum was read

    def row(self, row: int) -> Bytes:
        """One row address of all banks: uint8[channels, banks, row bytes], to read and write."""
        for key in [key for key in self._levels if key[0] == row]:
            del self._levels[key]
        return self._stored(row)

    def column(self, row: int, column: int) -> Bytes:
        """One column of a row of all banks, to read and write: uint8[channels, banks, column bytes]."""
        size = self.target.column_bytes
        return self.row(row)[:, :, column * size : (column + 1) * size]

    def _stored(self, row: int) -> Bytes:
        if row not in self.rows:
            if not 0 <= row < self.target.rows:
                raise NearbankError(f"row {row} is outside the {self.target.rows} rows of machine {self.target.name}")
            t = self.target
            self.rows[row] = np.zeros((t.channels, t.banks, t.row_bytes), dtype=np.uint8)
        return self.rows[row]

    def use(self, fmt: str) -> ColumnUse:
        """How the weights of a unit lie in a column and go through it."""
        if fmt not in self._uses:
            self._uses[fmt] = self.target.use_of_unit(fmt)
        return self._uses[fmt]

    def weights(self, row: int, fmt: str) -> Levels:
        """A row as its MAC units see it: [channels, banks, steps of all columns, lanes], a short last step filled."""
        found = self._levels.get((row, fmt))
        if found is None:
            use, t = self.use(fmt), self.target
            levels = decode(unit_formats(fmt)[0], self._stored(row), strict=False)  # a row may hold scales as well
            columns = levels.reshape(t.channels, t.banks, t.columns, -1)
            missing = use.multiplied(use.steps) - use.values
            padded = np.pad(columns, ((0, 0), (0, 0), (0, 0), (0, missing))) if missing else columns
            found = self._levels[row, fmt] = padded.reshape(t.channels, t.banks, -1, use.lanes)
        return found

    def vector(self, fmt: str) -> Levels:
        """The buffered vectors [channels, values]."""
        if fmt not in self._vectors:
            whole = self.target.buffer_bytes // format_named(fmt).word_bytes * format_named(fmt).word_bytes
            self._vectors[fmt] = decode(fmt, self.buffer[:, :whole], strict=False)  # old vectors had other formats
        return self._vectors[fmt]

    def buffer_changed(self) -> None:
        """Forget what the buffered bytes were taken for."""
        self._vectors.clear()


def execute(program: Program, memory: BankMemory, unit: Unit, at_once: bool = True) -> None:
    """Run a program; jobs run when all streams have come to them.

    Raises `NearbankError`, in one line, for addresses outside the machine, rows that are not open, and bursts that
    the unit has no place for.
    """
    runs = [_Run(stream, memory, unit, at_once).nodes(stream.body, ()) for stream in program.streams]
    for meeting in zip(*runs, strict=True):
        nodes = {node for node, _ in meeting}
        if len(nodes) != 1:
            raise NearbankError(f"program {program.name}: streams meet at different jobs: {nodes}")
        node, moment = meeting[0]
        if isinstance(node, Start):
            unit.job(moment, node.job)


@dataclass
class _Run:
    """One stream on its channels."""

    stream: Stream
    memory: BankMemory
    unit: Unit
    at_once: bool
    label: str = ""

    def __post_init__(self) -> None:
        first, last = min(self.stream.channels), max(self.stream.channels)
        if first < 0 or last >= self.memory.target.channels:
            raise NearbankError(
                f"a stream for channels {first} to {last}; the machine has {self.memory.target.channels}"
            )
        together = self.stream.channels == tuple(range(first, last + 1))
        self._at: slice | list[int] = slice(first, last + 1) if together else list(self.stream.channels)

    def nodes(self, body: tuple[Node, ...], counters: Counters) -> Iterator[tuple[Start | Wait, Moment]]:
        """Execute up to each meeting and yield it."""
        for node in body:
            if isinstance(node, Loop):
                if self.at_once and self._macs(node, counters):
                    continue
                for i in node.rounds:
                    yield from self.nodes(node.body, (*counters, i))
            elif isinstance(node, Command):
                self._command(node, counters)
            elif isinstance(node, Mark):
                self.label = node.label
            else:
                yield node, Moment(self.label, counters)

    def _command(self, node: Command, counters: Counters) -> None:
        if node.name not in _COMMANDS:
            raise NearbankError(f"command {node.name} has no function here; known: {', '.join(_COMMANDS)}")
        self.memory.counts[node.name] += len(self.stream.channels)
        _COMMANDS[node.name](self, node, counters)

    def activate(self, node: Command, counters: Counters) -> None:
        banks = self._banks(node, counters)
        if (self.memory.open[self._at, banks] != CLOSED).any():
            raise NearbankError(f"{node.name} of row {_at(node.row, counters)}: a bank has another row open")
        self.memory.open[self._at, banks] = _at(node.row, counters)

    def precharge(self, node: Command, counters: Counters) -> None:
        self.memory.open[self._at, self._banks(node, counters)] = CLOSED

    def _banks(self, node: Command, counters: Counters) -> slice | int:
        if node.name in _OF_ALL_BANKS:
            return slice(None)
        bank = _at(node.bank, counters)
        if not 0 <= bank < self.memory.target.banks:
            raise NearbankError(
                f"{node.name} in bank {bank}; machine {self.memory.target.name} has 0 to {self.memory.target.banks - 1}"
            )
        return bank

    def _check_open(self, node: Command, counters: Counters) -> int:
        """The row of a command, which must be open wherever it reaches."""
        row = _at(node.row, counters)
        if (self.memory.open[self._at, self._banks(node, counters)] != row).any():
            raise NearbankError(f"{node.name} of row {row}: it is not open in every bank it reaches")
        return row

    def _column(self, node: Command, counters: Counters) -> int:
        column = _at(node.column, counters)
        if not 0 <= column < self.memory.target.columns:
            raise NearbankError(
                f"{node.name} of column {column}; a row of machine {self.memory.target.name} has "
                f"{self.memory.target.columns}"
            )
        return column

    def send_to_buffer(self, node: Command, counters: Counters) -> None:
        size, column = self.memory.target.column_bytes, _at(node.column, counters)
        if not 0 <= column < self.memory.target.buffer_bytes // size:
            raise NearbankError(f"WRGB of burst {column}: the global buffer ends before it")
        burst, _ = self._sent(node, counters)
        self.memory.buffer[self._at, column * size : (column + 1) * size] = burst
        self.memory.buffer_changed()

    def write(self, node: Command, counters: Counters) -> None:
        row, column = self._check_open(node, counters), self._column(node, counters)
        burst, mask = self._sent(node, counters)
        stored, bank = self.memory.column(row, column), _at(node.bank, counters)
        stored[self._at, bank] = (stored[self._at, bank] & ~mask) | (burst & mask)

    def _sent(self, node: Command, counters: Counters) -> tuple[Bytes, Bytes]:
        moment, data = Moment(self.label, counters), _at(node.data, counters)
        try:
            return self.unit.send(moment, node.name, self.stream.channels, data)
        except (IndexError, KeyError, ValueError) as error:
            raise self._no_place(node, data) from error

    def read(self, node: Command, counters: Counters) -> None:
        row, column = self._check_open(node, counters), self._column(node, counters)
        burst = self.memory.column(row, column)[self._at, _at(node.bank, counters)]
        self._received(node, counters, burst)

    def _received(self, node: Command, counters: Counters, burst: Floats | Bytes) -> None:
        moment, data = Moment(self.label, counters), _at(node.data, counters)
        try:
            self.unit.receive(moment, node.name, self.stream.channels, data, burst)
        except (IndexError, KeyError, ValueError) as error:
            raise self._no_place(node, data) from error

    def _no_place(self, node: Command, data: int) -> NearbankError:
        return NearbankError(
            f"{node.name} under {self.label!r}: burst {data} has no place in the memory of the ASIC; "
            "the program was lowered for another model or placement"
        )

    def multiply(self, node: Command, counters: Counters) -> None:
        """All banks: the lanes of one step of the open column times the buffered vector's step."""
        self._multiply(node, counters, np.array([self._column(node, counters)]), np.array([_at(node.data, counters)]))

    def multiply_and_scale(self, node: Command, counters: Counters) -> None:
        """A MAC that ends a group: scale · (sum - zero · sum of activations) goes to the float accumulator."""
        self.multiply(node, counters)
        memory, register = self.memory, self._register(node, counters)
        scale, zero = self._scale(node, counters)
        exact = memory.sums[self._at, register] - zero * memory.activations[self._at, None]
        memory.scaled[self._at, register] += exact.astype(np.float32) * scale
        memory.has_scaled[self._at, register] = True
        memory.sums[self._at, register] = 0
        memory.activations[self._at] = 0

    def _scale(self, node: Command, counters: Counters) -> tuple[Singles, Floats]:
        """The scale and zero [channels, banks] that a command takes from the loaded column."""
        memory, use = self.memory, self.memory.use(node.format)
        if not use.scales:
            raise NearbankError(f"{node.name}: machine {memory.target.name}'s unit for {node.format} has no scales")
        entry = SCALE_BYTES[use.scales] + format_named(use.format).scaling.zero_bytes
        index, held = _at(node.scale, counters), memory.target.column_bytes // entry
        if not 0 <= index < held:
            raise NearbankError(f"{node.name} with scale {index}; a column of scales has 0 to {held - 1}")
        return scale_of(use.scales, memory.scales[self._at][:, :, index * entry : (index + 1) * entry])

    def load_scales(self, node: Command, counters: Counters) -> None:
        """One column of the open row of every bank into its unit."""
        row, column = self._check_open(node, counters), self._column(node, counters)
        self.memory.scales[self._at] = self.memory.column(row, column)[self._at]

    def _macs(self, loop: Loop, counters: Counters) -> bool:
        """Execute a nest of loops around one MAC command of one row; False, and nothing done, where it is not that."""
        counts, begun, node = [], 0, loop
        while isinstance(node, Loop) and len(node.body) == 1:
            counts.append(node.count)
            begun |= node.first
            node = node.body[0]  # type: ignore[assignment]
        if begun or not isinstance(node, Command) or node.name != "MACAB":
            return False
        depth = len(counters)
        if any(node.row.strides[depth:]) or any(node.register.strides[depth:]):
            return False
        rounds = int(np.prod(counts))
        self.memory.counts[node.name] += rounds * len(self.stream.channels)
        self._multiply(node, counters, _all_of(node.column, counters, counts), _all_of(node.data, counters, counts))
        return True

    def _multiply(self, node: Command, counters: Counters, columns: Ints, steps: Ints) -> None:
        memory, use = self.memory, self.memory.use(node.format)
        row = self._check_open(node, counters)
        fmt = self.unit.inputs(self.label)
        vectors = memory.vector(fmt)[self._at]
        buffered = vectors.shape[1] // use.lanes
        self._check_macs(columns, steps, buffered * use.serial)
        places, parts = steps // use.serial, steps % use.serial
        vectors = vectors[:, : buffered * use.lanes].reshape(len(vectors), 1, -1, use.lanes)[:, :, places]
        if use.serial > 1:
            vectors = _bits(vectors, parts[:, None], use.serial, activation_bits(fmt))
        in_column = use.steps // use.serial
        weights = memory.weights(row, node.format)[self._at][:, :, columns * in_column + places % in_column]
        check_codes(unit_formats(node.format)[0], weights)
        macs = integer_macs if vectors.dtype.kind == weights.dtype.kind == "i" else float_macs
        to = self._register(node, counters)
        memory.sums[self._at, to] = macs(memory.sums[self._at, to], weights, vectors)
        if use.scales:
            memory.activations[self._at] += vectors.sum(axis=(1, 2, 3), dtype=np.float64)
        memory.read[self._at] = 0

    def _check_macs(self, columns: Ints, steps: Ints, buffered: int) -> None:
        if columns.min() < 0 or columns.max() >= self.memory.target.columns:
            raise NearbankError(
                f"MACAB of columns {columns.min()} to {columns.max()}; a row of machine {self.memory.target.name} has "
                f"{self.memory.target.columns}"
            )
        if steps.min() < 0 or steps.max() >= buffered:
            raise NearbankError(
                f"MACAB with steps {steps.min()} to {steps.max()} of the vector; the global buffer holds {buffered}"
            )

    def _register(self, node: Command, counters: Counters) -> int:
        register = _at(node.register, counters)
        if not 0 <= register < self.memory.target.accumulators:
            raise NearbankError(
                f"{node.name} with accumulator {register}; the MAC units of machine {self.memory.target.name} have "
                f"{self.memory.target.accumulators}"
            )
        return register

    def read_sums(self, node: Command, counters: Counters) -> None:
        """One burst of the accumulators, bank after bank; the last burst clears them."""
        memory, target = self.memory, self.memory.target
        each = target.column_bytes // target.accumulator_bytes
        turn = int(memory.read[self.stream.channels[0]])
        register = self._register(node, counters)
        self._check_ended(register)
        scaled = bool(memory.has_scaled[self._at, register].any())
        found = memory.scaled if scaled else memory.sums
        sums = found[self._at, register, turn * each : (turn + 1) * each].astype(np.float64)
        self._received(node, counters, read_out(sums, target.accumulator_bytes).copy())
        last = turn + 1 == target.read_bursts
        memory.read[self._at] = 0 if last else turn + 1
        if last:
            memory.sums[self._at, register] = memory.scaled[self._at, register] = 0
            memory.has_scaled[self._at, register] = False
            if not scaled:  # else a group of another output may have begun
                memory.activations[self._at] = 0

    def _check_ended(self, register: int) -> None:
        """Scaled sums are read when their last group has ended."""
        memory = self.memory
        if memory.has_scaled[self._at, register].any() and memory.sums[self._at, register].any():
            raise NearbankError(
                f"RDMAC of accumulator {register}: MACs came after its last {MAC_AND_SCALE}; end the group first"
            )


def _bits(values: Levels, part: Ints, parts: int, bits: int) -> Levels:
    """The share of integers that a serial unit takes in one command: their `part`-th bits, the last ones signed.

    A last level above what `bits` bits hold, such as 1 in one bit, counts as signed all the same: sums are exact.
    """
    width = -(-bits // parts)
    shifted = values.astype(np.int16) >> (part * width)
    kept = np.where(part == parts - 1, shifted, shifted & ((1 << width) - 1))
    return np.asarray(kept << (part * width))


def _at(index: Index, counters: Counters) -> int:
    """`index.at(counters)`, in the shortest way: it is asked for several times in every command."""
    return int(index.base + sum(map(mul, index.strides, counters)))


def _all_of(index: Index, counters: Counters, counts: list[int]) -> Ints:
    """The values of an index in all rounds of the loops `counts` inside the loops at `counters`, in order."""
    values = np.array([_at(index, counters)])
    for i, count in enumerate(counts):
        depth = len(counters) + i
        stride = index.strides[depth] if depth < len(index.strides) else 0
        values = (values[:, None] + stride * np.arange(count)).reshape(-1)
    return values


_COMMANDS: dict[str, Callable[[_Run, Command, Counters], None]] = {
    "ACT": _Run.activate,
    "ACT16": _Run.activate,
    "PRE": _Run.precharge,
    "PREA": _Run.precharge,
    "WRGB": _Run.send_to_buffer,
    "MACAB": _Run.multiply,
    MAC_AND_SCALE: _Run.multiply_and_scale,
    LOAD_SCALES: _Run.load_scales,
    "RDMAC": _Run.read_sums,
    "RD": _Run.read,
    "WR": _Run.write,
}

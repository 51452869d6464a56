"""Programs executed for what they compute: banks hold real bytes, MAC commands multiply and accumulate.

Timing plays no part here; row states do: a command that needs an open row and finds another is an error. What stands
beside the memory is a `Unit`: it is asked for the bursts that are written, given those that are read, and told which
of its jobs to do. So a mapping is proved by running it and comparing with the plain arithmetic of a model.

The machine's arithmetic: products of floating values are summed in float32, pairwise over the lanes and then in the
order of the commands; sums of integers are exact. A read of the accumulators clears them; with 2 bytes each it
rounds to bf16, with 4 it is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import format_named, from_bf16, to_bf16
from nearbank.mapping.target import Target
from nearbank.sim.program import Command, Loop, Mark, Node, Program, Start, Stream, Wait

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CLOSED = -1


@dataclass(frozen=True, slots=True)
class Moment:
    """Where in a program a command or job stands: the label it counts to and the loop counters around it."""

    label: str
    counters: tuple[int, ...]

    @property
    def layer(self) -> int:
        """The layer, in programs whose second loop runs over layers."""
        return self.counters[1] if len(self.counters) > 1 else 0


class Unit(Protocol):
    """What stands beside the memory. Arrays are [channels of the stream, …]; a burst is one column access."""

    def inputs(self, label: str) -> str:
        """The format of the vectors that are multiplied under a label."""

    def send(self, moment: Moment, command: str, channels: tuple[int, ...], data: int) -> tuple[Bytes, Bytes]:
        """The burst to write, and which of its bytes to write (255 or 0): two arrays [channels, column bytes]."""

    def receive(
        self, moment: Moment, command: str, channels: tuple[int, ...], data: int, burst: Floats | Bytes
    ) -> None:
        """A burst that was read: bytes [channels, column bytes] of a row, or accumulators [channels, in a burst]."""

    def job(self, moment: Moment, job: str) -> None:
        """Do a job. All data that it needs were received."""


@dataclass
class BankMemory:
    """Rows [channels, banks, row bytes] that were ever touched, and the state of banks, buffers and accumulators."""

    target: Target
    rows: dict[int, Bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        t = self.target
        self.open: Ints = np.full((t.channels, t.banks), CLOSED, dtype=np.int64)
        self.buffer: Bytes = np.zeros((t.channels, t.buffer_bytes), dtype=np.uint8)
        self.sums: Floats = np.zeros((t.channels, t.banks))
        self.read: Ints = np.zeros(t.channels, dtype=np.int64)

    def row(self, row: int) -> Bytes:
        """One row address of all banks: uint8[channels, banks, row bytes], to read and write."""
        if row not in self.rows:
            if not 0 <= row < self.target.rows:
                raise NearbankError(f"row {row} is outside the {self.target.rows} rows of machine {self.target.name}")
            t = self.target
            self.rows[row] = np.zeros((t.channels, t.banks, t.row_bytes), dtype=np.uint8)
        return self.rows[row]

    def column(self, row: int, column: int) -> Bytes:
        """One column of a row of all banks, a view: uint8[channels, banks, column bytes]."""
        size = self.target.column_bytes
        return self.row(row)[:, :, column * size : (column + 1) * size]


def execute(program: Program, memory: BankMemory, unit: Unit) -> None:
    """Run a program; jobs run when all streams have come to them."""
    runs = [_Run(stream, memory, unit).nodes(stream.body, ()) for stream in program.streams]
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
    label: str = ""

    def nodes(self, body: tuple[Node, ...], counters: tuple[int, ...]) -> Iterator[tuple[Start | Wait, Moment]]:
        """Execute up to each meeting and yield it."""
        for node in body:
            if isinstance(node, Loop):
                for i in range(node.count):
                    yield from self.nodes(node.body, (*counters, i))
            elif isinstance(node, Command):
                _COMMANDS[node.name](self, node, counters)
            elif isinstance(node, Mark):
                self.label = node.label
            else:
                yield node, Moment(self.label, counters)

    @property
    def channels(self) -> list[int]:
        return list(self.stream.channels)

    def activate(self, node: Command, counters: tuple[int, ...]) -> None:
        banks = self._banks(node, counters)
        if (self.memory.open[np.ix_(self.channels, banks)] != CLOSED).any():
            raise NearbankError(f"{node.name} of row {node.row.at(counters)}: a bank has another row open")
        self.memory.open[np.ix_(self.channels, banks)] = node.row.at(counters)

    def precharge(self, node: Command, counters: tuple[int, ...]) -> None:
        self.memory.open[np.ix_(self.channels, self._banks(node, counters))] = CLOSED

    def _banks(self, node: Command, counters: tuple[int, ...]) -> list[int]:
        whole = node.name in ("ACT16", "PREA", "MACAB")
        return list(range(self.memory.target.banks)) if whole else [node.bank.at(counters)]

    def _opened(self, node: Command, counters: tuple[int, ...]) -> Bytes:
        """The column of the open row, a view of all channels and banks; checks that the row is the open one."""
        row = node.row.at(counters)
        if (self.memory.open[np.ix_(self.channels, self._banks(node, counters))] != row).any():
            raise NearbankError(f"{node.name} of row {row}: it is not open in every bank it reaches")
        return self.memory.column(row, node.column.at(counters))

    def send_to_buffer(self, node: Command, counters: tuple[int, ...]) -> None:
        burst, _ = self._sent(node, counters)
        size, column = self.memory.target.column_bytes, node.column.at(counters)
        if (column + 1) * size > self.memory.target.buffer_bytes:
            raise NearbankError(f"WRGB of burst {column}: the global buffer ends before it")
        self.memory.buffer[self.channels, column * size : (column + 1) * size] = burst

    def write(self, node: Command, counters: tuple[int, ...]) -> None:
        column = self._opened(node, counters)
        burst, mask = self._sent(node, counters)
        where = (self.channels, node.bank.at(counters))
        column[where] = (column[where] & ~mask) | (burst & mask)

    def _sent(self, node: Command, counters: tuple[int, ...]) -> tuple[Bytes, Bytes]:
        moment = Moment(self.label, counters)
        return self.unit.send(moment, node.name, self.stream.channels, node.data.at(counters))

    def read(self, node: Command, counters: tuple[int, ...]) -> None:
        burst = self._opened(node, counters)[self.channels, node.bank.at(counters)]
        self._received(node, counters, burst)

    def _received(self, node: Command, counters: tuple[int, ...], burst: Floats | Bytes) -> None:
        moment = Moment(self.label, counters)
        self.unit.receive(moment, node.name, self.stream.channels, node.data.at(counters), burst)

    def multiply(self, node: Command, counters: tuple[int, ...]) -> None:
        """All banks: the lanes of one step of the open column times the buffered vector's step."""
        column = self._opened(node, counters)[self.channels]
        target = self.memory.target
        fmt = format_named(node.format)
        use = target.use(fmt)
        step = node.data.at(counters)
        first = step % use.steps * use.lanes
        weights = decode(node.format, column.reshape(-1, target.column_bytes))[:, first : first + use.lanes]
        weights = weights.reshape(len(self.channels), target.banks, -1)
        vector = self._vector(self.unit.inputs(self.label), step * use.lanes, use.lanes)
        before = self.memory.sums[self.channels]
        exact = not fmt.is_float and self.unit.inputs(self.label) == "int8"
        self.memory.sums[self.channels] = (_integer_mac if exact else _float_mac)(before, weights, vector)
        self.memory.read[self.channels] = 0

    def _vector(self, fmt: str, first: int, count: int) -> Floats:
        """Values [channels, 1, count] of the buffered vector."""
        size = format_named(fmt).word_bytes
        taken = self.memory.buffer[self.channels, first * size : (first + count) * size]
        return decode(fmt, taken)[:, None, :]

    def read_sums(self, node: Command, counters: tuple[int, ...]) -> None:
        """One burst of the accumulators, bank after bank; the last burst clears them."""
        target = self.memory.target
        each = target.column_bytes // target.accumulator_bytes
        turn = int(self.memory.read[self.channels[0]])
        sums = self.memory.sums[self.channels, turn * each : (turn + 1) * each]
        if target.accumulator_bytes == 2:
            sums = from_bf16(to_bf16(sums.astype(np.float32))).astype(np.float64)
        self._received(node, counters, sums)
        self.memory.read[self.channels] = turn + 1
        if turn + 1 == target.read_bursts:
            self.memory.sums[self.channels] = 0
            self.memory.read[self.channels] = 0


_COMMANDS: dict[str, Callable[[_Run, Command, tuple[int, ...]], None]] = {
    "ACT": _Run.activate,
    "ACT16": _Run.activate,
    "PRE": _Run.precharge,
    "PREA": _Run.precharge,
    "WRGB": _Run.send_to_buffer,
    "MACAB": _Run.multiply,
    "RDMAC": _Run.read_sums,
    "RD": _Run.read,
    "WR": _Run.write,
}


def decode(fmt: str, data: Bytes) -> Floats:
    """What a bank's unit takes packed bytes [rows, bytes] for: values, or codes with a fixed zero taken off.

    Formats whose zeros are stored (int4, int2) give their codes; the ASIC takes the zeros off.
    """
    form = format_named(fmt)
    codes = form.unpack(np.ascontiguousarray(data), data.shape[1] * form.values_per_word // form.word_bytes)
    if fmt == "bf16":
        return from_bf16(codes).astype(np.float64)
    if form.is_float or fmt == "int8" or form.stores_zeros:
        return codes.astype(np.float64)
    return (form.step * codes.astype(np.int16) - form.zero).astype(np.float64)


def _integer_mac(sums: Floats, weights: Floats, vector: Floats) -> Floats:
    return np.asarray(sums + (weights * vector).sum(axis=2))


def _float_mac(sums: Floats, weights: Floats, vector: Floats) -> Floats:
    """float32 products, an adder tree over the lanes, one addition to the accumulator."""
    terms = weights.astype(np.float32) * vector.astype(np.float32)
    return (sums.astype(np.float32) + tree_sum(terms)).astype(np.float64)


def tree_sum(terms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Neighbours added pairwise in float32 over the last axis, as an adder tree does."""
    while terms.shape[-1] > 1:
        if terms.shape[-1] % 2:
            terms = np.concatenate([terms, np.zeros_like(terms[..., :1])], axis=-1)
        terms = terms[..., 0::2] + terms[..., 1::2]
    return terms[..., 0]

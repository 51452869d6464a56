"""One matrix product executed in the banks: the proof of a matrix's placement and program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Format, Quantised, format_named, to_bf16
from nearbank.mapping.bank_arithmetic import Bytes, Floats, Singles, decode
from nearbank.mapping.functional import BankMemory, Moment, execute
from nearbank.mapping.loading import chunks_of, load_matrix, output_index
from nearbank.mapping.matmul import label_of, matmul
from nearbank.mapping.matrix_placement import Chunks, MatrixPlacement
from nearbank.mapping.sweep import READ, RESULT, VECTOR
from nearbank.mapping.target import Target
from nearbank.sim.program import Builder, Node, Program, Stream, Wait
from nearbank.units import ceil_div


def program_of(name: str, channels: int, write: Callable[[Builder, int], None]) -> Program:
    """One stream for all channels that `write` gives the same body."""
    bodies: dict[tuple[Node, ...], list[int]] = {}
    for channel in range(channels):
        b = Builder()
        write(b, channel)
        b.add(Wait("asic"))
        bodies.setdefault(b.body(), []).append(channel)
    return Program(name, tuple(Stream(tuple(members), body) for body, members in bodies.items()))


def gemv_program(matrix: MatrixPlacement, target: Target) -> Program:
    """The program of one matrix product and nothing else, on layer 0."""

    def write(b: Builder, channel: int) -> None:
        matmul(b, matrix, target, channel, lambda row: row, None)

    return program_of(f"gemv {matrix.name}", target.channels, write)


def vector_bytes_of(fmt: str, vector: npt.NDArray[np.generic]) -> Bytes:
    """A vector as the bytes that go to the global buffer: integers packed, floats rounded to bf16 or fp16."""
    form = format_named(fmt)
    if form.values_per_word > 1:
        return np.asarray(form.pack(_codes(form, vector))[0])
    if fmt == "int8":
        return np.ascontiguousarray(vector.astype(np.int8)).view(np.uint8)
    rounded = to_bf16(vector.astype(np.float32)) if fmt == "bf16" else vector.astype(np.float16)
    return np.ascontiguousarray(rounded).view(np.uint8)


def _codes(fmt: Format, levels: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Codes [1, whole bytes] of levels, filled up with zeros; binary, which has none, with -1 and 1 in turn."""
    room = np.full((1, fmt.row_bytes(len(levels)) * fmt.values_per_word), fmt.zero, np.uint8)
    room[:, ::2] = 0 if fmt.name == "binary" else fmt.zero
    room[0, : len(levels)] = (levels.astype(np.int16) + fmt.zero) // fmt.step
    return room


def _filler(fmt: str) -> int:
    """The byte that follows a vector: zeros, of which any number adds nothing; in binary -1 and 1 in turn."""
    form = format_named(fmt)
    if form.values_per_word == 1:
        return 0
    codes = np.full((1, form.values_per_word), form.zero, np.uint8)
    codes[:, ::2] = 0 if fmt == "binary" else form.zero
    return int(form.pack(codes)[0, 0])


@dataclass
class MatrixSums:
    """The ASIC's side of one matrix product: it holds the vector, and adds up the results of the chunks.

    `totals` [outputs per bank, channels, banks] are the sums so far; `scale_bytes` are what was read from the rows.
    With scales per group, unless the banks applied them, the results of a chunk wait until it ends, and are then scaled
    group by group, by the inputs' scale too. Sums of floats are float32, those of integers exact until they are scaled.
    """

    matrix: MatrixPlacement
    target: Target
    vector: Bytes
    input_scale: np.float32 = np.float32(1)  # noqa: RUF009
    scale_bytes: dict[int, Bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        t = self.target
        self._kinds = list(chunks_of(self.matrix))
        self._chunk = 0
        exact = not (format_named(self.matrix.use.format).is_float or self.grouped or self.matrix.scaled_in_bank)
        shape = (self.matrix.outputs_of(0, t), t.channels, t.banks)
        self.totals: npt.NDArray[Any] = np.zeros(shape, np.float64 if exact else np.float32)
        self._parts: dict[int, Floats] = {}

    @property
    def at_work(self) -> Chunks:
        """What kind of chunk is being multiplied."""
        return self._kinds[self._chunk][0]

    @property
    def grouped(self) -> bool:
        """True when every group of inputs has scales of its own that are applied here."""
        return format_named(self.matrix.use.format).scaling.per == "group" and not self.matrix.scaled_in_bank

    def send(self, channels: tuple[int, ...], data: int) -> Bytes:
        """A burst of the vector. Chunks follow each other in bursts of their own; zeros follow each."""
        size = self.target.column_bytes
        begun, first, width = self._begin_chunk(data - VECTOR)
        offset, bits = (data - VECTOR - begun) * size, self.matrix.input_bits
        found = np.full((self.matrix.split, size), _filler(self.matrix.input_format), dtype=np.uint8)
        for member, burst in enumerate(found):
            begin = (first + member * self.matrix.inputs) * bits // 8
            part = self.vector[begin + offset : min(begin + offset + size, begin + ceil_div(width * bits, 8))]
            burst[: len(part)] = part
        return np.asarray(found[np.array(channels) % self.matrix.split])

    def _begin_chunk(self, burst: int) -> tuple[int, int, int]:
        """(first burst, first input, width) of the chunk that a burst belongs to; the chunk before it is closed."""
        t, bits = self.target, self.matrix.input_bits
        starts = [
            t.vector_bursts(c.first, bits) + i * t.vector_bursts(c.width, bits)
            for c in self.matrix.chunks
            for i in range(c.count)
        ]
        chunk = max(i for i, start in enumerate(starts) if start <= burst)
        if chunk != self._chunk:
            self._close_chunk()
            self._chunk = chunk
        return starts[chunk], *self._kinds[chunk][1:3]

    def receive(self, command: str, channels: tuple[int, ...], data: int, burst: Floats | Bytes) -> None:
        """Accumulators, or scales from the rows."""
        where = list(channels)
        if command == "RD":
            empty = np.zeros((self.target.channels, burst.shape[1]), np.uint8)
            self.scale_bytes.setdefault(data - READ, empty)[where] = burst
            return
        output, turn = divmod(data - RESULT, self.target.read_bursts)
        span = slice(turn * burst.shape[1], (turn + 1) * burst.shape[1])
        if self.grouped:
            room = np.zeros((self.target.channels, self.target.banks))
            self._parts.setdefault(output, room)[where, span] = burst
        else:
            self.totals[output, where, span] += burst

    def _close_chunk(self) -> None:
        """Add scale · (sum − zero · Σx) of every group of the chunk at hand, in float32, group after group."""
        if not self._parts:
            return
        chunks, first, width, _ = self._kinds[self._chunk]
        group = format_named(self.matrix.use.format).scaling.group
        inputs = decode(self.matrix.input_format, self.vector)[first : first + width].astype(np.int64)
        totals = [inputs[i : i + group].sum() for i in range(0, width, group)]
        for index, sums in self._parts.items():
            output, part = divmod(index, chunks.parts)
            scale, zero = self._group_scale(chunks, output, part)
            exact = (sums - zero * totals[part]).astype(np.float32)
            self.totals[output] += exact * (self.input_scale * scale)
        self._parts.clear()
        self.scale_bytes.clear()

    def _group_scale(self, chunks: Chunks, output: int, part: int) -> tuple[Singles, Floats]:
        """Scale and zero [channels, banks] of one group of one output, from the bytes at the end of its row."""
        banks, size = self.target.banks, self.target.column_bytes
        row, place = divmod(output, chunks.packing.per_row)
        first = place * 5 * chunks.parts
        columns = [
            np.stack([self.scale_bytes[(row * chunks.scale_columns + c) * banks + k] for k in range(banks)], axis=1)
            for c in range(first // size, ceil_div(first + 5 * chunks.parts, size))
        ]
        found = np.concatenate(columns, axis=2)[:, :, first % size :]  # [channels, banks, bytes]
        scale = np.ascontiguousarray(found[:, :, 4 * part : 4 * part + 4]).view(np.float32)[:, :, 0]
        return scale, found[:, :, 4 * chunks.parts + part].astype(np.float64)

    def scales(self) -> npt.NDArray[np.float32]:
        """The scales per row [n] that were read, in the order of the outputs."""
        bursts = [self.scale_bytes[i] for i in range(len(self.scale_bytes))]
        flat = np.concatenate(bursts, axis=1)  # [channels, bytes]
        each = self.target.outputs_of(0, self.matrix.n)
        t = self.target
        used = np.ascontiguousarray(flat[:, : each * t.banks * 4]).view(np.float32)
        return used.reshape(t.channels, each, t.banks).transpose(1, 0, 2).reshape(-1)[: self.matrix.n]

    def result(self, scales: npt.NDArray[np.float32] | None = None) -> Singles:
        """The product [n] in float32, in the order of the outputs.

        `scales`: of a tensor or of rows, where they did not come from the banks; integer sums are rounded to float32
        and multiplied with inputs' scale · weights' scale, as the kernels do.
        """
        self._close_chunk()
        each, _, banks = self.totals.shape
        totals = self.totals.reshape(each, -1, self.matrix.split, banks).sum(axis=2)
        sums = np.zeros(totals.size, totals.dtype)
        sums[output_index(self.target, self.matrix.n, self.matrix.split).reshape(-1)] = totals.reshape(-1)
        y = sums[: self.matrix.n].astype(np.float32)
        if self.matrix.scaled_in_bank:
            return np.asarray(y * self.input_scale)
        if self.grouped or format_named(self.matrix.use.format).is_float:
            return y
        found = self.scales() if self.matrix.scales else np.asarray(scales, np.float32).reshape(-1)
        return np.asarray(y * (self.input_scale * found))


@dataclass
class _GemvUnit:
    sums: MatrixSums

    def inputs(self, label: str) -> str:
        return self.sums.matrix.input_format

    def send(self, moment: Moment, command: str, channels: tuple[int, ...], data: int) -> tuple[Bytes, Bytes]:
        if command != "WRGB":
            raise NearbankError(f"a matrix product writes vectors only, not {command}")
        burst = self.sums.send(channels, data)
        return burst, np.full_like(burst, 255)

    def receive(
        self, moment: Moment, command: str, channels: tuple[int, ...], data: int, burst: Floats | Bytes
    ) -> None:
        self.sums.receive(command, channels, data, burst)

    def job(self, moment: Moment, job: str) -> None:
        if job != f"sum {label_of(self.sums.matrix.name)}":
            raise NearbankError(f"unexpected job {job!r} in a matrix product")


def run_gemv(matrix: MatrixPlacement, target: Target, weights: Quantised, vector: npt.NDArray[np.generic]) -> Singles:
    """weights [n, k] · vector [k] through the mapped program: sums [n] times the weights' scales, in float32.

    `vector` holds int8 codes where the matrix takes int8, else floats, which are rounded to its input format.
    """
    memory = BankMemory(target)
    load_matrix(memory, matrix, weights)
    sums = MatrixSums(matrix, target, vector_bytes_of(matrix.input_format, vector))
    execute(gemv_program(matrix, target), memory, _GemvUnit(sums))
    return sums.result(weights.scales)

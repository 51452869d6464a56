"""One matrix product executed in the banks: the proof of a matrix's placement and program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Quantised, format_named, to_bf16
from nearbank.mapping.functional import BankMemory, Bytes, Floats, Moment, execute
from nearbank.mapping.loading import chunks_of, load_matrix, output_index
from nearbank.mapping.matmul import label_of, matmul
from nearbank.mapping.matrix_placement import MatrixPlacement
from nearbank.mapping.sweep import READ, RESULT, VECTOR
from nearbank.mapping.target import Target
from nearbank.sim.program import Builder, Node, Program, Stream, Wait


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
    """A vector as the bytes that go to the global buffer: int8 codes as they are, floats rounded to bf16 or fp16."""
    if fmt == "int8":
        return np.ascontiguousarray(vector.astype(np.int8)).view(np.uint8)
    rounded = to_bf16(vector.astype(np.float32)) if fmt == "bf16" else vector.astype(np.float16)
    return np.ascontiguousarray(rounded).view(np.uint8)


@dataclass
class MatrixSums:
    """The ASIC's side of one matrix product: it holds the vector, and adds up the results of the chunks.

    `totals` [outputs per bank, channels, banks] are the sums so far; `scales` are what was read from the rows.
    """

    matrix: MatrixPlacement
    target: Target
    vector: Bytes
    chunk: int = 0
    totals: Floats = field(default_factory=lambda: np.zeros(0))
    scale_bytes: dict[int, Bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        t = self.target
        self._kinds = list(chunks_of(self.matrix))
        self._arrived = 0
        self.totals = np.zeros((t.outputs_of(0, self.matrix.n), t.channels, t.banks))

    def send(self, channels: tuple[int, ...], data: int) -> Bytes:
        """A burst of the vector. Chunks follow each other in bursts of their own; zeros follow each."""
        size = self.target.column_bytes
        burst = np.zeros(size, dtype=np.uint8)
        first, width = self._chunk_at(data - VECTOR)
        start = first * self.matrix.input_bytes
        offset = (data - VECTOR - self.target.bursts(start)) * size
        part = self.vector[start + offset : min(start + offset + size, start + width * self.matrix.input_bytes)]
        burst[: len(part)] = part
        return np.broadcast_to(burst, (len(channels), size)).copy()

    def _chunk_at(self, burst: int) -> tuple[int, int]:
        """(first input, width) of the chunk that a burst of the vector belongs to."""
        bytes_each = self.matrix.input_bytes
        started = [(f, w) for _, f, w, _ in self._kinds if self.target.bursts(f * bytes_each) <= burst]
        return started[-1]

    def receive(self, command: str, channels: tuple[int, ...], data: int, burst: Floats | Bytes) -> None:
        if command == "RD":
            for channel, values in zip(channels, burst, strict=True):
                whole = self.scale_bytes.setdefault(
                    data - READ, np.zeros((self.target.channels, burst.shape[1]), np.uint8)
                )
                whole[channel] = values
            return
        output, part = divmod(data - RESULT, self.target.read_bursts)
        width = burst.shape[1]
        self.totals[output, list(channels), part * width : (part + 1) * width] += burst

    def scales(self) -> npt.NDArray[np.float32]:
        """The scales [n] that were read, in the order of the outputs."""
        bursts = [self.scale_bytes[i] for i in range(len(self.scale_bytes))]
        flat = np.concatenate(bursts, axis=1)  # [channels, bytes]
        each = self.target.outputs_of(0, self.matrix.n)
        t = self.target
        used = np.ascontiguousarray(flat[:, : each * t.banks * 4]).view(np.float32)
        return used.reshape(t.channels, each, t.banks).transpose(1, 0, 2).reshape(-1)[: self.matrix.n]

    def result(self) -> Floats:
        """The sums [n], in the order of the outputs."""
        result = np.zeros(self.totals.size)
        result[output_index(self.target, self.matrix.n).reshape(-1)] = self.totals.reshape(-1)
        return result[: self.matrix.n]


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


def run_gemv(
    matrix: MatrixPlacement, target: Target, weights: Quantised, vector: npt.NDArray[np.generic]
) -> npt.NDArray[np.float64]:
    """weights [n, k] · vector [k] through the mapped program: sums [n] times the weights' scales.

    `vector` holds int8 codes where the matrix takes int8, else floats, which are rounded to its input format. Results
    of chunks are added in float64, as sums that the ASIC keeps exactly.
    """
    memory = BankMemory(target)
    load_matrix(memory, matrix, weights)
    sums = MatrixSums(matrix, target, vector_bytes_of(matrix.input_format, vector))
    execute(gemv_program(matrix, target), memory, _GemvUnit(sums))
    fmt = format_named(matrix.use.format)
    if fmt.is_float:
        return sums.result()
    scales = sums.scales() if matrix.scales else np.asarray(weights.scales).reshape(-1)
    return np.asarray(sums.result() * scales)

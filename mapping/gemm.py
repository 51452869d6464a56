"""A matrix times several vectors in the banks: every open row is multiplied with all of them before it closes.

The proof of weight reuse: results are those of as many single products through the same placement, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Quantised
from nearbank.mapping.bank_arithmetic import Bytes, Floats, Singles
from nearbank.mapping.functional import BankMemory, Moment, execute
from nearbank.mapping.gemv import MatrixSums, program_of, vector_bytes_of
from nearbank.mapping.loading import load_matrix
from nearbank.mapping.matmul import all_vector_bursts, label_of, matmul, result_bursts
from nearbank.mapping.matrix_placement import MatrixPlacement
from nearbank.mapping.sweep import RESULT, VECTOR
from nearbank.mapping.target import Target
from nearbank.sim.program import Builder, Program


def gemm_program(matrix: MatrixPlacement, target: Target, vectors: int) -> Program:
    """The program of one product with so many vectors and nothing else, on layer 0."""
    _check_room(matrix, target, vectors)

    def write(b: Builder, channel: int) -> None:
        matmul(b, matrix, target, channel, lambda row: row, None, vectors=vectors)

    return program_of(f"gemm {matrix.name}", target.channels, write)


def _check_room(matrix: MatrixPlacement, target: Target, vectors: int) -> None:
    if not 1 <= vectors <= target.choices.reuse:
        raise NearbankError(
            f"{matrix.name}: {vectors} vectors at once, but it is placed for 1 to {target.choices.reuse}; "
            "place it with Choices(reuse=...)"
        )


@dataclass
class _GemmUnit:
    """The ASIC's side: the sums of each vector. Scales that come from the rows are for all of them."""

    sums: tuple[MatrixSums, ...]

    def inputs(self, label: str) -> str:
        return self.sums[0].matrix.input_format

    def send(self, moment: Moment, command: str, channels: tuple[int, ...], data: int) -> tuple[Bytes, Bytes]:
        first = self.sums[0]
        vector, rest = divmod(data - VECTOR, all_vector_bursts(first.matrix, first.target))
        burst = self.sums[vector].send(channels, VECTOR + rest)
        return burst, np.full_like(burst, 255)

    def receive(
        self, moment: Moment, command: str, channels: tuple[int, ...], data: int, burst: Floats | Bytes
    ) -> None:
        if command == "RD":
            for sums in self.sums:
                sums.receive(command, channels, data, burst)
            return
        first = self.sums[0]
        vector, rest = divmod(data - RESULT, result_bursts(first.matrix, first.at_work, first.target))
        self.sums[vector].receive(command, channels, RESULT + rest, burst)

    def job(self, moment: Moment, job: str) -> None:
        if job != f"sum {label_of(self.sums[0].matrix.name)}":
            raise NearbankError(f"unexpected job {job!r} in a matrix product")


def run_gemm(
    matrix: MatrixPlacement, target: Target, weights: Quantised, vectors: npt.NDArray[np.generic]
) -> tuple[Singles, Counter[str]]:
    """weights [n, k] · vectors [v, k] through the mapped program: [v, n] in float32, and the commands it took."""
    memory = BankMemory(target)
    load_matrix(memory, matrix, weights)
    sums = tuple(MatrixSums(matrix, target, vector_bytes_of(matrix.input_format, vector)) for vector in vectors)
    execute(gemm_program(matrix, target, len(vectors)), memory, _GemmUnit(sums))
    return np.stack([each.result(weights.scales) for each in sums]), memory.counts

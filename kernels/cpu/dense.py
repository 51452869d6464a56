"""Float activations times float weights (embeddings, the LM head), row by row in the fixed order of sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.compiled import compiled
from nearbank.kernels.arrays import plain
from nearbank.kernels.cpu.floats import lane_dot
from nearbank.kernels.packed import PackedMatrix
from nearbank.kernels.reference.lanes import padded
from nearbank.kernels.threads import in_parts

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Dense:
    """Weights as stored, [N, K padded to 16]: float32, or 16-bit patterns of fp16 or bf16."""

    rows: int
    kind: int
    weights: npt.NDArray[Any]


KINDS = {"fp32": 0, "fp16": 1, "bf16": 2}


def prepare_dense(packed: PackedMatrix) -> Dense:
    """View the packed bytes as numbers; copies them if a row is not a multiple of 16, or if they are read-only."""
    stored = np.uint32 if packed.format.name == "fp32" else np.uint16
    weights = plain(packed.packed).view(stored)
    return Dense(packed.shape[0], KINDS[packed.format.name], padded(weights, 16))


@compiled(nogil=True)
def _multiply(kind, first, last, x, w, y):  # type: ignore[no-untyped-def]
    flat_x, flat_w = x.reshape(-1), w.reshape(-1)
    vectors = x.shape[1] // 16
    for n in range(first, last):
        for m in range(x.shape[0]):
            y[m, n] = lane_dot(kind, flat_x, m * x.shape[1], flat_w, n * x.shape[1], vectors)


def matmul_dense(x: Floats, dense: Dense) -> Floats:
    """x [M, K] float32 → [M, N]."""
    wide = padded(x, 16)
    y = np.empty((len(x), dense.rows), np.float32)

    def run(first: int, last: int) -> None:
        _multiply(dense.kind, first, last, wide, dense.weights, y)

    in_parts(run, dense.rows, work=dense.weights.nbytes * len(x))
    return y

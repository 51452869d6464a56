"""One forward pass through a network: runs its operations and, when asked, notes each with its measured time.

Networks (`nearbank.models.gpt` and its neighbours) say what is computed in which order; the arithmetic of matrix
products and attention is the kernels'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nearbank.formats import Format
from nearbank.kernels import Matrix, linear
from nearbank.models.operations import OUTSIDE, append, attended, attention, elementwise, matmul
from nearbank.models.rounding import Rounding
from nearbank.trace import Operation

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]
Row = tuple[int, Operation, int | None]  # layer, operation, time_ns (None: not measured by itself)


class Cache(Protocol):
    """What a pass needs of a KV cache (`nearbank.kernels.KVCache`)."""

    format: Format
    kv_heads: int
    head_dim: int

    def length(self, layer: int = 0) -> int: ...

    def append(self, layer: int, k: Any, v: Any) -> None: ...

    def attend(self, layer: int, q: Any, scale: float | None = None) -> Floats: ...


@dataclass(frozen=True)
class Linear:
    """A named weight matrix [N, K] ready to multiply; `inputs` is the format its activations are rounded to.

    rounding: how, where it is not the kernels' own int8.
    """

    name: str
    matrix: Matrix
    inputs: str
    bias: Floats | None = None
    rounding: Rounding | None = None

    def __call__(self, x: Floats) -> Floats:
        rounding = self.rounding  # y: [M, N]
        y: Floats = linear(x, self.matrix, self.inputs) if rounding is None else rounding.multiply(x, self.matrix)
        return y if self.bias is None else y + self.bias


@dataclass
class Pass:
    """New tokens [M] of one or more sequences, one sequence after the other, with a cache for each sequence.

    `lengths` counts the new tokens of each sequence. `rows` collects what ran; None does not record.
    """

    tokens: Tokens
    lengths: Sequence[int]
    caches: Sequence[Cache]
    rows: list[Row] | None = None
    layer: int = OUTSIDE
    positions: Tokens = field(init=False)

    def __post_init__(self) -> None:
        starts = [cache.length(0) for cache in self.caches]
        ranges = [np.arange(start, start + n) for start, n in zip(starts, self.lengths, strict=True)]
        self.positions = np.concatenate(ranges)

    @property
    def last(self) -> Tokens:
        """The row of each sequence's last token."""
        return np.cumsum(self.lengths) - 1

    def embed(self, name: str, function: Callable[..., Floats], *arguments: Any) -> Floats:
        return self._elementwise("embed", name, function, *arguments)

    def norm(self, name: str, function: Callable[..., Floats], *arguments: Any) -> Floats:
        return self._elementwise("norm", name, function, *arguments)

    def activation(self, name: str, function: Callable[..., Floats], *arguments: Any) -> Floats:
        return self._elementwise("activation", name, function, *arguments)

    def residual(self, name: str, x: Floats, y: Floats) -> Floats:
        return self._elementwise("residual", name, np.add, x, y)

    def matmul(self, weight: Linear, x: Floats) -> Floats:
        """x [M, K] → [M, N]."""
        if self.rows is None:
            return weight(x)
        start = perf_counter_ns()
        y = weight(x)
        time_ns = perf_counter_ns() - start
        n, k = weight.matrix.shape
        self._note(matmul(weight.name, len(x), n, k, weight.matrix.format.name, weight.inputs), time_ns)
        return y

    def attend(
        self, name: str, q: Floats, k: Floats, v: Floats, scale: float | None = None, window: int | None = None
    ) -> Floats:
        """Append k, v [M, kv_heads, head_dim] to the caches; q [M, heads, head_dim] → context [M, heads, head_dim].

        window: positions that a query attends at most, as the cache knows too. The kernel computes scores, softmax
        and context product in one go: their common time is noted with the context product, the other two have none.
        """
        out = np.empty(q.shape, np.float32)
        first = 0
        for sequence, length in enumerate(self.lengths):
            part = slice(first, first + length)
            self._append(name, sequence, k[part], v[part])
            out[part] = self._attend(name, sequence, q[part], scale, window)
            first += length
        return out

    def _append(self, name: str, sequence: int, k: Floats, v: Floats) -> None:
        cache = self.caches[sequence]
        start = perf_counter_ns()
        cache.append(self.layer, k, v)
        time_ns = perf_counter_ns() - start
        end = cache.length(self.layer)
        self._note(
            append(f"{name}.kv", len(k), cache.kv_heads, cache.head_dim, end, cache.format.name, sequence), time_ns
        )

    def _attend(self, name: str, sequence: int, q: Floats, scale: float | None, window: int | None) -> Floats:
        cache = self.caches[sequence]
        start = perf_counter_ns()
        out = cache.attend(self.layer, q, scale)
        time_ns = perf_counter_ns() - start
        m, heads, head_dim = q.shape
        context, pairs = attended(m, cache.length(self.layer), window)
        score, softmax, product = attention(
            name, m, heads, cache.kv_heads, head_dim, context, pairs, cache.format.name, sequence
        )
        self._note(score, None)
        self._note(softmax, None)
        self._note(product, time_ns)
        return out

    def _elementwise(self, op: str, name: str, function: Callable[..., Floats], *arguments: Any) -> Floats:
        if self.rows is None:
            return function(*arguments)
        start = perf_counter_ns()
        y = function(*arguments)
        time_ns = perf_counter_ns() - start
        self._note(elementwise(op, name, len(y), y.size // len(y)), time_ns)
        return y

    def _note(self, operation: Operation, time_ns: int | None) -> None:
        if self.rows is not None:
            self.rows.append((self.layer, operation, time_ns))

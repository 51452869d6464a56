"""One forward pass through a network: runs its operations and, when asked, notes each with its measured time.

Networks (`nearbank.models.gpt` and its neighbours) say what is computed in which order; the arithmetic of matrix
products and attention is the kernels'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    capacity: int

    @property
    def kind(self) -> str: ...

    def length(self, layer: int = 0) -> int: ...

    def clear(self) -> None: ...

    def copy_from(self, other: Any) -> None: ...

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

    `lengths` counts the new tokens of each sequence. `rows` collects what ran; None does not record. `first_layer`:
    the layer that the caches count from. `sources`: for a decoder that attends a source, its K and V for each
    sequence; sequences of one source have the same cache.
    """

    tokens: Tokens
    lengths: Sequence[int]
    caches: Sequence[Cache]
    rows: list[Row] | None = None
    layer: int = OUTSIDE
    first_layer: int = 0
    sources: Sequence[Cache] = ()
    positions: Tokens = field(init=False)

    def __post_init__(self) -> None:
        starts = [cache.length(0) for cache in self.caches]
        ranges = [np.arange(start, start + n) for start, n in zip(starts, self.lengths, strict=True)]
        self.positions = np.concatenate(ranges)

    @property
    def reach(self) -> Tokens:
        """For each new token [M], how many positions its sequence's cache has room for."""
        return np.repeat([cache.capacity for cache in self.caches], self.lengths)

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
        for sequence, part in enumerate(self._parts()):
            cache = self.caches[sequence]
            self._append(name, sequence, cache, self._inner, k[part], v[part])
            start = perf_counter_ns()
            out[part] = cache.attend(self._inner, q[part], scale)
            time_ns = perf_counter_ns() - start
            context, pairs = attended(len(q[part]), cache.length(self._inner), window)
            self._note_attention(name, sequence, cache, q[part], (context, pairs), time_ns)
        return out

    def attend_all(self, name: str, q: Floats, k: Floats, v: Floats) -> Floats:
        """Every query [M, heads, head_dim] attends every position of its sequence, also later ones; nothing is kept."""
        out = np.empty(q.shape, np.float32)
        for sequence, part in enumerate(self._parts()):
            cache = self.caches[sequence]
            cache.clear()
            self._append(name, sequence, cache, 0, k[part], v[part])
            out[part] = self._attend_whole(name, sequence, cache, 0, q[part])
        return out

    def keep_source(self, name: str, k: Floats, v: Floats) -> None:
        """Put K and V [M, kv_heads, head_dim] of the sources into their caches, where they stay."""
        for sequence, part in enumerate(self._parts()):
            self._append(name, sequence, self.sources[sequence], self._inner, k[part], v[part])

    def attend_source(self, name: str, q: Floats) -> Floats:
        """Every query [M, heads, head_dim] attends every position of its sequence's source."""
        out = np.empty(q.shape, np.float32)
        for sequence, part in enumerate(self._parts()):
            out[part] = self._attend_whole(name, sequence, self.sources[sequence], self._inner, q[part])
        return out

    @property
    def _inner(self) -> int:
        """The layer as the caches count."""
        return self.layer - self.first_layer

    def _parts(self) -> Iterator[slice]:
        """The rows of each sequence."""
        first = 0
        for length in self.lengths:
            yield slice(first, first + length)
            first += length

    def _append(self, name: str, sequence: int, cache: Cache, layer: int, k: Floats, v: Floats) -> None:
        start = perf_counter_ns()
        cache.append(layer, k, v)
        time_ns = perf_counter_ns() - start
        end = cache.length(layer)
        self._note(append(f"{name}.kv", len(k), cache.kv_heads, cache.head_dim, end, cache.kind, sequence), time_ns)

    def _attend_whole(self, name: str, sequence: int, cache: Cache, layer: int, q: Floats) -> Floats:
        start = perf_counter_ns()
        out = attend_whole(cache, layer, q)
        time_ns = perf_counter_ns() - start
        end = cache.length(layer)
        self._note_attention(name, sequence, cache, q, (end, len(q) * end), time_ns)
        return out

    def _note_attention(
        self, name: str, sequence: int, cache: Cache, q: Floats, seen: tuple[int, int], time_ns: int
    ) -> None:
        """seen: positions that the last query attends, and pairs. A cache of an earlier sequence is shared whole."""
        if self.rows is None:
            return
        m, heads, head_dim = q.shape
        first = next((i for i, other in enumerate(self.sources) if other is cache), sequence)
        holding = () if first == sequence else (first, seen[0])
        score, softmax, product = attention(
            name, m, heads, cache.kv_heads, head_dim, *seen, cache.kind, sequence, *holding
        )
        self._note(score, None)
        self._note(softmax, None)
        self._note(product, time_ns)

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


def attend_whole(cache: Cache, layer: int, q: Floats) -> Floats:
    """q [T, heads, head_dim], each attending every token of a cache: the last token's attention with T times the heads.

    Heads are shared out over KV heads in order, so the T queries of a KV head stand side by side.
    """
    tokens, heads, dim = q.shape
    grouped = q.reshape(tokens, cache.kv_heads, -1, dim).swapaxes(0, 1)  # [G, T, H/G, E]
    mixed = cache.attend(layer, np.ascontiguousarray(grouped).reshape(1, tokens * heads, dim))
    return np.asarray(mixed.reshape(cache.kv_heads, tokens, -1, dim).swapaxes(0, 1).reshape(q.shape))

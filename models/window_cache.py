"""A KV cache in plain NumPy for what the kernels' cache does not do: sliding windows and soft-capped scores.

It holds the values that the format can represent, rounded once, as float32; bytes are counted by the format.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nearbank.errors import NearbankError
from nearbank.formats import Format, format_named, from_bf16
from nearbank.kernels.reference.quantise import quantise_tokens
from nearbank.models.execution import Floats


class WindowCache:
    """Keys and values of one sequence. windows: per layer, repeated; softcap: cap · tanh(score / cap)."""

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        kv: str,
        windows: Sequence[int | None] = (None,),
        softcap: float | None = None,
    ) -> None:
        self.format = format_named(kv).for_cache()
        self.kv_heads, self.head_dim, self.capacity = kv_heads, head_dim, capacity
        self._windows = windows
        self._softcap = None if softcap is None else np.float32(softcap)
        shape = (layers, kv_heads, capacity, head_dim)
        self._keys, self._values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._lengths = [0] * layers

    def length(self, layer: int = 0) -> int:
        """Tokens held in a layer."""
        return self._lengths[layer]

    def append(self, layer: int, k: Any, v: Any) -> None:
        """Add k, v [T, kv_heads, head_dim], rounded to the format."""
        start, end = self.length(layer), self.length(layer) + len(k)
        if end > self.capacity:
            raise NearbankError(f"KV cache: {end} tokens exceed its capacity of {self.capacity}")
        self._keys[layer, :, start:end] = rounded(k, self.format).swapaxes(0, 1)
        self._values[layer, :, start:end] = rounded(v, self.format).swapaxes(0, 1)
        self._lengths[layer] = end

    def attend(self, layer: int, q: Any, scale: float | None = None) -> Floats:
        """Causal attention of q [T, heads, head_dim], the queries of the last T tokens appended.

        One query at a time, so that a token's result does not depend on the tokens beside it.
        """
        factor = np.float32(self.head_dim**-0.5 if scale is None else scale)
        first = self.length(layer) - len(q) + 1
        return np.stack([self._attend_one(layer, query, first + t, factor) for t, query in enumerate(q)])

    def _attend_one(self, layer: int, q: Floats, end: int, scale: np.float32) -> Floats:
        window = self._windows[layer % len(self._windows)]
        seen = slice(max(0, end - window) if window else 0, end)
        grouped = q.reshape(self.kv_heads, -1, self.head_dim)  # [G, H/G, E]
        scores = grouped @ self._keys[layer, :, seen].swapaxes(1, 2) * scale  # [G, H/G, n]
        if self._softcap is not None:
            scores = np.tanh(scores / self._softcap) * self._softcap
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.asarray(weights @ self._values[layer, :, seen]).reshape(q.shape)


def rounded(values: Any, fmt: Format) -> Floats:
    """Each token and head […, head_dim] as the cache format holds it."""
    floats = np.ascontiguousarray(values, dtype=np.float32)
    if fmt.is_float:
        flat = floats.reshape(-1, floats.shape[-1])
        return fmt.dequantise(fmt.quantise(flat)).reshape(floats.shape)
    codes, scales, offsets = quantise_tokens(floats, fmt.high)
    return from_bf16(offsets)[..., None] + from_bf16(scales)[..., None] * codes

"""A KV cache for models that were trained with rounded attention: codes and scales, as the checkpoint says.

K and V are rounded when they are appended, queries and probabilities when they are used; products of codes are exact,
scales and softmax are computed in double precision, so no order of sums shows in the result. In plain NumPy, one query
at a time: made for being right. Codes are held as float32, in which their products are exact; what a packed cache would
store is counted, not allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nearbank.formats import Format, format_named
from nearbank.models.rounding import AttentionRounding, Floats, Rounding
from nearbank.models.sequence_cache import SequenceCache


class CodesCache(SequenceCache):
    """Keys and values of one sequence; `rounding` has one entry per layer."""

    memory = ("_keys", "_values", "_key_scales", "_value_scales")

    def __init__(self, rounding: Sequence[AttentionRounding], kv_heads: int, head_dim: int, capacity: int) -> None:
        super().__init__(len(rounding), kv_heads, head_dim, capacity)
        self._rounding = tuple(rounding)
        self.format: Format = format_named(self._rounding[0].k.format)
        shape = (len(self._rounding), kv_heads, capacity)
        self._keys, self._values = np.zeros((*shape, head_dim), np.float32), np.zeros((*shape, head_dim), np.float32)
        self._key_scales, self._value_scales = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    @property
    def kind(self) -> str:
        """The format of its codes."""
        return self.format.name

    def append(self, layer: int, k: Any, v: Any) -> None:
        """Round and add k, v [T, kv_heads, head_dim]."""
        start, end = self._grown(layer, len(k))
        rounding = self._rounding[layer]
        for x, rule, codes, scales in (
            (k, rounding.k, self._keys, self._key_scales),
            (v, rounding.v, self._values, self._value_scales),
        ):
            codes[layer, :, start:end], scales[layer, :, start:end] = _rounded(np.swapaxes(x, 0, 1), rule)

    def attend(self, layer: int, q: Any, scale: float | None = None) -> Floats:
        """Causal attention of q [T, heads, head_dim], the queries of the last T tokens appended."""
        factor = self.head_dim**-0.5 if scale is None else scale
        first = self.length(layer) - len(q) + 1
        codes, scales = _rounded(np.asarray(q), self._rounding[layer].q)
        rows = [self._attend_one(layer, codes[t], scales[t], first + t, factor) for t in range(len(q))]
        return np.stack(rows)

    def _attend_one(self, layer: int, q: Floats, q_scales: Floats, end: int, scale: float) -> Floats:
        """q [H, E] codes with scales [H], over the first `end` tokens → [H, E]."""
        shared = len(q) // self.kv_heads
        keys, values = (np.repeat(x[layer, :, :end], shared, axis=0) for x in (self._keys, self._values))
        key_scales, value_scales = (
            np.repeat(x[layer, :, :end], shared, axis=0).astype(np.float64)
            for x in (self._key_scales, self._value_scales)
        )
        exact = np.einsum("hne,he->hn", keys, q).astype(np.float64)
        scores = exact * (q_scales[:, None] * key_scales) * scale
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
        codes, p_scales = self._rounding[layer].p.apply(probabilities)
        mixed = np.einsum("hn,hne->he", codes * value_scales, values.astype(np.float64))
        return np.asarray(mixed * p_scales[:, None], dtype=np.float32)


def _rounded(x: Floats, rule: Rounding) -> tuple[Floats, Floats]:
    """x […, E] → codes […, E] and scales […]."""
    codes, scales = rule.apply(np.ascontiguousarray(x, dtype=np.float32).reshape(-1, x.shape[-1]))
    return codes.astype(np.float32).reshape(x.shape), scales.reshape(x.shape[:-1])

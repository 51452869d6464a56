"""A KV cache in plain NumPy for what the kernels' caches do not do: sliding windows, soft-capped scores, and fitted
channels without an exact newest token (`-2d`). Tests hold the kernels' caches against it.

It holds exact and rounded values side by side as float32; what a format would store is counted, not allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from nearbank.kernels.reference.feedback import rounded_with_feedback
from nearbank.models.execution import Floats
from nearbank.models.kv import KIVI_GROUP, ChannelFit, KvScheme, fit_for, name_with
from nearbank.models.sequence_cache import SequenceCache


class PlainCache(SequenceCache):
    """Keys and values of one sequence. windows: per layer, repeated; softcap: cap · tanh(score / cap)."""

    memory = ("_keys", "_values", "_rounded_keys", "_rounded_values")

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        scheme: KvScheme,
        windows: Sequence[int | None] = (None,),
        softcap: float | None = None,
        fit: ChannelFit | None = None,
    ) -> None:
        self.scheme, self.format = scheme, scheme.format
        self._fit = fit_for(scheme, fit)
        super().__init__(layers, kv_heads, head_dim, capacity)
        self._windows = windows
        self._softcap = None if softcap is None else np.float32(softcap)
        shape = (layers, kv_heads, capacity, head_dim)
        self._keys, self._values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._rounded_keys, self._rounded_values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    @property
    def kind(self) -> str:
        """The cache's name in `nearbank.cache_formats`."""
        return name_with(self.scheme, self._fit)

    def append(self, layer: int, k: Any, v: Any) -> None:
        """Add k, v [T, kv_heads, head_dim], exact and as stored."""
        start, end = self._grown(layer, len(k))
        keys, values = self._keys[layer], self._values[layer]  # [G, capacity, E]
        keys[:, start:end], values[:, start:end] = np.swapaxes(k, 0, 1), np.swapaxes(v, 0, 1)
        first, last = self._closed(start), self._closed(end)
        self._rounded_keys[layer, :, first:last] = self._as_stored(layer, keys[:, first:last], "keys")
        self._rounded_values[layer, :, start:end] = self._as_stored(layer, values[:, start:end], "values")

    def held(self, layer: int) -> tuple[Floats, Floats]:
        """The exact keys and values [kv_heads, tokens, head_dim] of a layer."""
        end = self.length(layer)
        return self._keys[layer, :, :end], self._values[layer, :, :end]

    def _as_stored(self, layer: int, exact: Floats, kind: Literal["keys", "values"]) -> Floats:
        """[G, n, E] rounded, with each channel shifted and scaled first where there is a fit."""
        rounded = self.scheme.rounded_keys if kind == "keys" else self.scheme.rounded_values
        if self._fit is None:
            return rounded(exact)
        shift, scale = self._fit.keys(layer) if kind == "keys" else self._fit.values(layer)
        feedback = self._fit.feedback(kind, layer)
        if feedback is not None:
            rounded = partial(rounded_with_feedback, upper=feedback, top=self.format.for_cache().high)
        return rounded((exact - shift) / scale) * scale + shift

    def _closed(self, end: int) -> int:
        """Keys that can be rounded when `end` tokens are there: KIVI waits for whole groups."""
        return end // KIVI_GROUP * KIVI_GROUP if self.scheme.method == "kivi" else end

    def attend(self, layer: int, q: Any, scale: float | None = None) -> Floats:
        """Causal attention of q [T, heads, head_dim], the queries of the last T tokens appended.

        One query at a time, so that a token's result does not depend on the tokens beside it.
        """
        factor = np.float32(self.head_dim**-0.5 if scale is None else scale)
        first = self.length(layer) - len(q) + 1
        return np.stack([self._attend_one(layer, query, first + t, factor) for t, query in enumerate(q)])

    def _attend_one(self, layer: int, q: Floats, end: int, scale: np.float32) -> Floats:
        keys, values = self._seen(layer, end)  # [G, n, E]
        grouped = q.reshape(self.kv_heads, -1, self.head_dim)  # [G, H/G, E]
        scores = grouped @ keys.swapaxes(1, 2) * scale  # [G, H/G, n]
        if self._softcap is not None:
            scores = np.tanh(scores / self._softcap) * self._softcap
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.asarray(weights @ values).reshape(q.shape)

    def _seen(self, layer: int, end: int) -> tuple[Floats, Floats]:
        """What a query at position `end` − 1 sees: the rounded past, the rest exact, within the window."""
        window = self._windows[layer % len(self._windows)]
        first = max(0, end - window) if window else 0
        keys_until, values_until = self.scheme.rounded_until(end)
        return (
            _joined(self._rounded_keys[layer], self._keys[layer], first, keys_until, end),
            _joined(self._rounded_values[layer], self._values[layer], first, values_until, end),
        )


def _joined(past: Floats, exact: Floats, first: int, until: int, end: int) -> Floats:
    """Positions first … end of [G, capacity, E], rounded before `until`."""
    until = max(first, until)
    if until == end:
        return past[:, first:end]
    return np.concatenate((past[:, first:until], exact[:, until:end]), axis=1)

"""Caches that keep tokens exact for a while, attended in a machine's arithmetic and without a memory.

Exact numbers are held as the machine holds them: those of a past-only cache as the ASIC has them (float32), those of
KIVI's window in bf16, from which a full group is rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.mapping.asic_arithmetic import Rounded, bf16, signed_zero
from nearbank.mapping.bank_arithmetic import Singles
from nearbank.models.execution import Floats
from nearbank.models.kv import kv_scheme

if TYPE_CHECKING:
    from nearbank.models import Model
    from nearbank.proof.twin import Sums

Levels = npt.NDArray[Any]


class ExactTwin:
    """A past-only or KIVI cache of one sequence."""

    def __init__(self, model: Model, capacity: int, sums: Sums) -> None:
        shape, self.scheme = model.shape, kv_scheme(model.kv)
        self.format, self.kind = self.scheme.format, self.scheme.name
        self.kv_heads, self.head_dim, self.capacity = shape.kv_heads, shape.head_dim, capacity
        self._sums = sums
        self._zero = np.float32(signed_zero(self.format))
        room = (shape.layers, shape.kv_heads, capacity, shape.head_dim)
        self._keys, self._values = np.zeros(room, np.float32), np.zeros(room, np.float32)
        self._lengths = [0] * shape.layers

    def length(self, layer: int = 0) -> int:
        """Tokens held in a layer."""
        return self._lengths[layer]

    def clear(self) -> None:
        """Forget all tokens."""
        self._lengths = [0] * len(self._lengths)

    def copy_from(self, other: Any) -> None:
        """One sequence is written greedily; nothing is ever copied."""
        raise NearbankError("a twin's cache is of one sequence")

    def append(self, layer: int, k: Any, v: Any) -> None:
        """Add k, v [T, kv_heads, head_dim]."""
        start, end = self._lengths[layer], self._lengths[layer] + len(k)
        as_held = bf16 if self.scheme.key_group else np.asarray
        self._keys[layer, :, start:end] = as_held(np.swapaxes(k, 0, 1))
        self._values[layer, :, start:end] = as_held(np.swapaxes(v, 0, 1))
        self._lengths[layer] = end

    def attend(self, layer: int, q: Any, scale: float | None = None) -> Floats:
        """Causal attention of q [T, heads, head_dim], the queries of the last T tokens appended."""
        tokens, heads, _ = q.shape
        factor = np.float32(self.head_dim**-0.5 if scale is None else scale)
        start, out = self._lengths[layer] - tokens, np.zeros(q.shape, np.float32)
        attend = self._windowed if self.scheme.key_group else self._past
        for t in range(tokens):
            for h in range(heads):
                head = h * self.kv_heads // heads
                n = start + t + 1
                out[t, h] = attend(q[t, h] * factor, self._keys[layer, head, :n], self._values[layer, head, :n])
        return out

    def _rounded(self, values: Singles) -> tuple[Levels, Singles, Singles]:
        """[n, m] → levels as the banks hold them, scales and offsets [n] of rows, with the levels' zero taken in."""
        found: Rounded = self._sums.arithmetic.round_token(self.format, values)
        return found.codes.astype(np.float32), found.scales, found.offsets + self._zero * found.scales

    def _past(self, q: Singles, keys: Singles, values: Singles) -> Singles:
        """q [D], times 1/√D, at the last of [n, D] positions, which alone is exact."""
        sums, sent = self._sums, bf16(q)
        own = sums.total(q * keys[-1])[None]
        if len(keys) == 1:
            weight = sums.arithmetic.exp(own - own.max())
            zero = np.zeros(self.head_dim, np.float32)
            return sums.arithmetic.divide(zero + weight * values[0], sums.total(weight))
        codes, scales, offsets = self._rounded(keys[:-1])
        scores = sums.scores(sent, codes) * scales
        scores = np.concatenate([scores + sums.total(sent) * offsets, own])
        weights = sums.arithmetic.exp(scores - scores.max())
        codes, scales, offsets = self._rounded(values[:-1])
        total = sums.context(bf16(weights[:-1] * scales), codes) + sums.total(weights[:-1] * offsets)
        return sums.arithmetic.divide(total + weights[-1] * values[-1], sums.total(weights))

    def _windowed(self, q: Singles, keys: Singles, values: Singles) -> Singles:
        """The same where keys of whole groups and values older than a group are rounded."""
        sums, n, size = self._sums, len(keys), self.scheme.key_group
        keys_until, values_until = self.scheme.rounded_until(n)
        parts = [self._group_scores(q, keys[i : i + size]) for i in range(0, keys_until, size)]
        scores = np.concatenate([*parts, sums.scores(bf16(q), keys[keys_until:], exact=True)])
        weights = sums.arithmetic.exp(scores - scores.max())
        ring = np.arange(values_until, n) % size
        near, near_weights = np.zeros((size, self.head_dim), np.float32), np.zeros(size, np.float32)
        near[ring], near_weights[ring] = values[values_until:], weights[values_until:]
        context: Singles = sums.context(bf16(near_weights), near, exact=True)
        offset: Singles = np.zeros((), np.float32)
        if values_until:
            old, (codes, scales, offsets) = weights[:values_until], self._rounded(values[:values_until])
            context = sums.context(bf16(old * scales), codes) + context
            offset = sums.total(old * offsets)
        return sums.arithmetic.divide(context + offset, sums.total(weights))

    def _group_scores(self, q: Singles, keys: Singles) -> Singles:
        """q [D] · a group of keys [n, D], rounded per channel."""
        codes, scales, offsets = self._rounded(np.ascontiguousarray(keys.T))
        levels = np.ascontiguousarray(codes.T)
        return np.asarray(self._sums.scores(bf16(q * scales), levels) + self._sums.total(q * offsets), np.float32)

"""How the caches of `nearbank.cache_formats` round, in NumPy, and what a fitted one rounds with.

Plain, past-only, KIVI and WKVQuant caches are the kernels'; `-2d`, and any with sliding windows or soft-capped scores,
are `nearbank.models.plain_cache`'s, which is for measuring quality, not for speed. What channels are shifted and scaled
by is fitted to calibration text (`nearbank.models.kv_fit`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from nearbank.cache_formats import FEEDBACK, FITTED, KIVI_GROUP, METHODS, CacheFormat, cache_format
from nearbank.errors import NearbankError
from nearbank.formats import Format, from_bf16
from nearbank.kernels import Channels
from nearbank.kernels.reference.feedback import Feedback
from nearbank.kernels.reference.quantise import quantise_tokens
from nearbank.models.execution import Floats

__all__ = ["FITTED", "KIVI_GROUP", "METHODS", "ChannelFit", "KvScheme", "fit_for", "kv_scheme", "name_with", "rounded"]


@dataclass(frozen=True)
class ChannelFit:
    """A shift and a scale for each channel of K and V: float32 [layers, kv_heads, head_dim] each.

    key_feedback, value_feedback: where errors of rounding are fed back (`nearbank.kernels.reference.feedback`), upper
    triangles, float32 [layers, kv_heads, head_dim, head_dim].
    """

    key_shift: Floats
    key_scale: Floats
    value_shift: Floats
    value_scale: Floats
    key_feedback: Floats | None = None
    value_feedback: Floats | None = None

    def keys(self, layer: int) -> tuple[Floats, Floats]:
        """(shift, scale) [G, 1, E] of a layer's keys."""
        return self.key_shift[layer][:, None], self.key_scale[layer][:, None]

    def values(self, layer: int) -> tuple[Floats, Floats]:
        """(shift, scale) [G, 1, E] of a layer's values."""
        return self.value_shift[layer][:, None], self.value_scale[layer][:, None]

    def feedback(self, kind: Literal["keys", "values"], layer: int) -> Floats | None:
        """[G, E, E] of a layer's keys or values; None where codes are the nearest ones."""
        every = self.key_feedback if kind == "keys" else self.value_feedback
        return None if every is None else every[layer]

    @property
    def fed_back(self) -> bool:
        """True if errors of rounding keys or values are fed back."""
        return self.key_feedback is not None or self.value_feedback is not None

    @cached_property
    def channels(self) -> tuple[Channels, ...]:
        """Each layer's, for the kernels' caches."""
        return tuple(self._layer(i) for i in range(len(self.key_shift)))

    def _layer(self, i: int) -> Channels:
        both = self.feedback("keys", i), self.feedback("values", i)
        keys, values = (None if upper is None else Feedback.of(upper) for upper in both)
        return Channels(self.key_shift[i], self.key_scale[i], self.value_shift[i], self.value_scale[i], keys, values)


@dataclass(frozen=True)
class KvScheme(CacheFormat):
    """A cache with its rounding."""

    def rounded_keys(self, keys: Floats) -> Floats:
        """Keys [G, n, E] as stored; KIVI rounds whole groups of tokens, the caller passes only those."""
        if self.method != "kivi":
            return rounded(keys, self.format)
        grouped = keys.reshape(keys.shape[0], -1, KIVI_GROUP, keys.shape[2]).swapaxes(2, 3)  # [G, n/32, E, 32]
        return _asymmetric(grouped, self.format).swapaxes(2, 3).reshape(keys.shape)

    def rounded_values(self, values: Floats) -> Floats:
        """Values [G, n, E] as stored."""
        return rounded(values, self.format)


def fit_for(scheme: KvScheme, fit: ChannelFit | None) -> ChannelFit | None:
    """What the scheme rounds with, None where it needs no fit. Raises NearbankError where one is missing."""
    if scheme.needs_fit and fit is None:
        raise NearbankError(f"KV cache '{scheme.name}' needs a fit; make one with nearbank.models.kv_fit.fit_channels")
    if scheme.fed_back and fit is not None and not fit.fed_back:
        raise NearbankError(
            f"KV cache '{scheme.name}' needs a fit that feeds errors back; make it with "
            "nearbank.models.kv_metric.with_feedback"
        )
    return fit if scheme.needs_fit else None


def name_with(scheme: KvScheme, fit: ChannelFit | None) -> str:
    """The cache's name in `nearbank.cache_formats`, told whether the fit feeds errors back."""
    fed_back = scheme.needs_fit and fit is not None and fit.fed_back
    return scheme.name + FEEDBACK if fed_back and not scheme.fed_back else scheme.name


@lru_cache
def kv_scheme(name: str) -> KvScheme:
    """The cache of that name; raises `NearbankError` with what is known."""
    found = cache_format(name)
    return KvScheme(found.name, found.format, found.method, found.fed_back)


def rounded(values: Floats, fmt: Format) -> Floats:
    """Each token and head […, head_dim] as the kernels' cache holds it."""
    floats = np.ascontiguousarray(values, dtype=np.float32)
    if fmt.is_float:
        flat = floats.reshape(-1, floats.shape[-1])
        return fmt.dequantise(fmt.quantise(flat)).reshape(floats.shape)
    return _asymmetric(floats, fmt)


def _asymmetric(values: Floats, fmt: Format) -> Floats:
    """What shares a scale and offset lies along the last axis."""
    codes, scales, offsets = quantise_tokens(np.ascontiguousarray(values), fmt.for_cache().high)
    return from_bf16(offsets)[..., None] + from_bf16(scales)[..., None] * codes

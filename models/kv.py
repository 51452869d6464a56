"""Ways to keep keys and values: a format for every token, and what of the past stays exact for how long.

int4        each token and head rounded when it is appended; attention sees only rounded values
int4-past   past-only quantisation (WKVQuant, arXiv 2402.12065): a token attends its own K and V exactly
int4-kivi   KIVI (arXiv 2402.02750): keys per channel over 32 tokens, values per token; keys of an unfinished
            group and values of the last 32 tokens exact
int4-2d     two-dimensional quantisation (WKVQuant): a shift and a scale per channel, fitted to calibration text
            (`nearbank.models.kv_fit`), then plain rounding per token
int4-wkv    WKVQuant: int4-2d and int4-past together

with any cache format in place of int4 (all but the plain one need an integer one). Plain, past-only and KIVI caches
are the kernels'; the fitted ones, and any with sliding windows or soft-capped scores, are
`nearbank.models.plain_cache`'s, which is for measuring quality, not for speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nearbank.errors import NearbankError
from nearbank.formats import Format, format_named, from_bf16
from nearbank.kernels.cache import CACHE_FORMATS
from nearbank.kernels.reference.quantise import quantise_tokens
from nearbank.models.execution import Floats

KIVI_GROUP = 32
METHODS = ("past", "kivi", "2d", "wkv")
FITTED = ("2d", "wkv")
PARAM_BYTES = 4  # a scale and an offset in bf16


@dataclass(frozen=True)
class ChannelFit:
    """A shift and a scale for each channel of K and V: float32 [layers, kv_heads, head_dim] each."""

    key_shift: Floats
    key_scale: Floats
    value_shift: Floats
    value_scale: Floats

    def keys(self, layer: int) -> tuple[Floats, Floats]:
        """(shift, scale) [G, 1, E] of a layer's keys."""
        return self.key_shift[layer][:, None], self.key_scale[layer][:, None]

    def values(self, layer: int) -> tuple[Floats, Floats]:
        """(shift, scale) [G, 1, E] of a layer's values."""
        return self.value_shift[layer][:, None], self.value_scale[layer][:, None]


@dataclass(frozen=True)
class KvScheme:
    """A format and a method: "plain" or one of METHODS."""

    name: str
    format: Format
    method: str = "plain"

    @property
    def needs_fit(self) -> bool:
        """True if the scheme rounds with a `ChannelFit`."""
        return self.method in FITTED

    def rounded_keys(self, keys: Floats) -> Floats:
        """Keys [G, n, E] as stored; KIVI rounds whole groups of tokens, the caller passes only those."""
        if self.method != "kivi":
            return rounded(keys, self.format)
        grouped = keys.reshape(keys.shape[0], -1, KIVI_GROUP, keys.shape[2]).swapaxes(2, 3)  # [G, n/32, E, 32]
        return _asymmetric(grouped, self.format).swapaxes(2, 3).reshape(keys.shape)

    def rounded_values(self, values: Floats) -> Floats:
        """Values [G, n, E] as stored."""
        return rounded(values, self.format)

    def rounded_until(self, end: int) -> tuple[int, int]:
        """How many of the first tokens a query at position `end` − 1 sees rounded: (of keys, of values)."""
        bounds = {
            "plain": (end, end),
            "past": (end - 1, end - 1),
            "2d": (end, end),
            "wkv": (end - 1, end - 1),
            "kivi": ((end - 1) // KIVI_GROUP * KIVI_GROUP, max(0, end - KIVI_GROUP)),
        }
        return bounds[self.method]

    def bytes_per_token(self, kv_heads: int, head_dim: int) -> int:
        """Bytes of K and V of one token in one layer, scales and offsets included, exact tails left out."""
        per_token = self.format.for_cache().bytes_for(1, head_dim)
        if self.method != "kivi":
            return 2 * kv_heads * per_token
        spread = -(-head_dim * PARAM_BYTES // KIVI_GROUP)  # a scale and an offset per channel and 32 tokens
        return kv_heads * (per_token + self.format.row_bytes(head_dim) + spread)


@lru_cache
def kv_scheme(name: str) -> KvScheme:
    """The scheme called "int4", "int4-past", "int2-kivi" … Raises `NearbankError` with what is known."""
    base, dash, method = name.partition("-")
    if base not in CACHE_FORMATS or (dash and method not in METHODS):
        raise NearbankError(
            f"unknown KV cache '{name}'; known: {', '.join(CACHE_FORMATS)}; integer ones also with "
            f"-{', -'.join(METHODS)}"
        )
    chosen = format_named(base)
    if method and chosen.is_float:
        raise NearbankError(f"KV cache '{name}': {base} is not rounded to integers; -{method} needs int8, int4 or int2")
    return KvScheme(name, chosen, method or "plain")


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

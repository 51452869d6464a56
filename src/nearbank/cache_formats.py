"""How K and V are kept: a format for every token, and what of the past stays exact for how long.

int4        each token and head rounded when it is appended; attention sees only rounded values
int4-past   past-only quantisation (WKVQuant, arXiv 2402.12065): a token attends its own K and V exactly
int4-kivi   KIVI (arXiv 2402.02750): keys per channel over 32 tokens, values per token; keys of an unfinished
            group and values of the last 32 tokens exact
int4-2d     two-dimensional quantisation (WKVQuant): a static shift and scale per channel, then rounding per token
int4-wkv    WKVQuant: int4-2d and int4-past together
int4-wkv+feedback   the same with errors of rounding fed back to later channels; after -2d too

with any cache format in place of int4 (all but the plain one need an integer one). The one vocabulary of traces, the
models' caches and the mapping; what rounds and attends is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from nearbank.errors import NearbankError
from nearbank.formats import Format, format_named

CACHE_FORMATS = ("fp32", "fp16", "bf16", "int8", "int4", "int2")
METHODS = ("past", "kivi", "2d", "wkv")
FITTED = ("2d", "wkv")
FEEDBACK = "+feedback"
EXACT_BYTES = 2  # of a value that stays exact for a while: bf16
PARAM_BYTES = 4  # a scale and an offset in bf16


@dataclass(frozen=True)
class Scheme:
    """Which tokens stay exact. `key_group`: tokens that share a key channel's scale, 0 for scales per token.

    `keep`: exact tokens held besides those just appended.
    """

    name: str
    key_group: int
    keep: int

    def rounded_until(self, end: int) -> tuple[int, int]:
        """How many of the first tokens a query at position `end` − 1 sees rounded: (of keys, of values)."""
        if self.key_group:
            return (end - 1) // self.key_group * self.key_group, max(0, end - self.keep)
        return end - 1, end - 1


SCHEMES: Mapping[str, Scheme] = MappingProxyType({s.name: s for s in (Scheme("past", 0, 0), Scheme("kivi", 32, 32))})
KIVI_GROUP = SCHEMES["kivi"].key_group
SCHEME_OF: Mapping[str, str] = MappingProxyType({"past": "past", "wkv": "past", "kivi": "kivi"})  # method → scheme


@dataclass(frozen=True)
class CacheFormat:
    """A format and a method: "plain" or one of METHODS. fed_back: codes need not be the nearest ones."""

    name: str
    format: Format
    method: str = "plain"
    fed_back: bool = False

    @property
    def needs_fit(self) -> bool:
        """True if channels are shifted and scaled by what was fitted to a text."""
        return self.method in FITTED

    @property
    def newest_exact(self) -> bool:
        """True if a token attends its own K and V exactly, and nothing else so."""
        return self.scheme is SCHEMES["past"]

    @property
    def scheme(self) -> Scheme | None:
        """Which tokens stay exact; None where every token is rounded at once."""
        return SCHEMES[SCHEME_OF[self.method]] if self.method in SCHEME_OF else None

    @property
    def key_group(self) -> int:
        """Tokens that share the scale of a key channel; 0 where scales are per token."""
        return self.scheme.key_group if self.scheme else 0

    def rounded_until(self, end: int) -> tuple[int, int]:
        """How many of the first tokens a query at position `end` − 1 sees rounded: (of keys, of values)."""
        return self.scheme.rounded_until(end) if self.scheme else (end, end)

    def bytes_per_token(self, kv_heads: int, head_dim: int) -> int:
        """Bytes of K and V of one token in one layer, scales and offsets included, exact tails left out."""
        per_token = self.format.for_cache().bytes_for(1, head_dim)
        if self.method != "kivi":
            return 2 * kv_heads * per_token
        return kv_heads * (per_token + self._grouped_key_bytes(head_dim))

    def _grouped_key_bytes(self, head_dim: int) -> int:
        """Keys of one token and head, with its share of a scale and an offset per channel and group."""
        return self.format.row_bytes(head_dim) + -(-head_dim * PARAM_BYTES // KIVI_GROUP)

    def key_bytes(self, kv_heads: int, head_dim: int, end: int) -> int:
        """Bytes of all keys that the query at position `end` − 1 reads."""
        until, exact = self.rounded_until(end)[0], EXACT_BYTES * head_dim
        each = self._grouped_key_bytes(head_dim) if self.key_group else self.format.for_cache().bytes_for(1, head_dim)
        return kv_heads * (until * each + (end - until) * exact)

    def value_bytes(self, kv_heads: int, head_dim: int, end: int) -> int:
        """Bytes of all values that the query at position `end` − 1 reads."""
        until = self.rounded_until(end)[1]
        each = self.format.for_cache().bytes_for(1, head_dim)
        return kv_heads * (until * each + (end - until) * EXACT_BYTES * head_dim)

    def append_bytes(self, tokens: int, kv_heads: int, head_dim: int) -> int:
        """Bytes written for so many tokens: rounded once each, and exactly too where a window keeps them."""
        window = 2 * kv_heads * head_dim * EXACT_BYTES if self.key_group else 0
        return tokens * (self.bytes_per_token(kv_heads, head_dim) + window)


@lru_cache
def cache_format(name: str) -> CacheFormat:
    """The cache called "int4", "int4-past", "int2-kivi" … Raises `NearbankError` with what is known."""
    base, dash, method = name.removesuffix(FEEDBACK).partition("-")
    fed_back = name.endswith(FEEDBACK)
    if base not in CACHE_FORMATS or (dash and method not in METHODS) or (fed_back and method not in FITTED):
        raise NearbankError(
            f"unknown KV cache '{name}'; known: {', '.join(CACHE_FORMATS)}; integer ones also with "
            f"-{', -'.join(METHODS)}, the last two with {FEEDBACK} behind"
        )
    chosen = format_named(base)
    if method and chosen.is_float:
        raise NearbankError(f"KV cache '{name}': {base} is not rounded to integers; -{method} needs int8, int4 or int2")
    return CacheFormat(name, chosen, method or "plain", fed_back)


def cache_names() -> tuple[str, ...]:
    """All caches there are."""
    integers = [name for name in CACHE_FORMATS if not format_named(name).is_float]
    return (*CACHE_FORMATS, *(f"{name}-{method}" for name in integers for method in METHODS))

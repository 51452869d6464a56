"""Caches that keep the newest tokens exact for a while: past-only quantisation and KIVI.

    past   (WKVQuant, arXiv 2402.12065) a token attends its own K and V exactly, and all before it rounded
    kivi   (arXiv 2402.02750) keys rounded per channel over groups of 32 tokens, values per token; keys of an
           unfinished group and values of the last 32 tokens are exact

Either with WKVQuant's second dimension, a static shift and scale per channel (`Channels`), and beyond the papers with
errors of rounding fed back to later channels (`nearbank.kernels.reference.feedback`). Everything is rounded once. Which
tokens a query sees rounded follows from its position alone, so decoding token by token and all at once give the same
bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from nearbank.cache_formats import FEEDBACK, SCHEMES, Scheme
from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels.cache import KVCache
from nearbank.kernels.reference.feedback import Feedback

Floats = npt.NDArray[np.float32]
Sizes = tuple[Format, int, int, int, int]  # format, layers, KV heads, head dimension, capacity


@dataclass(frozen=True)
class Channels:
    """Static shift and scale of each KV head's channels, [kv_heads, head_dim] each: x' = (x − shift) / scale.

    key_feedback, value_feedback: how errors of rounding x' are fed back; None for the nearest codes.
    """

    key_shift: Floats
    key_scale: Floats
    value_shift: Floats
    value_scale: Floats
    key_feedback: Feedback | None = None
    value_feedback: Feedback | None = None

    @classmethod
    def of(cls, k: Floats, v: Floats) -> Channels:
        """Calibrated on k, v [T, kv_heads, head_dim]: the middle and the half range of every channel."""
        parts = []
        for x in (k, v):
            low, high = x.min(axis=0), x.max(axis=0)
            half = ((high - low) / 2).astype(np.float32)
            parts += [((high + low) / 2).astype(np.float32), np.where(half > 0, half, 1).astype(np.float32)]
        return cls(*parts)

    def applied(self, k: Floats, v: Floats) -> tuple[Floats, Floats]:
        """k, v [T, kv_heads, head_dim] shifted and scaled."""
        keys = ((k - self.key_shift) / self.key_scale).astype(np.float32)
        return keys, ((v - self.value_shift) / self.value_scale).astype(np.float32)


def per_layer(
    channels: Channels | Sequence[Channels] | None, scheme: Scheme, layers: int, kv_heads: int, head_dim: int
) -> tuple[Channels, ...]:
    """Channels of each layer, () without any. Raises NearbankError where they do not fit."""
    every = (channels,) * layers if isinstance(channels, Channels) else tuple(channels or ())
    if len(every) not in (0, layers):
        raise NearbankError(f"channels are those of {len(every)} layers; expected one for all or {layers}")
    for one in every:
        _check(one, scheme, (kv_heads, head_dim))
    return every


def _check(channels: Channels, scheme: Scheme, shape: tuple[int, int]) -> None:
    for name in ("key_shift", "key_scale", "value_shift", "value_scale"):
        found = getattr(channels, name)
        if found.shape != shape:
            raise NearbankError(f"channels: {name} is {list(found.shape)}; expected {list(shape)}")
        if not np.isfinite(found).all() or (name.endswith("scale") and not found.all()):
            raise NearbankError(f"channels: {name} holds NaN, infinity or a scale of zero; expected finite channels")
    for name in ("key_feedback", "value_feedback"):
        held = getattr(channels, name)
        if held is not None and held.shares.shape != (*shape, shape[1]):
            wanted = [*shape, shape[1]]
            raise NearbankError(f"channels: {name} is {list(held.shares.shape)}; expected {wanted}")
    if scheme.key_group and channels.key_feedback is not None:
        raise NearbankError(
            f"cache scheme '{scheme.name}' rounds keys channel by channel, where no later channel can make good an "
            "error; give feedback for values alone"
        )


class WindowMemory(Protocol):
    """A windowed cache's memory where its backend works."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated, the exact tokens of this moment included."""

    def clear(self) -> None:
        """Forget all tokens; the pages stay."""

    def copy_from(self, other: Any, tokens: int) -> None:
        """Hold what another of the same sizes, format and scheme holds: so many tokens in each layer at most."""

    def write(self, layer: int, start: int, k: Floats, v: Floats) -> None:
        """Keep k, v [T, kv heads, D] exact and round what is due."""

    def read(self, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
        """Attention of q [T, heads, D], the last T tokens written, at positions start …."""


# backend → module with open_window(sizes, scheme, channels)
BACKENDS: Mapping[str, str] = MappingProxyType(
    {
        "numpy": "nearbank.kernels.reference.windowed",
        "numba": "nearbank.kernels.cpu.windowed",
        "cupy": "nearbank.kernels.cupy_window",
        "numba-cuda": "nearbank.kernels.numba_cuda.window",
    }
)


class WindowedKVCache(KVCache):
    """A `KVCache` whose newest tokens stay exact, by a scheme of `nearbank.cache_formats`; int8, int4 or int2.

    channels: one for all layers, or one for each.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        format: Format | str = "int4",  # noqa: A002 - as in KVCache
        scheme: str = "past",
        channels: Channels | Sequence[Channels] | None = None,
        backend: str = "auto",
    ) -> None:
        if scheme not in SCHEMES:
            raise NearbankError(f"unknown cache scheme '{scheme}'; known: {', '.join(SCHEMES)}")
        self.scheme = SCHEMES[scheme]
        self.channels = per_layer(channels, self.scheme, layers, kv_heads, head_dim)
        super().__init__(layers, kv_heads, head_dim, capacity, format, backend)

    @property
    def kind(self) -> str:
        """The cache's name in `nearbank.cache_formats`."""
        fitted = bool(self.channels) and self.scheme is SCHEMES["past"]
        fed_back = fitted and any(one.key_feedback or one.value_feedback for one in self.channels)
        return f"{self.format.name}-{'wkv' if fitted else self.scheme.name}{FEEDBACK if fed_back else ''}"

    def _allocated(self) -> WindowMemory:
        if self.format.is_float:
            raise NearbankError(f"cache scheme '{self.scheme.name}' rounds to integers; {self.format.name} does not")
        sizes = self.format, self.layers, self.kv_heads, self.head_dim, self.capacity
        opened = import_module(BACKENDS[self.backend]).open_window(sizes, self.scheme, self.channels)
        return cast(WindowMemory, opened)

    def clear(self) -> None:
        """Forget all tokens; the pages stay."""
        super().clear()
        self.store.clear()

    def copy_from(self, other: KVCache) -> None:
        """Hold what `other`, a cache of the same sizes, format and scheme, holds now."""
        if not isinstance(other, WindowedKVCache) or other.scheme != self.scheme:
            raise NearbankError("WindowedKVCache: only a cache of the same scheme can be copied")
        self.store.copy_from(other.store, max(other._lengths))
        self._lengths = list(other._lengths)

    def _write(self, layer: int, start: int, k: Floats, v: Floats) -> None:
        self.store.write(layer, start, k, v)

    def _read(self, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
        context: Floats = self.store.read(layer, start, q, scale)
        return context

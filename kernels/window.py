"""Caches that keep the newest tokens exact for a while: past-only quantisation and KIVI.

    past   (WKVQuant, arXiv 2402.12065) a token attends its own K and V exactly, and all before it rounded
    kivi   (arXiv 2402.02750) keys rounded per channel over groups of 32 tokens, values per token; keys of an
           unfinished group and values of the last 32 tokens are exact

Either with WKVQuant's second dimension, a static shift and scale per channel (`Channels`). Everything is
rounded once. Which tokens a query sees rounded follows from its position alone, so decoding token by
token and all at once give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels.cache import KVCache
from nearbank.kernels.reference.lanes import padded
from nearbank.kernels.reference.quantise import quantise_tokens
from nearbank.kernels.store import LANES, PAGE, CacheStore, pack_rows

Floats = npt.NDArray[np.float32]
OVERHANG = 8  # rows after the last that vector loads may touch


@dataclass(frozen=True)
class Scheme:
    """`key_group`: tokens that share a key channel's scale, 0 for scales per token. `keep`: exact tokens held."""

    name: str
    key_group: int
    keep: int

    def rounded_until(self, end: int) -> tuple[int, int]:
        """The query at position end − 1 sees the keys and the values before these positions rounded."""
        if self.key_group:
            return (end - 1) // self.key_group * self.key_group, max(0, end - self.keep)
        return end - 1, end - 1


SCHEMES: Mapping[str, Scheme] = MappingProxyType({s.name: s for s in (Scheme("past", 0, 0), Scheme("kivi", 32, 32))})


@dataclass(frozen=True)
class Channels:
    """Static shift and scale of each KV head's channels, [kv_heads, head_dim] each: x' = (x − shift) / scale."""

    key_shift: Floats
    key_scale: Floats
    value_shift: Floats
    value_scale: Floats

    @classmethod
    def of(cls, k: Floats, v: Floats) -> Channels:
        """Calibrated on k, v [T, kv_heads, head_dim]: the middle and the half range of every channel."""
        parts = []
        for x in (k, v):
            low, high = x.min(axis=0), x.max(axis=0)
            half = ((high - low) / 2).astype(np.float32)
            parts += [((high + low) / 2).astype(np.float32), np.where(half > 0, half, 1).astype(np.float32)]
        return cls(*parts)


@dataclass(frozen=True)
class Recent:
    """Exact K and V [kv heads, tokens + overhang, D padded] from position `first`."""

    first: int
    keys: Floats
    values: Floats


class WindowBackend(Protocol):
    """What a backend must do for windowed caches."""

    def write_rows(
        self,
        store: CacheStore,
        rows: npt.NDArray[Any],
        params: npt.NDArray[np.uint16],
        start: int,
        new: Floats,
    ) -> None:
        """Quantise rows per token and write them."""

    def attend_windowed(
        self,
        store: CacheStore,
        recent: Recent,
        bounds: npt.NDArray[np.int64],
        key_group: int,
        layer: int,
        start: int,
        q: Floats,
        scale: np.float32,
    ) -> Floats:
        """Attention of q [T, heads, D]; bounds [T, 2]: rounded keys and values each query sees."""


def _backend(name: str) -> WindowBackend:
    from importlib import import_module

    folders = {"numpy": "nearbank.kernels.reference.windowed", "numba": "nearbank.kernels.cpu.windowed"}
    if name not in folders:
        raise NearbankError(f"windowed caches run on {', '.join(folders)}, not on '{name}'")
    return cast(WindowBackend, import_module(folders[name]))


class WindowedKVCache(KVCache):
    """A `KVCache` whose newest tokens stay exact for a while, by a scheme of `SCHEMES`; int8, int4 or int2."""

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        format: Format | str = "int4",  # noqa: A002 - as in KVCache
        scheme: str = "past",
        channels: Channels | None = None,
        backend: str = "auto",
    ) -> None:
        if scheme not in SCHEMES:
            raise NearbankError(f"unknown cache scheme '{scheme}'; known: {', '.join(SCHEMES)}")
        super().__init__(layers, kv_heads, head_dim, capacity, format, backend)
        if self.format.is_float:
            raise NearbankError(f"cache scheme '{scheme}' rounds to integers; {self.format.name} does not")
        self.scheme, self.channels = SCHEMES[scheme], channels
        self._kernels = _backend(self.backend)
        if self.scheme.key_group:
            self.store = _with_channel_params(self.store, self.scheme.key_group)
        empty = np.zeros((kv_heads, OVERHANG, -(-head_dim // LANES) * LANES), np.float32)
        self._recent = [Recent(0, empty, empty)] * layers

    @property
    def kind(self) -> str:
        """The cache's name in `nearbank.cache_formats`; channels shifted and scaled are not in it."""
        return f"{self.format.name}-{self.scheme.name}"

    @property
    def nbytes(self) -> int:
        """Bytes allocated, the exact tokens of this moment included."""
        return int(self.store.nbytes) + sum(r.keys.nbytes + r.values.nbytes for r in self._recent)

    def clear(self) -> None:
        """Forget all tokens; the pages stay."""
        super().clear()
        self._recent = [Recent(0, r.keys[:, :OVERHANG], r.values[:, :OVERHANG]) for r in self._recent]

    def copy_from(self, other: KVCache) -> None:
        """Hold what `other`, a cache of the same sizes, format and scheme, holds now."""
        if not isinstance(other, WindowedKVCache) or other.scheme != self.scheme:
            raise NearbankError("WindowedKVCache: only a cache of the same scheme can be copied")
        super().copy_from(other)
        self._recent = list(other._recent)

    def _write(self, layer: int, start: int, k: Floats, v: Floats) -> None:
        if self.channels is not None:
            c = self.channels
            k = ((k - c.key_shift) / c.key_scale).astype(np.float32)
            v = ((v - c.value_shift) / c.value_scale).astype(np.float32)
        store, kernels = self.store, self._kernels
        self._recent[layer] = recent = _extended(self._recent[layer], start, k, v, self.scheme.keep)
        kernels.write_rows(store, store.values[layer], store.value_params[layer], start, v)
        if not self.scheme.key_group:
            kernels.write_rows(store, store.keys[layer], store.key_params[layer], start, k)
            return
        size = self.scheme.key_group
        for group in range(start // size, (start + len(k)) // size):
            _write_group(store, layer, group, size, recent)

    def _read(self, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
        shared = q.shape[1] // self.kv_heads
        if self.channels is not None:  # q · shift is the same for every key: softmax does not see it
            q = q * np.repeat(self.channels.key_scale, shared, axis=0)
        bounds = np.array([self.scheme.rounded_until(start + t + 1) for t in range(len(q))], np.int64)
        context = self._kernels.attend_windowed(
            self.store, self._recent[layer], bounds, self.scheme.key_group, layer, start, q, scale
        )
        if self.channels is not None:
            spread = [np.repeat(x, shared, axis=0) for x in (self.channels.value_scale, self.channels.value_shift)]
            context = context * spread[0] + spread[1]
        return context


def _with_channel_params(store: CacheStore, size: int) -> CacheStore:
    """Key scales and offsets per channel: [layers, pages, kv heads, groups in a page, 2, D]."""
    layers, pages, heads = store.keys.shape[:3]
    params = np.zeros((layers, pages, heads, PAGE // size, 2, store.head_dim), np.uint16)
    return CacheStore(store.format, store.head_dim, store.keys, store.values, params, store.value_params)


def _extended(recent: Recent, start: int, k: Floats, v: Floats, keep: int) -> Recent:
    """The last `keep` tokens before `start`, then the new ones."""
    first = max(recent.first, start - keep)
    parts = []
    for held, new in ((recent.keys, k), (recent.values, v)):
        old = held[:, first - recent.first : start - recent.first]
        fresh = padded(new.swapaxes(0, 1), LANES)
        overhang = np.zeros((len(old), OVERHANG, old.shape[2]), np.float32)
        parts.append(np.ascontiguousarray(np.concatenate([old, fresh, overhang], axis=1)))
    return Recent(first, *parts)


def _write_group(store: CacheStore, layer: int, group: int, size: int, recent: Recent) -> None:
    """Round a finished group of keys per channel and pack it into its page."""
    begin = group * size
    exact = recent.keys[:, begin - recent.first :][:, :size, : store.head_dim]
    codes, scales, offsets = quantise_tokens(np.ascontiguousarray(exact.swapaxes(1, 2)), store.format.high)
    page, slot = divmod(begin, PAGE)
    wide = padded(np.ascontiguousarray(codes.swapaxes(1, 2)), store.keys.shape[-1] * store.format.values_per_word)
    store.keys[layer, page, :, slot : slot + size] = pack_rows(wide, store.format)
    store.key_params[layer, page, :, slot // size, 0] = scales
    store.key_params[layer, page, :, slot // size, 1] = offsets

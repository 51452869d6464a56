"""A windowed cache's memory on the host, for the backends numpy and numba: pages of NumPy arrays, exact tokens beside.

Exact tokens are those of the last append and the `keep` before it; what leaves them has been rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.cache_formats import Scheme
from nearbank.kernels.cache import copy_pages
from nearbank.kernels.reference.feedback import Feedback
from nearbank.kernels.reference.lanes import padded
from nearbank.kernels.reference.quantise import quantise_tokens
from nearbank.kernels.store import LANES, PAGE, CacheStore, allocate, pack_rows
from nearbank.kernels.window import Channels, Sizes

Floats = npt.NDArray[np.float32]
OVERHANG = 8  # rows after the last that vector loads may touch


@dataclass(frozen=True)
class Recent:
    """Exact K and V [kv heads, tokens + overhang, D padded] from position `first`."""

    first: int
    keys: Floats
    values: Floats


class HostWindow:
    """The memory; what writes and attends is the backend's own (`nearbank.kernels.reference`: attention, feedback and
    windowed). channels: of each layer, or ()."""

    def __init__(
        self,
        write_rows: Callable[..., None],
        write_fed_back: Callable[..., None],
        attend_windowed: Callable[..., Floats],
        sizes: Sizes,
        scheme: Scheme,
        channels: tuple[Channels, ...],
    ) -> None:
        _, layers, kv_heads, head_dim, _ = sizes
        self._write_rows, self._write_fed_back, self._attend = write_rows, write_fed_back, attend_windowed
        self._scheme, self._channels = scheme, channels
        self.pages = allocate(*sizes)
        if scheme.key_group:
            self.pages = _with_channel_params(self.pages, scheme.key_group)
        empty = np.zeros((kv_heads, OVERHANG, -(-head_dim // LANES) * LANES), np.float32)
        self._recent = [Recent(0, empty, empty)] * layers

    @property
    def nbytes(self) -> int:
        """Bytes allocated, the exact tokens of this moment included."""
        return int(self.pages.nbytes) + sum(r.keys.nbytes + r.values.nbytes for r in self._recent)

    def clear(self) -> None:
        """Forget all tokens; the pages stay."""
        self._recent = [Recent(0, r.keys[:, :OVERHANG], r.values[:, :OVERHANG]) for r in self._recent]

    def copy_from(self, other: HostWindow, tokens: int) -> None:
        """Hold what another of the same sizes, format and scheme holds."""
        copy_pages(self.pages, other.pages, tokens)
        self._recent = list(other._recent)

    def write(self, layer: int, start: int, k: Floats, v: Floats) -> None:
        """Keep k, v exact and round what is due."""
        key_feedback = value_feedback = None
        if self._channels:
            channels = self._channels[layer]
            k, v = channels.applied(k, v)
            key_feedback, value_feedback = channels.key_feedback, channels.value_feedback
        pages, size = self.pages, self._scheme.key_group
        self._recent[layer] = recent = _extended(self._recent[layer], start, k, v, self._scheme.keep)
        values = pages, pages.values[layer], pages.value_params[layer], start, v
        self._write_tokens(values, value_feedback)
        if not size:
            keys = pages, pages.keys[layer], pages.key_params[layer], start, k
            self._write_tokens(keys, key_feedback)
            return
        for group in range(start // size, (start + len(k)) // size):
            _write_group(pages, layer, group, size, recent)

    def _write_tokens(self, arguments: tuple[Any, ...], feedback: Feedback | None) -> None:
        """To the nearest codes, or with errors fed back."""
        if feedback is None:
            self._write_rows(*arguments)
        else:
            self._write_fed_back(*arguments, feedback)

    def read(self, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
        """Attention of q [T, heads, D] at positions start …."""
        shared, channels = q.shape[1] // self.pages.keys.shape[2], self._channels[layer] if self._channels else None
        if channels is not None:  # q · shift is the same for every key: softmax does not see it
            q = q * np.repeat(channels.key_scale, shared, axis=0)
        bounds = np.array([self._scheme.rounded_until(start + t + 1) for t in range(len(q))], np.int64)
        recent, size = self._recent[layer], self._scheme.key_group
        context = self._attend(self.pages, recent, bounds, size, layer, start, q, scale)
        if channels is not None:
            spread = [np.repeat(x, shared, axis=0) for x in (channels.value_scale, channels.value_shift)]
            context = context * spread[0] + spread[1]
        return context


def _with_channel_params(store: CacheStore, size: int) -> CacheStore:
    """Key scales and offsets per channel: [layers, pages, kv heads, groups in a page, 2, D]."""
    layers, pages, heads = store.keys.shape[:3]
    params = np.zeros((layers, pages, heads, PAGE // size, 2, store.head_dim), np.uint16)
    return replace(store, key_params=params)


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

"""Attention over a cache whose newest tokens are exact: the definition.

As in `nearbank.kernels.reference.attention`, with two bounds per query: keys before the first and values
before the second are those in the pages. The exact values add up token by token after the pages.

Keys per channel: score = (Σ (q · scale) · code + Σ q · offset) · softmax scale, per group of tokens.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nearbank.cache_formats import Scheme
from nearbank.formats import from_bf16
from nearbank.kernels.reference.attention import rows_of, scores_of, write_rows
from nearbank.kernels.reference.exponential import exp_non_positive
from nearbank.kernels.reference.feedback import write_fed_back
from nearbank.kernels.reference.lanes import lane_dot, lane_sum
from nearbank.kernels.store import PAGE, CacheStore
from nearbank.kernels.window import Channels, Sizes
from nearbank.kernels.window_host import HostWindow, Recent

__all__ = ["attend_windowed", "open_window", "write_rows"]

Floats = npt.NDArray[np.float32]


def open_window(sizes: Sizes, scheme: Scheme, channels: tuple[Channels, ...]) -> HostWindow:
    """Memory of a windowed cache."""
    return HostWindow(write_rows, write_fed_back, attend_windowed, sizes, scheme, channels)


def attend_windowed(
    store: CacheStore,
    recent: Recent,
    bounds: npt.NDArray[np.int64],
    key_group: int,
    layer: int,
    start: int,
    q: Floats,
    scale: np.float32,
) -> Floats:
    """q [T, heads, D] at positions start … → context [T, heads, D]; bounds [T, 2]."""
    shared = q.shape[1] // store.keys.shape[2]
    out = np.zeros_like(q)
    for t in range(len(q)):
        keys_end, values_end = (int(bound) for bound in bounds[t])
        n = start + t + 1
        for h in range(q.shape[1]):
            head = h // shared
            past = _past_scores(store, layer, head, keys_end, key_group, q[t, h])
            near = recent.keys[head, keys_end - recent.first : n - recent.first, : store.head_dim]
            scores = np.concatenate([past, lane_dot(q[t, h], near)]) * scale
            weights = exp_non_positive(scores - scores.max())
            exact = recent.values[head, values_end - recent.first : n - recent.first, : store.head_dim]
            out[t, h] = _context(store, layer, head, weights, values_end, exact)
    return out


def _past_scores(store: CacheStore, layer: int, head: int, end: int, key_group: int, q: Floats) -> Floats:
    if end == 0:
        return np.zeros(0, np.float32)
    if not key_group:
        codes, params = rows_of(store, store.keys, store.key_params, layer, head, end)
        return scores_of(q, codes, params)
    codes, _ = rows_of(store, store.keys, store.value_params, layer, head, end)
    parts = []
    for begin in range(0, end, key_group):
        page, slot = divmod(begin, PAGE)
        scales, offsets = from_bf16(store.key_params[layer, page, head, slot // key_group])
        group = codes[begin : begin + key_group]
        parts.append(lane_dot(q * scales, group) + lane_sum(q * offsets))
    return np.concatenate(parts)


def _context(store: CacheStore, layer: int, head: int, weights: Floats, values_end: int, exact: Floats) -> Floats:
    total = np.zeros(store.head_dim, np.float32)
    offset = mass = np.zeros((), np.float32)
    codes, params = rows_of(store, store.values, store.value_params, layer, head, values_end)
    for first in range(0, values_end, PAGE):
        page = slice(first, min(first + PAGE, values_end))
        w, s, o = weights[page], params[page, 0], params[page, 1]
        total = np.asarray(total + np.cumsum((w * s)[:, None] * codes[page], axis=0)[-1], np.float32)
        offset, mass = offset + lane_sum(w * o), mass + lane_sum(w)
    near = weights[values_end:]
    total = total + np.cumsum(near[:, None] * exact, axis=0)[-1]
    return np.asarray((total + offset) / (mass + lane_sum(near)), np.float32)

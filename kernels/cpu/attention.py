"""The KV cache's append and attend, compiled: the same sums in the same order as the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from nearbank.formats import from_bf16
from nearbank.kernels.reference.attention import append
from nearbank.kernels.reference.exponential import LEAST, LN2_HIGH, LN2_LOW, LOG2_E, ROUND, TAYLOR
from nearbank.kernels.store import PAGE, CacheStore, floats_stored, unpack_rows

__all__ = ["append", "attend"]

Floats = npt.NDArray[np.float32]
ONE = np.float32(1)


@njit(cache=True, nogil=True)
def _fold(lanes):  # type: ignore[no-untyped-def]
    for half in (8, 4, 2, 1):
        for lane in range(half):
            lanes[lane] += lanes[lane + half]
    return lanes[0]


@njit(cache=True, nogil=True)
def _dot(q, k, lanes):  # type: ignore[no-untyped-def]
    lanes[:] = 0
    for d in range(q.shape[0]):
        lanes[d % 16] += q[d] * k[d]
    return _fold(lanes)


@njit(cache=True, nogil=True)
def _exp(x, powers, bits):  # type: ignore[no-untyped-def]
    if x < LEAST:
        return np.float32(0)
    n = (x * LOG2_E + ROUND) - ROUND
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    poly = TAYLOR[0]
    for c in TAYLOR[1:]:
        poly = poly * r + c
    bits[0] = (np.int32(n) + np.int32(127)) << 23
    return ((poly * (r * r) + r) + ONE) * powers[0]


@njit(cache=True, nogil=True)
def _attend(q, keys, key_params, values, value_params, start, scale, scores, bits, out):  # type: ignore[no-untyped-def]
    tokens, heads, dim = q.shape
    shared = heads // keys.shape[0]
    lanes, sums = np.zeros(16, np.float32), np.zeros((2, 16), np.float32)
    page_total, total = np.zeros(dim, np.float32), np.zeros(dim, np.float32)
    ones = np.ones(dim, np.float32)
    powers = bits.view(np.float32)
    for h in range(heads):
        kv = h // shared
        for t in range(tokens):
            n = start + t + 1
            q_sum = _dot(q[t, h], ones, lanes)
            peak = np.float32(-np.inf)
            for j in range(n):
                dot = _dot(q[t, h], keys[kv, j], lanes)
                scores[j] = (dot * key_params[kv, j, 0] + key_params[kv, j, 1] * q_sum) * scale
                peak = max(peak, scores[j])
            total[:] = 0
            offset, mass = np.float32(0), np.float32(0)
            for first in range(0, n, PAGE):
                sums[:] = 0
                page_total[:] = 0
                for j in range(first, min(first + PAGE, n)):
                    weight = _exp(scores[j] - peak, powers, bits)
                    sums[0, j % 16] += weight * value_params[kv, j, 1]
                    sums[1, j % 16] += weight
                    scaled = weight * value_params[kv, j, 0]
                    for d in range(dim):
                        page_total[d] += scaled * values[kv, j, d]
                for d in range(dim):
                    total[d] += page_total[d]
                offset += _fold(sums[0])
                mass += _fold(sums[1])
            for d in range(dim):
                out[t, h, d] = (total[d] + offset) / mass


def _unpacked(
    store: CacheStore, rows: npt.NDArray[Any], params: npt.NDArray[np.uint16], layer: int, end: int
) -> tuple[Floats, Floats]:
    """Codes as floats [kv heads, end, D], scale and offset [kv heads, end, 2]."""
    pages = -(-end // PAGE)
    stored = rows[layer, :pages].swapaxes(0, 1).reshape(rows.shape[2], pages * PAGE, -1)[:, :end]
    if store.format.is_float:
        exact = np.zeros((*stored.shape[:2], 2), np.float32)
        exact[..., 0] = 1
        values = floats_stored(store.format, stored)
        return np.ascontiguousarray(values[..., : store.head_dim]), exact
    codes = unpack_rows(np.ascontiguousarray(stored), store.format)[..., : store.head_dim].astype(np.float32)
    flat = params[layer, :pages].swapaxes(0, 1).reshape(rows.shape[2], pages * PAGE, 2)[:, :end]
    return np.ascontiguousarray(codes), from_bf16(np.ascontiguousarray(flat))


def attend(store: CacheStore, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
    """q [T, heads, head_dim] at positions start … → context [T, heads, head_dim]."""
    end = start + q.shape[0]
    keys, key_params = _unpacked(store, store.keys, store.key_params, layer, end)
    values, value_params = _unpacked(store, store.values, store.value_params, layer, end)
    out, bits = np.empty_like(q), np.zeros(1, np.int32)
    scores = np.empty(end, np.float32)
    _attend(q, keys, key_params, values, value_params, start, scale, scores, bits, out)
    return out

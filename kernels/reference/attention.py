"""The KV cache's append and attend: the definition.

For one query head at position p, over keys 0 … p of its KV head:

    score[j]  = (scale of k[j] · Σ q · code + offset of k[j] · Σ q) · softmax scale
    weight[j] = exp(score[j] − max score)
    context   = Σ over pages of (Σ in the page of weight · v) / Σ weight

Σ over head_dim, and Σ weight within a page, run in lanes; within a page the context adds token by token;
pages add in order. A query's result depends on its position and the cache, never on the queries beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.formats import from_bf16
from nearbank.kernels.reference.exponential import exp_non_positive
from nearbank.kernels.reference.lanes import lane_dot, lane_sum, padded
from nearbank.kernels.reference.quantise import quantise_tokens
from nearbank.kernels.store import PAGE, CacheStore, floats_stored, pack_rows, stored_floats, unpack_rows

Floats = npt.NDArray[np.float32]


def append(store: CacheStore, layer: int, start: int, k: Floats, v: Floats) -> None:
    """Quantise k, v [T, kv heads, head_dim] once and write them at positions start …."""
    write_rows(store, store.keys[layer], store.key_params[layer], start, k)
    write_rows(store, store.values[layer], store.value_params[layer], start, v)


def write_rows(
    store: CacheStore, rows: npt.NDArray[Any], params: npt.NDArray[np.uint16], start: int, new: Floats
) -> None:
    """new [T, kv heads, head_dim] → one layer's rows and params, from position `start`."""
    for t in range(new.shape[0]):
        page, slot = divmod(start + t, PAGE)
        held = store.table[page]
        _write(store, rows[held, :, slot], params[held, :, slot], new[t])


def _write(store: CacheStore, row: npt.NDArray[Any], param: npt.NDArray[np.uint16], new: Floats) -> None:
    """Write one token's [kv heads, head_dim] values."""
    if store.format.is_float:
        row[:, : store.head_dim] = stored_floats(store.format, new)
        return
    codes, scales, offsets = quantise_tokens(new, store.format.high)
    row[:] = pack_rows(padded(codes, row.shape[-1] * store.format.values_per_word), store.format)
    param[:, 0], param[:, 1] = scales, offsets


def attend(store: CacheStore, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
    """q [T, heads, head_dim] at positions start … → context [T, heads, head_dim]."""
    tokens, heads, _ = q.shape
    shared = heads // store.keys.shape[2]
    end = start + tokens
    out = np.zeros_like(q)
    for h in range(heads):
        keys, key_params = rows_of(store, store.keys, store.key_params, layer, h // shared, end)
        values, value_params = rows_of(store, store.values, store.value_params, layer, h // shared, end)
        for t in range(tokens):
            n = start + t + 1
            scores = scores_of(q[t, h], keys[:n], key_params[:n]) * scale
            weights = exp_non_positive(scores - scores.max())
            out[t, h] = _context(weights, values[:n], value_params[:n])[: store.head_dim]
    return out


def rows_of(
    store: CacheStore,
    rows: npt.NDArray[Any],
    params: npt.NDArray[np.uint16],
    layer: int,
    head: int,
    end: int,
) -> tuple[Floats, Floats]:
    """One head's first `end` tokens: codes as floats [end, D], scale and offset [end, 2]."""
    held = store.table[: -(-end // PAGE)]
    stored = rows[layer, held, head].reshape(len(held) * PAGE, rows.shape[-1])[:end]
    if store.format.is_float:
        exact = np.tile(np.array([1, 0], np.float32), (end, 1))
        return floats_stored(store.format, stored)[:, : store.head_dim], exact
    codes = unpack_rows(stored, store.format)[:, : store.head_dim].astype(np.float32)
    return codes, from_bf16(params[layer, held, head].reshape(len(held) * PAGE, 2)[:end])


def scores_of(q: Floats, codes: Floats, params: Floats) -> Floats:
    """[n] scores before the softmax scale."""
    return lane_dot(q, codes) * params[:, 0] + params[:, 1] * lane_sum(q)


def _context(weights: Floats, codes: Floats, params: Floats) -> Floats:
    """Σ weight · (scale · code + offset) / Σ weight, page by page."""
    total = np.zeros(codes.shape[1], np.float32)
    offset = mass = np.zeros((), np.float32)
    for first in range(0, len(weights), PAGE):
        page = slice(first, first + PAGE)
        w, s, o = weights[page], params[page, 0], params[page, 1]
        total = total + np.cumsum((w * s)[:, None] * codes[page], axis=0)[-1]
        offset = offset + lane_sum(w * o)
        mass = mass + lane_sum(w)
    return (total + offset) / mass

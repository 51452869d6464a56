"""Attention over a cache whose newest tokens are exact, compiled; the definition is `reference.windowed`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nearbank.cache_formats import Scheme
from nearbank.compiled import compiled, compiled_part
from nearbank.kernels.cpu import pages as p
from nearbank.kernels.cpu import softmax as s
from nearbank.kernels.cpu.attention import (
    TILE,
    add,
    add_page,
    clear,
    dots_in_page,
    even,
    finish_scores,
    highest_of,
    load_query,
    queries_at_once,
    weigh,
)
from nearbank.kernels.cpu.cache_rows import write_rows
from nearbank.kernels.cpu.feedback import write_fed_back
from nearbank.kernels.store import LANES, PAGE, CacheStore
from nearbank.kernels.threads import in_parts
from nearbank.kernels.window import Channels, Sizes
from nearbank.kernels.window_host import HostWindow, Recent

__all__ = ["attend_windowed", "open_window", "write_rows"]

Floats = npt.NDArray[np.float32]


def open_window(sizes: Sizes, scheme: Scheme, channels: tuple[Channels, ...]) -> HostWindow:
    """Memory of a windowed cache."""
    return HostWindow(write_rows, write_fed_back, attend_windowed, sizes, scheme, channels)


@compiled_part
def _channel_scores(  # type: ignore[no-untyped-def]
    kind, key_group, count, q, scale, rows, at, chunks, row, params, token_params, scaled_q, product, tile, lanes,
    scores, column,
):  # fmt: skip
    """Scores of one group of tokens whose keys share scales per channel; params [2, D]."""
    width, span = q.shape[1], scores.shape[1]
    for i in range(count):
        for d in range(params.shape[1]):
            scaled_q[i, d] = q[i, d] * s.from_bf16(params[0, d])
    dots_in_page(kind, count, scaled_q, rows, at, chunks, row, key_group, tile, lanes, scores, column)
    for i in range(count):
        for d in range(params.shape[1]):
            product[d] = q[i, d] * s.from_bf16(params[1, d])
        shift = s.lane_sum(product, 0, width // LANES)
        s.finish_shifted(scores, i * span + column, token_params, 0, shift, scale, key_group // LANES)


@compiled_part
def _past_scores(  # type: ignore[no-untyped-def]
    kind, key_group, count, q, q_sums, scale, keys, token_params, channel_params, layer, head, end, chunks, scaled_q,
    product, tile, lanes, scores,
):  # fmt: skip
    """Scores of the first `end` tokens from their pages."""
    pages, heads, row, span = keys.shape[1], keys.shape[2], keys.shape[4], scores.shape[1]
    flat, flat_tokens = keys.reshape(-1), token_params.reshape(-1)
    for page in range((end + PAGE - 1) // PAGE):
        place = ((layer * pages + page) * heads + head) * PAGE
        tokens = min(PAGE, end - page * PAGE)
        if key_group == 0:
            dots_in_page(kind, count, q, flat, place * row, chunks, row, tokens, tile, lanes, scores, page * PAGE)
            for i in range(count):
                at = i * span + page * PAGE
                finish_scores(kind, scores, at, flat_tokens, 2 * place, q_sums[i], scale, tokens)
        else:
            for slot in range(0, tokens, key_group):
                _channel_scores(
                    kind, key_group, count, q, scale, flat, (place + slot) * row, chunks, row,
                    channel_params[layer, page, head, slot // key_group], flat_tokens, scaled_q, product, tile, lanes,
                    scores, page * PAGE + slot,
                )  # fmt: skip


@compiled_part
def _near_scores(count, q, scale, rows, at, near_width, tokens, params, lanes, scores, column):  # type: ignore[no-untyped-def]
    """Scores of the exact tokens, one query after the other; rows float32 from element `at`."""
    width, span = q.shape[1], scores.shape[1]
    for first in range(0, tokens, PAGE):
        groups = (min(PAGE, tokens - first) + 7) // 8
        for i in range(count):
            here = i * span + column + first
            p.dots(
                0, q, i * width, rows, at + first * near_width, near_width // LANES, groups * (8 // p.TOKENS), lanes
            )  # fmt: skip
            p.fold_lanes(lanes, 0, groups, scores, here)
            s.finish_exact(scores, here, params, 0, np.float32(0), scale, (groups + 1) // 2)


@compiled_part
def _block(  # type: ignore[no-untyped-def]
    kind, key_group, count, n, keys_end, values_end, q, q_sums, scale, keys, token_params, channel_params, values,
    value_params, recent_keys, recent_values, recent_first, layer, head, chunks, scaled_q, product, tile, lanes,
    scores, near, peaks, sums, totals, masses,
):  # fmt: skip
    """Totals and masses of q [count, width], heads of one token and KV head, over its first n tokens."""
    pages, kv_heads, row = values.shape[1], values.shape[2], values.shape[4]
    span, near_width = scores.shape[1], recent_keys.shape[2]
    flat_v, flat_vp = values.reshape(-1), value_params.reshape(-1)
    flat_rk, flat_rv = recent_keys.reshape(-1), recent_values.reshape(-1)
    rows_before = head * recent_keys.shape[1] - recent_first
    _past_scores(
        kind, key_group, count, q, q_sums, scale, keys, token_params, channel_params, layer, head, keys_end, chunks,
        scaled_q, product, tile, lanes, scores,
    )  # fmt: skip
    _near_scores(
        count, q, scale, flat_rk, (rows_before + keys_end) * near_width, near_width, n - keys_end, flat_vp, lanes,
        scores, keys_end,
    )  # fmt: skip
    used, exact = (values_end + PAGE - 1) // PAGE, n - values_end
    for i in range(count):
        peaks[i] = highest_of(scores, i, n, (n + LANES - 1) // LANES * LANES)
        for j in range((exact + LANES - 1) // LANES * LANES):
            near[i, j] = scores[i, values_end + j] if j < exact else -np.inf
        for j in range(values_end, used * PAGE):
            scores[i, j] = -np.inf
    for page in range(used):
        place = ((layer * pages + page) * kv_heads + head) * PAGE
        tokens = min(PAGE, values_end - page * PAGE)
        for i in range(count):
            weigh(kind, scores, i * span + page * PAGE, peaks[i], flat_vp, 2 * place, tokens, masses, i)
        add_page(kind, count, scores, page * PAGE, flat_v, place * row, chunks, row, tokens, tile, sums, totals)
    clear(sums)
    for i in range(count):
        weigh(0, near, i * near.shape[1], peaks[i], flat_vp, 0, exact, masses, i)
        p.context(
            0, near, i * near.shape[1], flat_rv, (rows_before + values_end) * near_width, near_width // LANES,
            (exact + p.TOKENS - 1) // p.TOKENS, sums, i * sums.shape[1],
        )  # fmt: skip
    add(sums, count, totals)


@compiled(nogil=True)
def _attend(  # type: ignore[no-untyped-def]
    kind, key_group, first, last, block, q, scale, keys, token_params, channel_params, values, value_params,
    recent_keys, recent_values, recent_first, bounds, layer, start, chunks, width, out,
):  # fmt: skip
    """Items first … last of tokens × KV heads × blocks of `block` of the queries that a token has for a KV head."""
    tokens, heads, dim = q.shape
    kv_heads = keys.shape[2]
    shared = heads // kv_heads
    blocks, rows = (shared + block - 1) // block, even(block)
    span = (start + tokens + PAGE - 1) // PAGE * PAGE + LANES
    scores, near = np.empty((rows, span), np.float32), np.empty((rows, span), np.float32)
    wide_q, scaled_q = np.zeros((rows, width), np.float32), np.zeros((rows, width), np.float32)
    totals, sums = np.empty((rows, width), np.float32), np.empty((rows, width), np.float32)
    product, tile = np.zeros(width, np.float32), np.empty(TILE * width, np.float32)
    lanes, masses = np.empty(PAGE * 8, np.float32), np.empty((rows, 2), np.float32)
    q_sums, peaks = np.zeros(rows, np.float32), np.empty(rows, np.float32)
    for item in range(first, last):
        t, head = item // (kv_heads * blocks), item // blocks % kv_heads
        begin = item % blocks * block
        count = min(block, shared - begin)
        for i in range(even(count)):
            load_query(q, t, head * shared + begin + min(i, count - 1), wide_q, q_sums, i)
        clear(totals)
        clear(masses)
        _block(
            kind, key_group, even(count), start + t + 1, bounds[t, 0], bounds[t, 1], wide_q, q_sums, scale, keys,
            token_params, channel_params, values, value_params, recent_keys, recent_values, recent_first, layer, head,
            chunks, scaled_q, product, tile, lanes, scores, near, peaks, sums, totals, masses,
        )  # fmt: skip
        for i in range(count):
            for d in range(dim):
                out[t, head * shared + begin + i, d] = (totals[i, d] + masses[i, 0]) / masses[i, 1]


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
    kind = p.KINDS[store.format.name]
    chunks, kv_heads = store.keys.shape[-1] // kind.chunk_bytes, store.keys.shape[2]
    tokens = store.value_params if key_group else store.key_params
    channels = store.key_params if key_group else np.zeros((1, 1, 1, 1, 2, 1), np.uint16)
    shared, out = q.shape[1] // kv_heads, np.empty_like(q)
    block = queries_at_once(shared, len(q) * kv_heads)

    def run(first: int, last: int) -> None:
        _attend(
            p.KIND_NUMBERS[store.format.name], key_group, first, last, block, q, scale, store.keys, tokens, channels,
            store.values, store.value_params, recent.keys, recent.values, recent.first, bounds, layer, start,
            chunks, LANES * kind.vectors * chunks, out,
        )  # fmt: skip

    items = len(q) * kv_heads * -(-shared // block)
    in_parts(run, items, work=len(q) * q.shape[1] * (start + len(q)) * chunks * 64)
    return out

"""Attention over a cache whose newest tokens are exact, compiled; the definition is `reference.windowed`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nearbank.cache_formats import Scheme
from nearbank.compiled import compiled, compiled_part
from nearbank.kernels.cpu import pages as p
from nearbank.kernels.cpu.attention import KIND_NUMBERS, context_in_page, lane_sum, scores_in_page
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
    kind, q, params, word, scale, rows, row_at, chunks, groups, scaled_q, product, flat_params, out, out_at
):
    """Scores of one group of tokens whose keys share scales per channel; params [2, D], `word` scratch."""
    value = word.view(np.float32)
    for d in range(q.shape[0]):
        word[0] = np.uint32(params[0, d]) << 16
        scaled_q[d] = q[d] * value[0]
        word[0] = np.uint32(params[1, d]) << 16
        product[d] = q[d] * value[0]
    shift = lane_sum(product)
    if kind == 3:
        p.channel_scores_int8(scaled_q, shift, scale, rows, row_at, chunks, flat_params, 0, groups, out, out_at)
    elif kind == 4:
        p.channel_scores_int4(scaled_q, shift, scale, rows, row_at, chunks, flat_params, 0, groups, out, out_at)
    else:
        p.channel_scores_int2(scaled_q, shift, scale, rows, row_at, chunks, flat_params, 0, groups, out, out_at)


@compiled_part
def _past_scores(  # type: ignore[no-untyped-def]
    kind, key_group, q, wide_q, scale, keys, token_params, channel_params, layer, head, end, chunks, scaled_q,
    product, word, scores,
):  # fmt: skip
    """Scores of the first `end` tokens from their pages."""
    pages, heads, row = keys.shape[1], keys.shape[2], keys.shape[4]
    flat, flat_tokens = keys.reshape(-1), token_params.reshape(-1)
    q_sum = lane_sum(q)
    for page in range((end + PAGE - 1) // PAGE):
        place = ((layer * pages + page) * heads + head) * PAGE
        tokens = min(PAGE, end - page * PAGE)
        if key_group == 0:
            scores_in_page(
                kind, wide_q, q_sum, scale, flat, place * row, chunks, flat_tokens, 2 * place, (tokens + 7) // 8,
                scores, page * PAGE,
            )  # fmt: skip
        else:
            for slot in range(0, tokens, key_group):
                _channel_scores(
                    kind, q, channel_params[layer, page, head, slot // key_group], word, scale, flat,
                    (place + slot) * row, chunks, key_group // 8, scaled_q, product, flat_tokens, scores,
                    page * PAGE + slot,
                )  # fmt: skip


@compiled(nogil=True)
def _attend(  # type: ignore[no-untyped-def]
    kind, key_group, first, last, q, scale, keys, token_params, channel_params, values, value_params,
    recent_keys, recent_values, recent_first, bounds, layer, start, chunks, width, out,
):  # fmt: skip
    tokens, heads, dim = q.shape
    shared = heads // keys.shape[2]
    pages, kv_heads, row = keys.shape[1], keys.shape[2], values.shape[4]
    near_width = recent_keys.shape[2]
    scores = np.empty((start + tokens + PAGE) // PAGE * PAGE + 16, np.float32)
    near = np.empty(scores.shape[0], np.float32)
    wide_q, scaled_q, product = (
        np.zeros(width, np.float32),
        np.zeros(width, np.float32),
        np.zeros(dim, np.float32),
    )
    total, word, sums = np.zeros(width, np.float32), np.zeros(1, np.uint32), np.zeros(2, np.float32)
    flat_v, flat_vp = values.reshape(-1), value_params.reshape(-1)
    flat_rk, flat_rv = recent_keys.reshape(-1), recent_values.reshape(-1)
    for item in range(first, last):
        t, h = item // heads, item % heads
        head, n = h // shared, start + t + 1
        keys_end, values_end = bounds[t, 0], bounds[t, 1]
        wide_q[:dim] = q[t, h]
        _past_scores(
            kind, key_group, q[t, h], wide_q, scale, keys, token_params, channel_params, layer, head, keys_end,
            chunks, scaled_q, product, word, scores,
        )  # fmt: skip
        rows_before = head * recent_keys.shape[1] - recent_first
        p.scores_fp32(
            wide_q, np.float32(0), scale, flat_rk, (rows_before + keys_end) * near_width, near_width // 16, flat_vp, 0,
            (n - keys_end + 7) // 8, scores, keys_end,
        )  # fmt: skip
        peak = np.float32(-np.inf)
        for j in range(n):
            peak = max(peak, scores[j])
        count = n - values_end
        near[:count] = scores[values_end:n]
        near[count : (count + 15) // 16 * 16] = -np.inf
        used = (values_end + PAGE - 1) // PAGE
        scores[values_end : used * PAGE] = -np.inf
        total[:] = 0
        offset, mass = np.float32(0), np.float32(0)
        for page in range(used):
            place = ((layer * pages + page) * kv_heads + head) * PAGE
            here = min(PAGE, values_end - page * PAGE)
            p.weights_scaled(scores, page * PAGE, peak, flat_vp, 2 * place, (here + 15) // 16, sums)
            offset += sums[0]
            mass += sums[1]
            context_in_page(kind, scores, page * PAGE, flat_v, place * row, chunks, here, total)
        p.weights_exact(near, 0, peak, flat_vp, 0, (count + 15) // 16, sums)
        mass += sums[1]
        p.context_fp32(near, 0, flat_rv, (rows_before + values_end) * near_width, near_width // 16, count, total)
        for d in range(dim):
            out[t, h, d] = (total[d] + offset) / mass


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
    chunks = store.keys.shape[-1] // kind.chunk_bytes
    width = max(LANES * kind.vectors * chunks, recent.keys.shape[2])
    tokens = store.value_params if key_group else store.key_params
    channels = store.key_params if key_group else np.zeros((1, 1, 1, 1, 2, 1), np.uint16)
    out = np.empty_like(q)

    def run(first: int, last: int) -> None:
        _attend(
            KIND_NUMBERS[store.format.name], key_group, first, last, q, scale, store.keys, tokens, channels,
            store.values, store.value_params, recent.keys, recent.values, recent.first, bounds, layer, start,
            chunks, width, out,
        )  # fmt: skip

    items = q.shape[0] * q.shape[1]
    in_parts(run, items, work=items * (start + len(q)) * chunks * 64)
    return out

"""The KV cache's append and attend, compiled: the loops over heads, tokens and pages.

What happens within a page is `nearbank.kernels.cpu.pages` and `softmax`. Pages are read where they lie, packed. Queries
that share a KV head are taken together in blocks: a tile of its rows becomes floats once, and all of them read it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nearbank.compiled import compiled, compiled_part
from nearbank.kernels.cpu import pages as p
from nearbank.kernels.cpu import softmax as s
from nearbank.kernels.cpu.cache_rows import append
from nearbank.kernels.store import LANES, PAGE, CacheStore
from nearbank.kernels.threads import in_parts, thread_count

__all__ = ["append", "attend"]

Floats = npt.NDArray[np.float32]
TILE = 16  # tokens whose rows become floats together: 8 KiB at a head_dim of 128, which stay in the first cache
MOST_QUERIES = 8  # in a block, whose scores of all tokens are held at once


@compiled_part
def dots_in_page(kind, count, q, rows, at, chunks, row, tokens, tile, lanes, out, out_at):  # type: ignore[no-untyped-def]
    """q [count, width] · a page's rows, as stored from element `at`: out [count, span] from column `out_at`.

    Whole tiles of tokens are written. Two queries or more come padded to an even count.
    """
    width, span = q.shape[1], out.shape[1]
    tiles = (tokens + TILE - 1) // TILE
    if count == 1:
        p.dots(kind, q, 0, rows, at, chunks, tiles * (TILE // p.TOKENS), lanes)
        p.fold_lanes(lanes, 0, tiles * (TILE // 8), out, out_at)
        return
    for t in range(tiles):
        p.widen(kind, rows, at + t * TILE * row, TILE * chunks, tile)
        for i in range(0, count, 2):
            p.dots_of_two(q, i * width, width, tile, 0, width // LANES, TILE // p.PAIR, lanes, TILE * 8)
            place = i * span + out_at + t * TILE
            p.fold_lanes(lanes, 0, TILE // 8, out, place)
            p.fold_lanes(lanes, TILE * 8, TILE // 8, out, place + span)


@compiled_part
def add_page(kind, count, weights, at, rows, row_at, chunks, row, tokens, tile, sums, totals):  # type: ignore[no-untyped-def]
    """totals [count, width] += Σ over a page's tokens, one after the other, of weights [count, span] from `at` · codes.

    Weights up to the next whole tile are 0.
    """
    width, span = totals.shape[1], weights.shape[1]
    tiles = (tokens + TILE - 1) // TILE
    clear(sums)
    if count == 1:
        p.context(kind, weights, at, rows, row_at, chunks, tiles * (TILE // p.TOKENS), sums, 0)
    else:
        for t in range(tiles):
            p.widen(kind, rows, row_at + t * TILE * row, TILE * chunks, tile)
            for i in range(0, count, 2):
                first = i * span + at + t * TILE
                p.context_of_two(
                    weights, first, span, tile, 0, width // LANES, TILE // p.STEP, sums, i * width, width
                )  # fmt: skip
    add(sums, count, totals)


@compiled_part
def add(sums, count, totals):  # type: ignore[no-untyped-def]
    for i in range(count):
        for d in range(sums.shape[1]):
            totals[i, d] += sums[i, d]


@compiled_part
def clear(sums):  # type: ignore[no-untyped-def]
    for i in range(sums.shape[0]):
        for d in range(sums.shape[1]):
            sums[i, d] = 0


@compiled_part
def highest_of(scores, i, n, end):  # type: ignore[no-untyped-def]
    """The highest of row i's first n scores; those from there to `end`, a multiple of 16, become -inf."""
    for j in range(n, end):
        scores[i, j] = -np.inf
    return s.highest(scores, i * scores.shape[1], end // LANES)


@compiled_part
def finish_scores(kind, out, at, params, param_at, q_sum, scale, tokens):  # type: ignore[no-untyped-def]
    vectors = (tokens + LANES - 1) // LANES
    if kind < p.FIRST_OF_CODES:
        s.finish_exact(out, at, params, param_at, q_sum, scale, vectors)
    else:
        s.finish_scaled(out, at, params, param_at, q_sum, scale, vectors)


@compiled_part
def weigh(kind, scores, at, peak, params, param_at, tokens, masses, i):  # type: ignore[no-untyped-def]
    """Scores of a page become weights; Σ weight · offset and Σ weight are added to masses [queries, 2]."""
    vectors = (tokens + LANES - 1) // LANES
    if kind < p.FIRST_OF_CODES:
        s.weights_exact(scores, at, peak, params, param_at, vectors, masses, 2 * i)
    else:
        s.weights_scaled(scores, at, peak, params, param_at, vectors, masses, 2 * i)


@compiled_part
def even(count):  # type: ignore[no-untyped-def]
    """The next even count, but 1 stays: queries are taken alone or in pairs."""
    return count + count % 2 if count > 1 else count


@compiled_part
def load_query(q, t, h, wide_q, q_sums, i):  # type: ignore[no-untyped-def]
    """Query t, h becomes row i, whose end stays zero, with its sum."""
    width = wide_q.shape[1]
    for d in range(q.shape[2]):
        wide_q[i, d] = q[t, h, d]
    q_sums[i] = s.lane_sum(wide_q, i * width, width // LANES)


@compiled_part
def _block(  # type: ignore[no-untyped-def]
    kind, count, n, q, q_sums, scale, table, keys, key_params, values, value_params, layer, head, chunks, tile, lanes,
    scores, peaks, sums, totals, masses,
):  # fmt: skip
    """Totals and masses of q [count, width] over the first n [count] tokens of one KV head; the last sees the most."""
    pages, heads, row = keys.shape[1], keys.shape[2], keys.shape[4]
    flat_k, flat_v = keys.reshape(-1), values.reshape(-1)
    flat_kp, flat_vp = key_params.reshape(-1), value_params.reshape(-1)
    span, end = scores.shape[1], n[count - 1]
    used = (end + PAGE - 1) // PAGE
    for page in range(used):
        place = ((layer * pages + table[page]) * heads + head) * PAGE
        tokens = min(PAGE, end - page * PAGE)
        dots_in_page(kind, count, q, flat_k, place * row, chunks, row, tokens, tile, lanes, scores, page * PAGE)
        for i in range(count):
            finish_scores(kind, scores, i * span + page * PAGE, flat_kp, 2 * place, q_sums[i], scale, tokens)
    for i in range(count):
        peaks[i] = highest_of(scores, i, n[i], used * PAGE)
    for page in range(used):
        place = ((layer * pages + table[page]) * heads + head) * PAGE
        tokens = min(PAGE, end - page * PAGE)
        for i in range(count):
            weigh(kind, scores, i * span + page * PAGE, peaks[i], flat_vp, 2 * place, tokens, masses, i)
        add_page(kind, count, scores, page * PAGE, flat_v, place * row, chunks, row, tokens, tile, sums, totals)


@compiled(nogil=True)
def _attend(  # type: ignore[no-untyped-def]
    kind, first, last, block, q, scale, table, keys, key_params, values, value_params, layer, start, chunks, width, out
):
    """Items first … last of blocks × KV heads: `block` queries of one KV head, heads of a token next to each other."""
    tokens, heads, dim = q.shape
    shared = heads // keys.shape[2]
    rows = even(block)
    scores = np.empty((rows, (start + tokens + PAGE - 1) // PAGE * PAGE), np.float32)
    wide_q, totals = np.zeros((rows, width), np.float32), np.empty((rows, width), np.float32)
    sums, tile = np.empty((rows, width), np.float32), np.empty(TILE * width, np.float32)
    lanes, masses = np.empty(PAGE * 8, np.float32), np.empty((rows, 2), np.float32)
    q_sums, peaks, n = np.zeros(rows, np.float32), np.empty(rows, np.float32), np.zeros(rows, np.int64)
    for item in range(first, last):
        begin, head = item // keys.shape[2] * block, item % keys.shape[2]
        count = min(block, tokens * shared - begin)
        for i in range(even(count)):
            query = begin + min(i, count - 1)  # an odd count is padded with its last query again
            t, h = query // shared, head * shared + query % shared
            load_query(q, t, h, wide_q, q_sums, i)
            n[i] = start + t + 1
        clear(totals)
        clear(masses)
        _block(
            kind, even(count), n, wide_q, q_sums, scale, table, keys, key_params, values, value_params, layer, head,
            chunks, tile, lanes, scores, peaks, sums, totals, masses,
        )  # fmt: skip
        for i in range(count):
            t, h = (begin + i) // shared, head * shared + (begin + i) % shared
            for d in range(dim):
                out[t, h, d] = (totals[i, d] + masses[i, 0]) / masses[i, 1]


def queries_at_once(queries: int, others: int) -> int:
    """How many of `queries` that share a KV head are taken together: as many as leave every thread a block, and alike.

    others: how many such sets of queries there are.
    """
    most = max(1, min(MOST_QUERIES, queries * others // thread_count()))
    return -(-queries // -(-queries // most))


def attend(store: CacheStore, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
    """q [T, heads, head_dim] at positions start … → context [T, heads, head_dim]."""
    kind = p.KINDS[store.format.name]
    chunks = store.keys.shape[-1] * store.keys.itemsize // kind.chunk_bytes
    kv_heads, out = store.keys.shape[2], np.empty_like(q)
    queries = len(q) * q.shape[1] // kv_heads
    block = queries_at_once(queries, kv_heads)

    def run(first: int, last: int) -> None:
        _attend(
            p.KIND_NUMBERS[store.format.name], first, last, block, q, scale, store.table, store.keys, store.key_params,
            store.values, store.value_params, layer, start, chunks, LANES * kind.vectors * chunks, out,
        )  # fmt: skip

    items = -(-queries // block) * kv_heads
    in_parts(run, items, work=queries * kv_heads * (start + len(q)) * chunks * 64)
    return out

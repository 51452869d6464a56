"""The KV cache's append and attend, compiled: the loops over heads, tokens and pages.

What happens within a page is `nearbank.kernels.cpu.pages`. Pages are read where they lie, packed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nearbank.compiled import compiled, compiled_part
from nearbank.kernels.cpu import pages as p
from nearbank.kernels.cpu.cache_rows import append
from nearbank.kernels.store import PAGE, CacheStore
from nearbank.kernels.threads import in_parts

__all__ = ["append", "attend"]

Floats = npt.NDArray[np.float32]
KIND_NUMBERS = {name: number for number, name in enumerate(p.KINDS)}


@compiled_part
def scores_in_page(kind, q, q_sum, scale, rows, at, chunks, params, param_at, groups, out, out_at):  # type: ignore[no-untyped-def]
    if kind == 0:
        p.scores_fp32(q, q_sum, scale, rows, at, chunks, params, param_at, groups, out, out_at)
    elif kind == 1:
        p.scores_fp16(q, q_sum, scale, rows, at, chunks, params, param_at, groups, out, out_at)
    elif kind == 2:
        p.scores_bf16(q, q_sum, scale, rows, at, chunks, params, param_at, groups, out, out_at)
    elif kind == 3:
        p.scores_int8(q, q_sum, scale, rows, at, chunks, params, param_at, groups, out, out_at)
    elif kind == 4:
        p.scores_int4(q, q_sum, scale, rows, at, chunks, params, param_at, groups, out, out_at)
    else:
        p.scores_int2(q, q_sum, scale, rows, at, chunks, params, param_at, groups, out, out_at)


@compiled_part
def context_in_page(kind, weights, at, rows, row_at, chunks, tokens, out):  # type: ignore[no-untyped-def]
    if kind == 0:
        p.context_fp32(weights, at, rows, row_at, chunks, tokens, out)
    elif kind == 1:
        p.context_fp16(weights, at, rows, row_at, chunks, tokens, out)
    elif kind == 2:
        p.context_bf16(weights, at, rows, row_at, chunks, tokens, out)
    elif kind == 3:
        p.context_int8(weights, at, rows, row_at, chunks, tokens, out)
    elif kind == 4:
        p.context_int4(weights, at, rows, row_at, chunks, tokens, out)
    else:
        p.context_int2(weights, at, rows, row_at, chunks, tokens, out)


@compiled_part
def lane_sum(values):  # type: ignore[no-untyped-def]
    lanes = np.zeros(16, np.float32)
    for d in range(values.shape[0]):
        lanes[d % 16] += values[d]
    for half in (8, 4, 2, 1):
        for lane in range(half):
            lanes[lane] += lanes[lane + half]
    return lanes[0]


@compiled_part
def _one_query(  # type: ignore[no-untyped-def]
    kind,
    q,
    scale,
    table,
    keys,
    key_params,
    values,
    value_params,
    layer,
    head,
    n,
    chunks,
    scores,
    wide_q,
    total,
    sums,
    out,
):
    """Context of one query over the first n tokens of one KV head."""
    dim = q.shape[0]
    wide_q[:dim] = q
    q_sum = lane_sum(q)
    pages, heads, row = keys.shape[1], keys.shape[2], keys.shape[4]
    flat_k, flat_v = keys.reshape(-1), values.reshape(-1)
    flat_kp, flat_vp = key_params.reshape(-1), value_params.reshape(-1)
    used = (n + PAGE - 1) // PAGE
    for page in range(used):
        place = ((layer * pages + table[page]) * heads + head) * PAGE
        groups = (min(PAGE, n - page * PAGE) + 7) // 8
        scores_in_page(
            kind, wide_q, q_sum, scale, flat_k, place * row, chunks, flat_kp, 2 * place, groups, scores, page * PAGE
        )
    scores[n : used * PAGE] = -np.inf
    peak = np.float32(-np.inf)
    for j in range(n):
        peak = max(peak, scores[j])
    total[:] = 0
    offset, mass = np.float32(0), np.float32(0)
    for page in range(used):
        place = ((layer * pages + table[page]) * heads + head) * PAGE
        tokens = min(PAGE, n - page * PAGE)
        vectors = (tokens + 15) // 16
        if kind < 3:
            p.weights_exact(scores, page * PAGE, peak, flat_vp, 2 * place, vectors, sums)
        else:
            p.weights_scaled(scores, page * PAGE, peak, flat_vp, 2 * place, vectors, sums)
        offset += sums[0]
        mass += sums[1]
        context_in_page(kind, scores, page * PAGE, flat_v, place * row, chunks, tokens, total)
    for d in range(dim):
        out[d] = (total[d] + offset) / mass


@compiled(nogil=True)
def _attend(  # type: ignore[no-untyped-def]
    kind, first, last, q, scale, table, keys, key_params, values, value_params, layer, start, chunks, width, out
):
    """Items first … last of tokens × heads, heads of one KV head and token next to each other."""
    tokens, heads = q.shape[0], q.shape[1]
    shared = heads // keys.shape[2]
    scores = np.empty((start + tokens + PAGE) // PAGE * PAGE, np.float32)
    wide_q, total = np.zeros(width, np.float32), np.zeros(width, np.float32)
    sums = np.zeros(2, np.float32)
    for item in range(first, last):
        t, h = item // heads, item % heads
        _one_query(
            kind, q[t, h], scale, table, keys, key_params, values, value_params, layer, h // shared, start + t + 1,
            chunks, scores, wide_q, total, sums, out[t, h],
        )  # fmt: skip


def attend(store: CacheStore, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
    """q [T, heads, head_dim] at positions start … → context [T, heads, head_dim]."""
    kind = p.KINDS[store.format.name]
    chunks = store.keys.shape[-1] * store.keys.itemsize // kind.chunk_bytes
    out = np.empty_like(q)

    def run(first: int, last: int) -> None:
        _attend(
            KIND_NUMBERS[store.format.name], first, last, q, scale, store.table, store.keys, store.key_params,
            store.values, store.value_params, layer, start, chunks, 16 * kind.vectors * chunks, out,
        )  # fmt: skip

    items = q.shape[0] * q.shape[1]
    in_parts(run, items, work=items * (start + len(q)) * chunks * 64)
    return out

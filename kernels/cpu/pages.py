"""Attention within one page of the cache, on LLVM's portable vectors, in the definition's order of sums.

    page_scores(kind, q, q_sum, scale, rows, row_at, chunks, params, param_at, tokens, out, out_at)
    page_weights(has_params, scores, at, peak, params, param_at, out)
    page_context(kind, weights, at, rows, row_at, chunks, tokens, out)

`kind` is a cache format's number in `KINDS`; a chunk is what the kind's loader takes at once: 16 bytes of
codes, or 16 floats. A row's chunks follow each other, a page's rows too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numba import types
from numba.extending import intrinsic

from nearbank.kernels.cpu import floats as f
from nearbank.kernels.cpu import vectors as v
from nearbank.kernels.reference.exponential import LEAST, LN2_HIGH, LN2_LOW, LOG2_E, ROUND, TAYLOR

TOKENS = 8  # tokens whose scores are computed together
EIGHT = v.vector(v.F32, TOKENS)
EIGHT_WORDS = v.vector(v.I32, TOKENS)


@dataclass(frozen=True)
class Kind:
    """How rows of one format load: bytes of a chunk, vectors of 16 floats in it, and the loader."""

    chunk_bytes: int
    vectors: int
    load: Any
    has_params: bool


KINDS = {
    "fp32": Kind(64, 1, f.one(f.load_fp32), False),
    "fp16": Kind(32, 1, f.one(f.load_fp16), False),
    "bf16": Kind(32, 1, f.one(f.load_bf16), False),
    "int8": Kind(16, 1, f.load_codes(8), True),
    "int4": Kind(16, 2, f.load_codes(4), True),
    "int2": Kind(16, 4, f.load_codes(2), True),
}


def _params(builder: Any, kind: Any, pointer: Any) -> tuple[Any, Any]:
    """(scales, offsets) of neighbouring tokens: bfloat16 pairs, the scale in the lower half."""
    words = v.vector(v.I32, kind.count)
    both = v.load(builder, words, pointer)
    scales = builder.shl(both, v.constant(words, 16))
    offsets = builder.and_(both, v.constant(words, -65536))
    return builder.bitcast(scales, kind), builder.bitcast(offsets, kind)


def _dots(builder: Any, kind: Kind, q: Any, rows: Any, chunks: Any) -> Any:
    """q · codes of 8 neighbouring rows → 8 floats."""
    row_bytes = builder.mul(chunks, v.I64(kind.chunk_bytes))

    def body(chunk: Any, lanes: list[Any]) -> list[Any]:
        at_q = v.at(builder, q, builder.mul(chunk, v.I64(64 * kind.vectors)))
        queries = [v.load(builder, f.FLOATS, v.at(builder, at_q, 64 * i)) for i in range(kind.vectors)]
        first = v.at(builder, rows, builder.mul(chunk, v.I64(kind.chunk_bytes)))
        for token in range(TOKENS):
            pointer = v.at(builder, first, builder.mul(row_bytes, v.I64(token)))
            for query, codes in zip(queries, kind.load(builder, pointer), strict=True):
                lanes[token] = builder.fadd(lanes[token], builder.fmul(query, codes))
        return lanes

    return f.fold_many(builder, v.loop(builder, chunks, [v.constant(f.FLOATS, 0.0)] * TOKENS, body))


def _make_scores(kind: Kind, per_channel: bool = False) -> Any:
    """Scores of whole groups of 8 tokens. Per channel: q comes scaled, and q_sum is Σ q · offset of the channels."""

    @intrinsic
    def scores(  # type: ignore[no-untyped-def]
        typing, q, q_sum, scale, rows, row_at, chunks, params, param_at, groups, out, out_at
    ):
        def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
            queries = v.data_at(context, b, sig, args, 0)
            first_row = v.data(context, b, sig, args, 3, 4)
            first_param = v.data(context, b, sig, args, 6, 7)
            result = v.data(context, b, sig, args, 9, 10)
            factor, total = v.splat(b, args[2], TOKENS), v.splat(b, args[1], TOKENS)
            group_bytes = b.mul(args[5], v.I64(kind.chunk_bytes * TOKENS))

            def body(group: Any, carried: list[Any]) -> list[Any]:
                dots = _dots(b, kind, queries, v.at(b, first_row, b.mul(group, group_bytes)), args[5])
                if per_channel:
                    dots = b.fadd(dots, total)
                elif kind.has_params:
                    here = v.at(b, first_param, b.mul(group, v.I64(4 * TOKENS)))
                    scales, offsets = _params(b, EIGHT, here)
                    dots = b.fadd(b.fmul(dots, scales), b.fmul(offsets, total))
                v.store(b, b.fmul(dots, factor), v.at(b, result, b.mul(group, v.I64(4 * TOKENS))))
                return carried

            v.loop(b, args[8], [], body)
            return context.get_dummy_value()

        i, real = types.int64, types.float32
        return types.void(q, real, real, rows, i, i, params, i, i, out, i), generate

    return scores


def _exp(builder: Any, x: Any) -> Any:
    """exp(x) for x ≤ 0 in every lane, as `nearbank.kernels.reference.exponential` writes it."""

    def number(value: Any) -> Any:
        return v.constant(f.FLOATS, float(value))

    least = number(LEAST)
    below = builder.fcmp_ordered("<", x, least)
    clamped = builder.select(below, least, x)
    n = builder.fsub(builder.fadd(builder.fmul(clamped, number(LOG2_E)), number(ROUND)), number(ROUND))
    r = builder.fsub(clamped, builder.fmul(n, number(LN2_HIGH)))
    r = builder.fsub(r, builder.fmul(n, number(LN2_LOW)))
    poly = number(TAYLOR[0])
    for c in TAYLOR[1:]:
        poly = builder.fadd(builder.fmul(poly, r), number(c))
    value = builder.fadd(builder.fmul(poly, builder.fmul(r, r)), r)
    value = builder.fadd(value, number(1))
    whole = builder.add(builder.fptosi(n, f.WORDS), v.constant(f.WORDS, 127))
    power = builder.bitcast(builder.shl(whole, v.constant(f.WORDS, 23)), f.FLOATS)
    return builder.select(below, number(0), builder.fmul(value, power))


def _make_weights(has_params: bool) -> Any:
    @intrinsic
    def weights(typing, scores, at, peak, params, param_at, vectors, out):  # type: ignore[no-untyped-def]
        """scores[at …] become weight · scale; out[0] = Σ weight · offset, out[1] = Σ weight."""

        def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
            row = v.data(context, b, sig, args, 0, 1)
            first_param = v.data(context, b, sig, args, 3, 4)
            result = v.data_at(context, b, sig, args, 6)
            top = v.splat(b, args[2], 16)

            def body(i: Any, sums: list[Any]) -> list[Any]:
                here = v.at(b, row, b.mul(i, v.I64(64)))
                weight = _exp(b, b.fsub(v.load(b, f.FLOATS, here), top))
                mass = b.fadd(sums[1], weight)
                if not has_params:
                    v.store(b, weight, here)
                    return [sums[0], mass]
                scales, offsets = _params(b, f.FLOATS, v.at(b, first_param, b.mul(i, v.I64(64))))
                v.store(b, b.fmul(weight, scales), here)
                return [b.fadd(sums[0], b.fmul(weight, offsets)), mass]

            zero = v.constant(f.FLOATS, 0.0)
            for place, lanes in enumerate(v.loop(b, args[5], [zero, zero], body)):
                v.store(b, f.fold(b, lanes), v.at(b, result, 4 * place))
            return context.get_dummy_value()

        i = types.int64
        return types.void(scores, i, types.float32, params, i, i, out), generate

    return weights


def _make_context(kind: Kind) -> Any:
    @intrinsic
    def context_of(typing, weights, at, rows, row_at, chunks, tokens, out):  # type: ignore[no-untyped-def]
        """out += Σ over the page's tokens, one after the other, of weight · codes."""

        def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
            first_weight = v.data(context, b, sig, args, 0, 1)
            first_row = v.data(context, b, sig, args, 2, 3)
            result = v.data_at(context, b, sig, args, 6)
            row_bytes = b.mul(args[4], v.I64(kind.chunk_bytes))

            def column(chunk: Any, carried: list[Any]) -> list[Any]:
                top = v.at(b, first_row, b.mul(chunk, v.I64(kind.chunk_bytes)))

                def token(j: Any, sums: list[Any]) -> list[Any]:
                    weight = v.load(b, v.F32, v.at(b, first_weight, b.mul(j, v.I64(4))))
                    codes = kind.load(b, v.at(b, top, b.mul(j, row_bytes)))
                    factor = v.splat(b, weight, 16)
                    return [b.fadd(s, b.fmul(factor, c)) for s, c in zip(sums, codes, strict=True)]

                sums = v.loop(b, args[5], [v.constant(f.FLOATS, 0.0)] * kind.vectors, token)
                base = v.at(b, result, b.mul(chunk, v.I64(64 * kind.vectors)))
                for i, total in enumerate(sums):
                    place = v.at(b, base, 64 * i)
                    v.store(b, b.fadd(v.load(b, f.FLOATS, place), total), place)
                return carried

            v.loop(b, args[4], [], column)
            return context.get_dummy_value()

        i = types.int64
        return types.void(weights, i, rows, i, i, i, out), generate

    return context_of


scores_fp32, scores_fp16, scores_bf16, scores_int8, scores_int4, scores_int2 = map(_make_scores, KINDS.values())
channel_scores_int8, channel_scores_int4, channel_scores_int2 = (
    _make_scores(KINDS[name], per_channel=True) for name in ("int8", "int4", "int2")
)
context_fp32, context_fp16, context_bf16, context_int8, context_int4, context_int2 = map(_make_context, KINDS.values())
weights_exact, weights_scaled = _make_weights(False), _make_weights(True)

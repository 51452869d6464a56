"""Attention within one page of the cache, on LLVM's portable vectors, in the definition's order of sums.

For one query, on rows as they are stored:

    dots(kind, q, q_at, rows, at, chunks, groups, lanes)                  lanes of q · codes, 4 tokens in a group
    context(kind, weights, w_at, rows, at, chunks, groups, sums, s_at)    sums += Σ weight · codes, token by token

For two queries at once, on rows of floats, which `widen` makes:

    widen(kind, rows, at, chunks, out)
    dots_of_two(q, q_at, width, rows, at, vectors, groups, lanes, distance)
    context_of_two(weights, w_at, span, rows, at, vectors, groups, sums, s_at, width)

For both:

    fold_lanes(lanes, lanes_at, groups, out, out_at)                      dots from lanes, 8 tokens in a group

`kind` is a cache format's number in `KINDS`; a chunk is what the kind's loader takes at once: 16 bytes of codes, or 16
floats. A row's chunks follow each other, a page's rows too. Of a dot's 16 lanes, 8 are written: those of the first step
of folding. Code is made for the kinds alone that an array's elements can be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import types
from numba.extending import intrinsic as numba_intrinsic

from nearbank.kernels.cpu import floats as f
from nearbank.kernels.cpu import vectors as v

intrinsic: Any = numba_intrinsic  # Numba gives the first argument, which its types ask the caller for
TOKENS = 4  # tokens of one query taken together: two of AVX2's registers each leave room to unpack in
PAIR = 2  # tokens of two queries
STEP = 4  # tokens of two queries whose values are added at a time
HALF_BYTES = 32  # eight lanes
AHEAD = 2048  # bytes that rows are asked for before they are read


@dataclass(frozen=True)
class Kind:
    """How rows of one format load: their elements, bytes of a chunk, vectors of 16 floats in it, and the loader."""

    dtype: Any
    chunk_bytes: int
    vectors: int
    load: Any


KINDS = {
    "fp32": Kind(types.float32, 64, 1, f.one(f.load_fp32)),
    "fp16": Kind(types.uint16, 32, 1, f.one(f.load_fp16)),
    "bf16": Kind(types.uint16, 32, 1, f.one(f.load_bf16)),
    "int8": Kind(types.uint8, 16, 1, f.load_codes(8)),
    "int4": Kind(types.uint8, 16, 2, f.load_codes(4)),
    "int2": Kind(types.uint8, 16, 4, f.load_codes(2)),
}
KIND_NUMBERS = {name: number for number, name in enumerate(KINDS)}
FIRST_OF_CODES = KIND_NUMBERS["int8"]  # from here on kinds have a scale and an offset


def _for_kind(builder: Any, number: Any, dtype: Any, emit: Callable[[Kind], None]) -> None:
    """The code of the kind `number` that `dtype` stores."""
    able = [(KIND_NUMBERS[name], kind) for name, kind in KINDS.items() if kind.dtype == dtype]

    def choose(left: list[tuple[int, Kind]]) -> None:
        (here, kind), *others = left
        if not others:
            emit(kind)
            return
        with builder.if_else(builder.icmp_signed("==", number, number.type(here))) as (this, another):
            with this:
                emit(kind)
            with another:
                choose(others)

    choose(able)


def _ask(builder: Any, rows: Any, chunk: Any, nbytes: int) -> None:
    """Ask for the chunk's share of the rows after these: a hint, which never faults."""
    here = v.at(builder, rows, builder.mul(chunk, v.I64(nbytes)))
    for line in range(0, nbytes, v.CACHE_LINE):
        v.prefetch(builder, v.at(builder, here, AHEAD + line))


def _lanes(builder: Any, kind: Kind, q: Any, rows: Any, chunks: Any) -> list[Any]:
    """q · codes of neighbouring rows: the 16 lanes of each."""
    row_bytes = builder.mul(chunks, v.I64(kind.chunk_bytes))

    def body(chunk: Any, lanes: list[Any]) -> list[Any]:
        at_q = v.at(builder, q, builder.mul(chunk, v.I64(64 * kind.vectors)))
        queries = [v.load(builder, f.FLOATS, v.at(builder, at_q, 64 * i)) for i in range(kind.vectors)]
        _ask(builder, rows, chunk, kind.chunk_bytes * TOKENS)
        first = v.at(builder, rows, builder.mul(chunk, v.I64(kind.chunk_bytes)))
        for token in range(TOKENS):
            pointer = v.at(builder, first, builder.mul(row_bytes, v.I64(token)))
            for query, codes in zip(queries, kind.load(builder, pointer), strict=True):
                lanes[token] = builder.fadd(lanes[token], builder.fmul(query, codes))
        return lanes

    return v.loop(builder, chunks, [v.constant(f.FLOATS, 0.0)] * TOKENS, body)


def _store_lanes(builder: Any, lanes: list[Any], pointer: Any) -> None:
    for i, one in enumerate(lanes):
        v.store(builder, f.half_folded(builder, one), v.at(builder, pointer, HALF_BYTES * i))


@intrinsic
def dots(typing, kind, q, q_at, rows, at, chunks, groups, lanes):  # type: ignore[no-untyped-def]
    def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
        queries, result = v.data(context, b, sig, args, 1, 2), v.data_at(context, b, sig, args, 7)
        first_row = v.data(context, b, sig, args, 3, 4)

        def emit(kind: Kind) -> None:
            group_bytes = b.mul(args[5], v.I64(kind.chunk_bytes * TOKENS))

            def body(group: Any, carried: list[Any]) -> list[Any]:
                lanes = _lanes(b, kind, queries, v.at(b, first_row, b.mul(group, group_bytes)), args[5])
                _store_lanes(b, lanes, v.at(b, result, b.mul(group, v.I64(HALF_BYTES * TOKENS))))
                return carried

            v.loop(b, args[6], [], body)

        _for_kind(b, args[0], sig.args[3].dtype, emit)
        return context.get_dummy_value()

    i = types.int64
    return types.void(i, q, i, rows, i, i, i, lanes), generate


@intrinsic
def fold_lanes(typing, lanes, lanes_at, groups, out, out_at):  # type: ignore[no-untyped-def]
    def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
        first, result = v.data(context, b, sig, args, 0, 1), v.data(context, b, sig, args, 3, 4)

        def body(group: Any, carried: list[Any]) -> list[Any]:
            here = v.at(b, first, b.mul(group, v.I64(HALF_BYTES * 8)))
            rows = [v.load(b, v.vector(v.F32, 8), v.at(b, here, HALF_BYTES * i)) for i in range(8)]
            v.store(b, f.fold_eight(b, rows), v.at(b, result, b.mul(group, v.I64(32))))
            return carried

        v.loop(b, args[2], [], body)
        return context.get_dummy_value()

    i = types.int64
    return types.void(lanes, i, i, out, i), generate


def _factors(builder: Any, pointer: Any, count: int) -> list[Any]:
    """Neighbouring floats, each in all lanes of a vector."""
    return [v.splat(builder, v.load(builder, v.F32, v.at(builder, pointer, 4 * j)), 16) for j in range(count)]


def _add_chunk(builder: Any, kind: Kind, factors: list[Any], top: Any, row_bytes: Any, place: Any) -> None:
    """The sums at `place` of one chunk of neighbouring rows, each times its factor."""
    totals = [v.load(builder, f.FLOATS, v.at(builder, place, 64 * k)) for k in range(kind.vectors)]
    for j, factor in enumerate(factors):
        codes = kind.load(builder, v.at(builder, top, builder.mul(row_bytes, v.I64(j))))
        totals = [builder.fadd(s, builder.fmul(factor, c)) for s, c in zip(totals, codes, strict=True)]
    for k, total in enumerate(totals):
        v.store(builder, total, v.at(builder, place, 64 * k))


@intrinsic
def context(typing, kind, weights, w_at, rows, at, chunks, groups, sums, s_at):  # type: ignore[no-untyped-def]
    def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
        first_weight, first_row = v.data(context, b, sig, args, 1, 2), v.data(context, b, sig, args, 3, 4)
        result = v.data(context, b, sig, args, 7, 8)

        def emit(kind: Kind) -> None:
            row_bytes = b.mul(args[5], v.I64(kind.chunk_bytes))
            group_bytes = b.mul(row_bytes, v.I64(TOKENS))

            def group(i: Any, carried: list[Any]) -> list[Any]:
                factors = _factors(b, v.at(b, first_weight, b.mul(i, v.I64(4 * TOKENS))), TOKENS)
                rows = v.at(b, first_row, b.mul(i, group_bytes))

                def column(chunk: Any, nothing: list[Any]) -> list[Any]:
                    _ask(b, rows, chunk, kind.chunk_bytes * TOKENS)
                    top = v.at(b, rows, b.mul(chunk, v.I64(kind.chunk_bytes)))
                    place = v.at(b, result, b.mul(chunk, v.I64(64 * kind.vectors)))
                    _add_chunk(b, kind, factors, top, row_bytes, place)
                    return nothing

                v.loop(b, args[5], [], column)
                return carried

            v.loop(b, args[6], [], group)

        _for_kind(b, args[0], sig.args[3].dtype, emit)
        return context.get_dummy_value()

    i = types.int64
    return types.void(i, weights, i, rows, i, i, i, sums, i), generate


@intrinsic
def widen(typing, kind, rows, at, chunks, out):  # type: ignore[no-untyped-def]
    def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
        first, result = v.data(context, b, sig, args, 1, 2), v.data_at(context, b, sig, args, 4)

        def emit(kind: Kind) -> None:
            def body(chunk: Any, carried: list[Any]) -> list[Any]:
                here = v.at(b, first, b.mul(chunk, v.I64(kind.chunk_bytes)))
                place = v.at(b, result, b.mul(chunk, v.I64(64 * kind.vectors)))
                for i, floats in enumerate(kind.load(b, here)):
                    v.store(b, floats, v.at(b, place, 64 * i))
                return carried

            v.loop(b, args[3], [], body)

        _for_kind(b, args[0], sig.args[1].dtype, emit)
        return context.get_dummy_value()

    i = types.int64
    return types.void(i, rows, i, i, out), generate


@intrinsic
def dots_of_two(typing, q, q_at, width, rows, at, vectors, groups, lanes, distance):  # type: ignore[no-untyped-def]
    def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
        queries = _two(b, v.data(context, b, sig, args, 0, 1), args[2])
        results = _two(b, v.data_at(context, b, sig, args, 7), args[8])
        first_row = v.data(context, b, sig, args, 3, 4)
        row_bytes = b.mul(args[5], v.I64(64))

        def group(i: Any, carried: list[Any]) -> list[Any]:
            tops = [v.at(b, first_row, b.mul(b.add(b.mul(i, v.I64(PAIR)), v.I64(j)), row_bytes)) for j in range(PAIR)]

            def body(vector: Any, lanes: list[Any]) -> list[Any]:
                byte = b.mul(vector, v.I64(64))
                xs = [v.load(b, f.FLOATS, v.at(b, q, byte)) for q in queries]
                ks = [v.load(b, f.FLOATS, v.at(b, top, byte)) for top in tops]
                terms = [b.fmul(x, k) for x in xs for k in ks]
                return [b.fadd(lane, term) for lane, term in zip(lanes, terms, strict=True)]

            lanes = v.loop(b, args[5], [v.constant(f.FLOATS, 0.0)] * (2 * PAIR), body)
            for n, place in enumerate(results):
                here = v.at(b, place, b.mul(i, v.I64(HALF_BYTES * PAIR)))
                _store_lanes(b, lanes[n * PAIR : (n + 1) * PAIR], here)
            return carried

        v.loop(b, args[6], [], group)
        return context.get_dummy_value()

    i = types.int64
    return types.void(q, i, i, rows, i, i, i, lanes, i), generate


def _two(builder: Any, first: Any, distance: Any) -> list[Any]:
    """Pointers to floats of the first query and, `distance` floats on, of the second."""
    return [first, v.at(builder, first, builder.mul(distance, v.I64(4)))]


@intrinsic
def context_of_two(typing, weights, w_at, span, rows, at, vectors, groups, sums, s_at, width):  # type: ignore[no-untyped-def]
    def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
        weights = _two(b, v.data(context, b, sig, args, 0, 1), args[2])
        results = _two(b, v.data(context, b, sig, args, 7, 8), args[9])
        first_row, row_bytes = v.data(context, b, sig, args, 3, 4), b.mul(args[5], v.I64(64))

        def group(i: Any, carried: list[Any]) -> list[Any]:
            factors = [_factors(b, v.at(b, weight, b.mul(i, v.I64(4 * STEP))), STEP) for weight in weights]
            rows = v.at(b, first_row, b.mul(b.mul(i, v.I64(STEP)), row_bytes))

            def column(vector: Any, nothing: list[Any]) -> list[Any]:
                byte = b.mul(vector, v.I64(64))
                places = [v.at(b, place, byte) for place in results]
                totals = [v.load(b, f.FLOATS, place) for place in places]
                for j in range(STEP):
                    row = v.load(b, f.FLOATS, v.at(b, v.at(b, rows, b.mul(row_bytes, v.I64(j))), byte))
                    totals = [b.fadd(total, b.fmul(own[j], row)) for total, own in zip(totals, factors, strict=True)]
                for total, place in zip(totals, places, strict=True):
                    v.store(b, total, place)
                return nothing

            v.loop(b, args[5], [], column)
            return carried

        v.loop(b, args[6], [], group)
        return context.get_dummy_value()

    i = types.int64
    return types.void(weights, i, i, rows, i, i, i, sums, i, i), generate

"""One tile times 1, 4 or 8 activation rows by VPDPBUSD: codes u8, activations i8, sums int32.

One row: the values of a byte are masked, never shifted; value p then counts 2^(p·bits) times, and its
own sum is divided back at the end, exactly. More rows: shift and mask once, use for every row.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from nearbank.kernels.cpu import vectors as v

LANES = v.vector(v.I32, 16)
HALVES = 2  # 16 rows each
ZERO = v.constant(LANES, 0)


def _word_of_x(builder: Any, pointer: Any) -> Any:
    """Four neighbouring activations, in every lane."""
    return v.splat(builder, v.load(builder, v.I32, pointer), 16)


def _dot(builder: Any, total: Any, codes: Any, x: Any) -> Any:
    return v.call(builder, "llvm.x86.avx512.vpdpbusd.512", LANES, [total, codes, x])


def _halves(builder: Any, weights: Any, block: Any) -> list[Any]:
    first = v.at(builder, weights, builder.mul(block, v.I64(128)))
    return [v.load(builder, LANES, v.at(builder, first, 64 * half)) for half in range(HALVES)]


def _one_row(builder: Any, bits: int, weights: Any, x: Any, blocks: Any, out: Any) -> None:
    places = 8 // bits
    mask = (1 << bits) - 1

    def body(block: Any, totals: list[Any]) -> list[Any]:
        raw = _halves(builder, weights, block)
        here = v.at(builder, x, builder.mul(block, v.I64(4 * places)))
        for p in range(places):
            word = _word_of_x(builder, v.at(builder, here, 4 * p))
            keep = v.constant(LANES, v.repeated_byte(mask << (p * bits)))
            for half in range(HALVES):
                slot = p * HALVES + half
                totals[slot] = _dot(builder, totals[slot], builder.and_(raw[half], keep), word)
        return totals

    totals = v.loop(builder, blocks, [ZERO] * (HALVES * places), body)
    for half in range(HALVES):
        total = ZERO
        for p in range(places):
            counted = builder.ashr(totals[p * HALVES + half], v.constant(LANES, p * bits))
            total = builder.add(total, counted)
        v.store(builder, total, v.at(builder, out, 64 * half))


def _many_rows(
    builder: Any, rows: int, bits: int, weights: Any, x: Any, stride: Any, blocks: Any, out: Any
) -> None:
    places = 8 // bits
    keep = v.constant(LANES, v.repeated_byte((1 << bits) - 1))

    def body(block: Any, totals: list[Any]) -> list[Any]:
        raw = _halves(builder, weights, block)
        here = v.at(builder, x, builder.mul(block, v.I64(4 * places)))
        for p in range(places):
            codes = [builder.and_(builder.lshr(r, v.constant(LANES, p * bits)), keep) for r in raw]
            for m in range(rows):
                row = v.at(builder, here, builder.add(builder.mul(stride, v.I64(m)), v.I64(4 * p)))
                word = _word_of_x(builder, row)
                for half in range(HALVES):
                    slot = m * HALVES + half
                    totals[slot] = _dot(builder, totals[slot], codes[half], word)
        return totals

    totals = v.loop(builder, blocks, [ZERO] * (HALVES * rows), body)
    for slot, total in enumerate(totals):
        v.store(builder, total, v.at(builder, out, 64 * slot))


def _make(rows: int, bits: int) -> Any:
    @intrinsic
    def dot(typing, w, w_offset, x, x_offset, x_stride, blocks, out):  # type: ignore[no-untyped-def]
        def generate(context, builder, sig, args):  # type: ignore[no-untyped-def]
            weights = v.data(context, builder, sig, args, 0, 1)
            activations = v.data(context, builder, sig, args, 2, 3)
            array = context.make_array(sig.args[6])(context, builder, args[6])
            sums = builder.bitcast(array.data, v.BYTE_POINTER)
            if rows == 1:
                _one_row(builder, bits, weights, activations, args[5], sums)
            else:
                _many_rows(builder, rows, bits, weights, activations, args[4], args[5], sums)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(w, integer, x, integer, integer, integer, out), generate

    return dot


dot_1_1, dot_1_2, dot_1_4, dot_1_8 = (_make(1, bits) for bits in (1, 2, 4, 8))
dot_4_1, dot_4_2, dot_4_4, dot_4_8 = (_make(4, bits) for bits in (1, 2, 4, 8))
dot_8_1, dot_8_2, dot_8_4, dot_8_8 = (_make(8, bits) for bits in (1, 2, 4, 8))

"""One tile times 1, 2 or 4 activation rows by VPMADDUBSW: codes u8, activations i8, sums int16 then int32.

int16 sums are emptied into int32 before they can overflow. 8-bit codes would overflow at once: they are
split in even and odd bytes and go through VPMADDWD. One row is bound by instructions: two neighbouring places
of a byte share a shift, and the sums of the upper one are divided back, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from numba import types
from numba.extending import intrinsic

from nearbank.kernels.cpu import vectors as v

BYTES = v.vector(v.I8, 32)
WORDS = v.vector(v.I16, 16)
LANES = v.vector(v.I32, 8)
QUARTERS = 4  # 8 rows each


def _word_of_x(builder: Any, pointer: Any) -> Any:
    """Four neighbouring activations, in every lane."""
    return v.splat(builder, v.load(builder, v.I32, pointer), 8)


def _pairs(builder: Any, codes: Any, x: Any) -> Any:
    """u8 × i8, neighbours added → int16."""
    arguments = [builder.bitcast(codes, BYTES), builder.bitcast(x, BYTES)]
    return v.call(builder, "llvm.x86.avx2.pmadd.ub.sw", WORDS, arguments)


def _pairs_of_words(builder: Any, a: Any, b: Any) -> Any:
    """i16 × i16, neighbours added → int32."""
    return v.call(builder, "llvm.x86.avx2.pmadd.wd", LANES, [a, b])


def _widened(builder: Any, sums: Any) -> Any:
    """int16 sums, neighbours added → int32."""
    return _pairs_of_words(builder, sums, v.constant(WORDS, 1))


def _safe_blocks(bits: int) -> int:
    """Blocks whose int16 sums cannot overflow: each adds 8 / bits times at most 2 · code · 128."""
    return 32767 // (256 * ((1 << bits) - 1) * (8 // bits))


def _codes(builder: Any, raw: Any, bits: int, place: int) -> Any:
    shifted = builder.lshr(raw, v.constant(LANES, place * bits))
    return builder.and_(shifted, v.constant(LANES, v.repeated_byte((1 << bits) - 1)))


def _in_chunks(builder: Any, blocks: Any, most: int, slots: int, sums: Callable[[Any, Any], list[Any]]) -> list[Any]:
    """int32 totals of sums(first block, count) over all blocks, at most `most` at a time."""
    size = v.I64(most)
    chunks = builder.sdiv(builder.add(blocks, builder.sub(size, v.I64(1))), size)

    def body(i: Any, totals: list[Any]) -> list[Any]:
        first = builder.mul(i, size)
        left = builder.sub(blocks, first)
        count = builder.select(builder.icmp_signed("<", left, size), left, size)
        return [builder.add(total, more) for total, more in zip(totals, sums(first, count), strict=True)]

    return v.loop(builder, chunks, [v.constant(LANES, 0)] * slots, body)


def _narrow_sums(
    builder: Any, bits: int, quarters: Sequence[int], rows: list[Any], weights: Any, first: Any, count: Any
) -> list[Any]:
    """int16 sums of `count` blocks from block `first`: one vector per row and quarter."""
    places = 8 // bits

    def body(step: Any, totals: list[Any]) -> list[Any]:
        block = builder.add(first, step)
        raw = _raw(builder, weights, block, quarters)
        offset = builder.mul(block, v.I64(4 * places))
        for p in range(places):
            codes = [_codes(builder, r, bits, p) for r in raw]
            for m, row in enumerate(rows):
                word = _word_of_x(builder, v.at(builder, v.at(builder, row, offset), 4 * p))
                for i, code in enumerate(codes):
                    slot = m * len(codes) + i
                    totals[slot] = builder.add(totals[slot], _pairs(builder, code, word))
        return totals

    return v.loop(builder, count, [v.constant(WORDS, 0)] * (len(rows) * len(quarters)), body)


def _raw(builder: Any, weights: Any, block: Any, quarters: Sequence[int]) -> list[Any]:
    """Quarters of a block. The first one asks for lines further on; the others follow soon, from the same lines."""
    tile = v.at(builder, weights, builder.mul(block, v.I64(128)))
    if quarters[0] == 0:
        v.prefetch_block(builder, tile)
    return [v.load(builder, LANES, v.at(builder, tile, 32 * q)) for q in quarters]


def _classes(bits: int) -> int:
    """Neighbouring places that are masked where they lie and need no shift of their own: their sums stay apart."""
    return 2 if bits < 4 else 1


def _one_row_step(builder: Any, bits: int, weights: Any, x: Any, block: Any, totals: list[Any]) -> list[Any]:
    """One block times one row: int16 sums per class and quarter; class c counts 2^(bits · c) times."""
    places, classes = 8 // bits, _classes(bits)
    tile = v.at(builder, weights, builder.mul(block, v.I64(128)))
    v.prefetch_block(builder, tile)
    raw = [v.load(builder, LANES, v.at(builder, tile, 32 * q)) for q in range(QUARTERS)]
    offset = builder.mul(block, v.I64(4 * places))
    for p in range(places):
        kept = p % classes
        if p and not kept:
            raw = [builder.lshr(r, v.constant(LANES, bits * classes)) for r in raw]
        word = _word_of_x(builder, v.at(builder, v.at(builder, x, offset), 4 * p))
        mask = v.constant(LANES, v.repeated_byte(((1 << bits) - 1) << (bits * kept)))
        for q in range(QUARTERS):
            slot = kept * QUARTERS + q
            totals[slot] = builder.add(totals[slot], _pairs(builder, builder.and_(raw[q], mask), word))
    return totals


def _one_row_chunk(bits: int) -> int:
    """Blocks whose int16 sums cannot overflow, the last class counting 2^(bits · (classes − 1)) times."""
    classes = _classes(bits)
    most = 256 * ((1 << bits) - 1) * (8 // bits // classes) << (bits * (classes - 1))
    return 32767 // most


def _sums_of_one_row(builder: Any, bits: int, weights: Any, x: Any, first: Any, count: Any) -> list[Any]:
    """int32 sums of `count` blocks, for codes of at most 4 bits, by fewer shifts than several rows need."""

    def step(i: Any, sums: list[Any]) -> list[Any]:
        return _one_row_step(builder, bits, weights, x, builder.add(first, i), sums)

    narrow = v.loop(builder, count, [v.constant(WORDS, 0)] * (_classes(bits) * QUARTERS), step)
    found = []
    for q in range(QUARTERS):
        total = narrow[q]
        for more in narrow[QUARTERS + q :: QUARTERS]:
            total = builder.add(total, builder.ashr(more, v.constant(WORDS, bits)))
        found.append(_widened(builder, total))
    return found


def _sums(
    builder: Any, bits: int, quarters: Sequence[int], rows: list[Any], weights: Any, first: Any, count: Any
) -> list[Any]:
    """int32 sums of `count` blocks, for codes of at most 4 bits."""
    narrow = _narrow_sums(builder, bits, quarters, rows, weights, first, count)
    return [_widened(builder, total) for total in narrow]


def _sums_of_bytes(
    builder: Any, quarters: Sequence[int], rows: list[Any], weights: Any, first: Any, count: Any
) -> list[Any]:
    """int32 sums of `count` blocks, for 8-bit codes."""
    eight = v.constant(WORDS, 8)

    def body(i: Any, totals: list[Any]) -> list[Any]:
        block = builder.add(first, i)
        raw = [builder.bitcast(part, WORDS) for part in _raw(builder, weights, block, quarters)]
        even = [builder.and_(r, v.constant(WORDS, 0xFF)) for r in raw]
        odd = [builder.lshr(r, eight) for r in raw]
        for m, row in enumerate(rows):
            pointer = v.at(builder, row, builder.mul(block, v.I64(4)))
            word = builder.bitcast(_word_of_x(builder, pointer), WORDS)
            x_even, x_odd = builder.ashr(builder.shl(word, eight), eight), builder.ashr(word, eight)
            for i in range(len(quarters)):
                slot = m * len(quarters) + i
                both = builder.add(_pairs_of_words(builder, even[i], x_even), _pairs_of_words(builder, odd[i], x_odd))
                totals[slot] = builder.add(totals[slot], both)
        return totals

    return v.loop(builder, count, [v.constant(LANES, 0)] * (len(rows) * len(quarters)), body)


def _parts(rows: int, bits: int) -> list[list[int]]:
    """Quarters of the tile that are computed at once: as many as leave registers for codes and products."""
    return [[0, 1, 2, 3]] if rows == 1 or (rows == 2 and bits < 8) else [[0, 1], [2, 3]]


def _most_blocks(rows: int, bits: int) -> int:
    """Blocks computed before the next quarters have their turn: they must not be far apart, or memory waits."""
    if bits == 8:
        return 16
    return _one_row_chunk(bits) if rows == 1 else _safe_blocks(bits)


def make(rows: int, bits: int) -> Any:
    """The intrinsic dot(w, w_offset, x, x_offset, x_stride, blocks, out) for so many rows and bits."""
    parts = _parts(rows, bits)
    places = [(m, q) for quarters in parts for m in range(rows) for q in quarters]

    @intrinsic
    def dot(typing, w, w_offset, x, x_offset, x_stride, blocks, out):  # type: ignore[no-untyped-def]
        def generate(context, builder, sig, args):  # type: ignore[no-untyped-def]
            weights = v.data(context, builder, sig, args, 0, 1)
            x0 = v.data(context, builder, sig, args, 2, 3)
            sums = v.data_at(context, builder, sig, args, 6)
            pointers = [v.at(builder, x0, builder.mul(args[4], v.I64(m))) for m in range(rows)]

            def of(first: Any, count: Any) -> list[Any]:
                if bits == 8:
                    found = [_sums_of_bytes(builder, quarters, pointers, weights, first, count) for quarters in parts]
                elif rows == 1:
                    found = [_sums_of_one_row(builder, bits, weights, pointers[0], first, count)]
                else:
                    found = [_sums(builder, bits, quarters, pointers, weights, first, count) for quarters in parts]
                return list(chain(*found))

            totals = _in_chunks(builder, args[5], _most_blocks(rows, bits), len(places), of)
            for total, (m, q) in zip(totals, places, strict=True):
                v.store(builder, total, v.at(builder, sums, 128 * m + 32 * q))
            return context.get_dummy_value()

        integer = types.int64
        return types.void(w, integer, x, integer, integer, integer, out), generate

    return dot

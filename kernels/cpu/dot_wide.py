"""One tile times 1, 4 or 8 activation rows with sums in int32 all along: no overflow to watch.

Three ways to multiply, one loop:

- `VNNI`: VPDPBUSD, 64 products of u8 × i8 per instruction.
- `NEON`: SDOT, 16 products of i8 × i8 per instruction. Codes of 8 bits are moved down by 128 to be signed, and
  128 · Σ x is added by the same instruction.
- `PORTABLE`: LLVM's own vectors, no instruction named. Products of int16 whose neighbours are added are
  what every vector unit has (VPMADDWD and VPDPWSSD on x86), and LLVM finds it. Bytes are split in even and
  odd ones, and the activations come as int16 in the order 0, 2, 1, 3 of every four.

One row: value p of a byte is masked where it lies, counts 2^(its place) times, and goes to the sum of its
class; at the end each class is divided back, exactly. More rows: shift and mask once, use for every row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import types
from numba.extending import intrinsic

from nearbank.kernels.cpu import vectors as v

LANES = v.vector(v.I32, 16)
WORDS = v.vector(v.I16, 32)
LONG = v.vector(v.I32, 32)
QUARTER, QUARTER_BYTES = v.vector(v.I32, 4), v.vector(v.I8, 16)
HALVES = 2  # 16 rows each
ZERO = v.constant(LANES, 0)
EVEN, ODD = (v.ir.Constant(LANES, list(range(first, 32, 2))) for first in (0, 1))


@dataclass(frozen=True)
class Way:
    """How to multiply. `classes`: sums kept apart for one row; 0 = as many as a byte has values.

    `parts` splits 64 bytes of codes in vectors, each with its own activations of `x_bytes` in all;
    `dot(builder, sum, codes, x)` adds their products.
    """

    classes: int
    x_bytes: int
    parts: Callable[[Any, Any], list[Any]]
    dot: Callable[[Any, Any, Any, Any], Any]


def _bytes_as_they_are(builder: Any, raw: Any) -> list[Any]:
    return [raw]


def _even_and_odd_bytes(builder: Any, raw: Any) -> list[Any]:
    return [raw, builder.lshr(raw, v.constant(LANES, 8))]


def _dot_vnni(builder: Any, total: Any, codes: Any, x: Any) -> Any:
    return v.call(builder, "llvm.x86.avx512.vpdpbusd.512", LANES, [total, codes, x])


def _sdot(builder: Any, total: Any, codes: Any, x: Any) -> Any:
    """Signed bytes, four neighbours added to each lane: quarter vectors, joined again."""
    quarters = [_quarter(builder, part, i) for i in range(4) for part in (total, codes, x)]
    done = []
    for sums, a, b in zip(quarters[::3], quarters[1::3], quarters[2::3], strict=True):
        arguments = [sums, builder.bitcast(a, QUARTER_BYTES), builder.bitcast(b, QUARTER_BYTES)]
        done.append(v.call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", QUARTER, arguments))
    halves = [_joined(builder, a, b) for a, b in (done[:2], done[2:])]
    return _joined(builder, *halves)


def _quarter(builder: Any, whole: Any, index: int) -> Any:
    lanes = v.ir.Constant(v.vector(v.I32, 4), list(range(4 * index, 4 * index + 4)))
    return builder.shuffle_vector(whole, whole, lanes)


def _joined(builder: Any, a: Any, b: Any) -> Any:
    count = 2 * a.type.count
    return builder.shuffle_vector(a, b, v.ir.Constant(v.vector(v.I32, count), list(range(count))))


def _sdot_of_bytes(builder: Any, total: Any, codes: Any, x: Any) -> Any:
    signed = builder.xor(codes, v.constant(LANES, v.repeated_byte(128)))
    half = v.constant(LANES, v.repeated_byte(64))
    return _sdot(builder, _sdot(builder, _sdot(builder, total, signed, x), half, x), half, x)


def _dot_portable(builder: Any, total: Any, codes: Any, x: Any) -> Any:
    return add_products(builder, total, builder.and_(codes, v.constant(LANES, 0x00FF00FF)), x)


def add_products(builder: Any, total: Any, words: Any, x: Any) -> Any:
    """i16 × i16, neighbours added to each of 16 lanes."""
    a, b = (builder.sext(builder.bitcast(part, WORDS), LONG) for part in (words, x))
    product = builder.mul(a, b)
    even, odd = (builder.shuffle_vector(product, product, pick) for pick in (EVEN, ODD))
    return builder.add(total, builder.add(even, odd))


VNNI = Way(0, 4, _bytes_as_they_are, _dot_vnni)
_SMALL = Way(2, 4, _bytes_as_they_are, _sdot)
NEON: dict[int, Way] = {  # bits → way; values must stay positive where they lie, so the highest class is below bit 7
    1: _SMALL,
    2: _SMALL,
    4: Way(1, 4, _bytes_as_they_are, _sdot),
    8: Way(1, 4, _bytes_as_they_are, _sdot_of_bytes),
}
PORTABLE = Way(2, 8, _even_and_odd_bytes, _dot_portable)


def _x_parts(builder: Any, way: Way, pointer: Any) -> list[Any]:
    """Four neighbouring activations, one vector for each part of the codes, alike in every lane."""
    words = [v.load(builder, v.I32, v.at(builder, pointer, byte)) for byte in range(0, way.x_bytes, 4)]
    return [v.splat(builder, word, 16) for word in words]


def _code_parts(builder: Any, way: Way, raw: Any, bits: int, shift: int, place: int) -> list[Any]:
    """Values that lie `shift` + `place` bits up, shifted down by `shift`: they count 2^place times."""
    mask = v.constant(LANES, v.repeated_byte(((1 << bits) - 1) << place))
    parts = way.parts(builder, raw)
    return [builder.and_(builder.lshr(part, v.constant(LANES, shift)), mask) for part in parts]


def _loop(builder: Any, way: Way, bits: int, classes: int, rows: list[Any], weights: Any, blocks: Any) -> list[Any]:
    """The sums after all blocks: per row, per class, per half tile."""
    places = 8 // bits

    def body(block: Any, totals: list[Any]) -> list[Any]:
        tile = v.at(builder, weights, builder.mul(block, v.I64(128)))
        if len(rows) == 1:
            v.prefetch_block(builder, tile)
        raw = [v.load(builder, LANES, v.at(builder, tile, 64 * half)) for half in range(HALVES)]
        offset = builder.mul(block, v.I64(places * way.x_bytes))
        for p in range(places):
            kept = p % classes
            codes = [_code_parts(builder, way, r, bits, bits * (p - kept), bits * kept) for r in raw]
            for m, row in enumerate(rows):
                x = _x_parts(builder, way, v.at(builder, v.at(builder, row, offset), p * way.x_bytes))
                for half in range(HALVES):
                    slot = (m * classes + kept) * HALVES + half
                    for part, word in zip(codes[half], x, strict=True):
                        totals[slot] = way.dot(builder, totals[slot], part, word)
        return totals

    return v.loop(builder, blocks, [ZERO] * (len(rows) * classes * HALVES), body)


def _emit(builder: Any, way: Way, bits: int, rows: list[Any], weights: Any, blocks: Any, out: Any) -> None:
    places = 8 // bits
    classes = min(places, way.classes or places) if len(rows) == 1 else 1
    totals = _loop(builder, way, bits, classes, rows, weights, blocks)
    for m in range(len(rows)):
        for half in range(HALVES):
            total = ZERO
            for c in range(classes):
                counted = totals[(m * classes + c) * HALVES + half]
                total = builder.add(total, builder.ashr(counted, v.constant(LANES, bits * c)))
            v.store(builder, total, v.at(builder, out, 64 * (m * HALVES + half)))


def make_neon(rows: int, bits: int) -> Any:
    """`make` for NEON."""
    return make(NEON[bits], rows, bits)


def make(way: Way, rows: int, bits: int) -> Any:
    """The intrinsic dot(w, w_offset, x, x_offset, x_stride, blocks, out) for so many rows and bits."""

    @intrinsic
    def dot(typing, w, w_offset, x, x_offset, x_stride, blocks, out):  # type: ignore[no-untyped-def]
        def generate(context, builder, sig, args):  # type: ignore[no-untyped-def]
            weights = v.data(context, builder, sig, args, 0, 1)
            activations = v.data(context, builder, sig, args, 2, 3)
            stride = builder.mul(args[4], v.I64(way.x_bytes // 4))
            pointers = [v.at(builder, activations, builder.mul(stride, v.I64(m))) for m in range(rows)]
            sums = v.data_at(context, builder, sig, args, 6)
            _emit(builder, way, bits, pointers, weights, args[5], sums)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(w, integer, x, integer, integer, integer, out), generate

    return dot

"""Sums of float products in the fixed order, on LLVM's portable vectors of 16.

    lane_dot(kind, x, x_offset, rows, row_offset, vectors)

x float32, rows as stored: kind 0 float32 (as uint32), 1 fp16, 2 bf16 (as uint16).
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic, overload

from nearbank.kernels.cpu import vectors as v
from nearbank.kernels.cpu.paths import cpu_features

FLOATS = v.vector(v.F32, 16)
WORDS = v.vector(v.I32, 16)
SIXTEEN_BITS = v.vector(v.I16, 16)
TWO_TO_112 = float(2**112)  # the difference of the exponents' biases of fp32 and fp16


def load_fp32(builder: Any, pointer: Any) -> Any:
    """16 float32."""
    return v.load(builder, FLOATS, pointer)


def load_bf16(builder: Any, pointer: Any) -> Any:
    """16 bfloat16 → float32: their bits, moved up."""
    wide = builder.zext(v.load(builder, SIXTEEN_BITS, pointer), WORDS)
    return builder.bitcast(builder.shl(wide, v.constant(WORDS, 16)), FLOATS)


def load_fp16(builder: Any, pointer: Any) -> Any:
    """16 finite fp16 → float32, by the CPU's own conversion where it has one that LLVM names."""
    if "f16c" in cpu_features():
        return builder.fpext(v.load(builder, v.vector(v.ir.HalfType(), 16), pointer), FLOATS)
    return _widened(builder, builder.zext(v.load(builder, SIXTEEN_BITS, pointer), WORDS))


def _widened(builder: Any, wide: Any) -> Any:
    """The float32 of finite fp16 bits: shift exponent and fraction up, then correct the bias, exactly."""
    magnitude = builder.shl(builder.and_(wide, v.constant(WORDS, 0x7FFF)), v.constant(WORDS, 13))
    sign = builder.shl(builder.and_(wide, v.constant(WORDS, 0x8000)), v.constant(WORDS, 16))
    value = builder.fmul(builder.bitcast(magnitude, FLOATS), v.constant(FLOATS, TWO_TO_112))
    return builder.bitcast(builder.or_(builder.bitcast(value, WORDS), sign), FLOATS)


def fold(builder: Any, lanes: Any, join: Any = None) -> Any:
    """Lane l + lane l + 8, then + 4, + 2, + 1: one float. `join` may be another operation than the sum."""
    width = 16
    while width > 1:
        width //= 2
        picks = [v.ir.Constant(v.vector(v.I32, width), [i + s for i in range(width)]) for s in (0, width)]
        low, high = (builder.shuffle_vector(lanes, lanes, pick) for pick in picks)
        lanes = (join or builder.fadd)(low, high)
    return builder.extract_element(lanes, v.I32(0))


def _make(element_bytes: int, load: Any) -> Any:
    @intrinsic
    def dot(typing, x, x_offset, rows, row_offset, vectors):  # type: ignore[no-untyped-def]
        def generate(context, builder, sig, args):  # type: ignore[no-untyped-def]
            xs = v.data(context, builder, sig, args, 0, 1)
            ws = v.data(context, builder, sig, args, 2, 3)

            def body(i: Any, lanes: list[Any]) -> list[Any]:
                a = v.load(builder, FLOATS, v.at(builder, xs, builder.mul(i, v.I64(64))))
                b = load(builder, v.at(builder, ws, builder.mul(i, v.I64(16 * element_bytes))))
                return [builder.fadd(lanes[0], builder.fmul(a, b))]

            return fold(builder, v.loop(builder, args[4], [v.constant(FLOATS, 0.0)], body)[0])

        return types.float32(x, types.int64, rows, types.int64, types.int64), generate

    return dot


_dot_fp32, _dot_fp16, _dot_bf16 = _make(4, load_fp32), _make(2, load_fp16), _make(2, load_bf16)


def lane_dot(kind: int, x: Any, x_offset: int, rows: Any, row_offset: int, vectors: int) -> float:
    """Compiled only: see the module's docstring."""
    raise NotImplementedError("lane_dot runs inside compiled functions")


@overload(lane_dot)
def _lane_dot(kind, x, x_offset, rows, row_offset, vectors):  # type: ignore[no-untyped-def]
    if rows.dtype == types.uint32:
        return lambda kind, x, x_offset, rows, row_offset, vectors: _dot_fp32(x, x_offset, rows, row_offset, vectors)

    def halves(kind, x, x_offset, rows, row_offset, vectors):  # type: ignore[no-untyped-def]
        if kind == 1:
            return _dot_fp16(x, x_offset, rows, row_offset, vectors)
        return _dot_bf16(x, x_offset, rows, row_offset, vectors)

    return halves


def load_codes(bits: int) -> Any:
    """Loader of 16 bytes of packed codes as 8 / bits vectors of 16 floats."""

    def load(builder: Any, pointer: Any) -> list[Any]:
        wide = builder.zext(v.load(builder, v.vector(v.I8, 16), pointer), WORDS)
        parts = [builder.lshr(wide, v.constant(WORDS, first)) if first else wide for first in range(0, 8, bits)]
        mask = v.constant(WORDS, (1 << bits) - 1)
        codes = [*(builder.and_(part, mask) for part in parts[:-1]), parts[-1]]  # nothing is above the last
        return [builder.sitofp(part, FLOATS) for part in codes]

    return load


def one(load: Any) -> Any:
    """A loader of a single vector as a list."""
    return lambda builder, pointer: [load(builder, pointer)]


def half_folded(builder: Any, lanes: Any) -> Any:
    """The first step of `fold`: lane l + lane l + 8."""
    picks = [v.ir.Constant(v.vector(v.I32, 8), list(range(first, first + 8))) for first in (0, 8)]
    return builder.fadd(*(builder.shuffle_vector(lanes, lanes, pick) for pick in picks))


# Which elements of two vectors of 8 the further steps add, so that few shuffles are needed and eight sums end in order:
# halves of the first beside halves of the second, then pairs of both, then single ones.
HALVES = [0, 1, 2, 3, 12, 13, 14, 15], [4, 5, 6, 7, 8, 9, 10, 11]
PAIRS = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
SINGLES = [0, 2, 8, 10, 4, 6, 12, 14], [1, 3, 9, 11, 5, 7, 13, 15]


def fold_eight(builder: Any, rows: list[Any]) -> Any:
    """The further steps of `fold` for eight vectors of 8 at once: 8 floats."""
    kind = v.vector(v.I32, 8)

    def added(a: Any, b: Any, picks: tuple[list[int], list[int]]) -> Any:
        return builder.fadd(*(builder.shuffle_vector(a, b, v.ir.Constant(kind, pick)) for pick in picks))

    halves = [added(rows[i], rows[i + 4], HALVES) for i in range(4)]
    first, second = (added(halves[i], halves[i + 1], PAIRS) for i in (0, 2))
    return added(first, second, SINGLES)

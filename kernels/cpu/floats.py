"""Sums of float products in the fixed order, on LLVM's portable vectors of 16.

    lane_dot(kind, x, x_offset, rows, row_offset, vectors)

x float32, rows as stored: kind 0 float32 (as uint32), 1 fp16, 2 bf16 (as uint16).
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic, overload

from nearbank.kernels.cpu import vectors as v

FLOATS = v.vector(v.F32, 16)
WORDS = v.vector(v.I32, 16)
HALVES = v.vector(v.I16, 16)
TWO_TO_112 = float(2**112)  # the difference of the exponents' biases of fp32 and fp16


def load_fp32(builder: Any, pointer: Any) -> Any:
    """16 float32."""
    return v.load(builder, FLOATS, pointer)


def load_bf16(builder: Any, pointer: Any) -> Any:
    """16 bfloat16 → float32: their bits, moved up."""
    wide = builder.zext(v.load(builder, HALVES, pointer), WORDS)
    return builder.bitcast(builder.shl(wide, v.constant(WORDS, 16)), FLOATS)


def load_fp16(builder: Any, pointer: Any) -> Any:
    """16 finite fp16 → float32: shift exponent and fraction up, then correct the bias, exactly."""
    wide = builder.zext(v.load(builder, HALVES, pointer), WORDS)
    magnitude = builder.shl(builder.and_(wide, v.constant(WORDS, 0x7FFF)), v.constant(WORDS, 13))
    sign = builder.shl(builder.and_(wide, v.constant(WORDS, 0x8000)), v.constant(WORDS, 16))
    value = builder.fmul(builder.bitcast(magnitude, FLOATS), v.constant(FLOATS, TWO_TO_112))
    return builder.bitcast(builder.or_(builder.bitcast(value, WORDS), sign), FLOATS)


def fold(builder: Any, lanes: Any) -> Any:
    """Lane l + lane l + 8, then + 4, + 2, + 1: one float."""
    width = 16
    while width > 1:
        width //= 2
        picks = [v.ir.Constant(v.vector(v.I32, width), [i + s for i in range(width)]) for s in (0, width)]
        low, high = (builder.shuffle_vector(lanes, lanes, pick) for pick in picks)
        lanes = builder.fadd(low, high)
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
        raw = v.load(builder, v.vector(v.I8, 16), pointer)
        mask = v.constant(raw.type, (1 << bits) - 1)
        shifted = [builder.lshr(raw, v.constant(raw.type, p * bits)) for p in range(8 // bits)]
        codes = [builder.and_(part, mask) for part in shifted]
        return [builder.uitofp(builder.zext(part, WORDS), FLOATS) for part in codes]

    return load


def one(load: Any) -> Any:
    """A loader of a single vector as a list."""
    return lambda builder, pointer: [load(builder, pointer)]


def fold_many(builder: Any, rows: list[Any]) -> Any:
    """`fold` of 8 vectors at once: 8 floats. Halves of two vectors are added in one instruction."""
    width = 8
    while len(rows) > 1:
        picks = []
        for start in (0, width):
            block = [i + start for i in range(16) if i % (2 * width) < width]
            picks.append(v.ir.Constant(WORDS, block + [i + 16 for i in block]))
        pairs = zip(rows[::2], rows[1::2], strict=True)
        rows = [builder.fadd(*(builder.shuffle_vector(a, b, pick) for pick in picks)) for a, b in pairs]
        width //= 2
    picks = [v.ir.Constant(v.vector(v.I32, 8), list(range(first, 16, 2))) for first in (0, 1)]
    return builder.fadd(*(builder.shuffle_vector(rows[0], rows[0], pick) for pick in picks))

"""From dots to weights, on LLVM's portable vectors of 16 tokens, in the definition's order of sums.

finish_exact, finish_scaled, finish_shifted(out, at, params, param_at, shift, scale, vectors)    dots become scores
highest(scores, at, vectors)
weights_exact, weights_scaled(scores, at, peak, params, param_at, vectors, sums, sums_at)    scores become weights
lane_sum(values, at, vectors)
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic as numba_intrinsic

from nearbank.kernels.cpu import floats as f
from nearbank.kernels.cpu import vectors as v
from nearbank.kernels.reference.exponential import LEAST, LN2_HIGH, LN2_LOW, LOG2_E, ROUND, TAYLOR

intrinsic: Any = numba_intrinsic  # Numba gives the first argument, which its types ask the caller for


def _params(builder: Any, pointer: Any) -> tuple[Any, Any]:
    """(scales, offsets) of 16 neighbouring tokens: bfloat16 pairs, the scale in the lower half."""
    both = v.load(builder, f.WORDS, pointer)
    scales = builder.shl(both, v.constant(f.WORDS, 16))
    offsets = builder.and_(both, v.constant(f.WORDS, -65536))
    return builder.bitcast(scales, f.FLOATS), builder.bitcast(offsets, f.FLOATS)


def _make_finish(of_tokens: bool, shifted: bool) -> Any:
    @intrinsic
    def finish(typing, out, at, params, param_at, shift, scale, vectors):  # type: ignore[no-untyped-def]
        """Scale and offset of each token; or the shift alone, where keys are scaled per channel; or neither."""

        def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
            result, first_param = v.data(context, b, sig, args, 0, 1), v.data(context, b, sig, args, 2, 3)
            shift, factor = v.splat(b, args[4], 16), v.splat(b, args[5], 16)

            def body(i: Any, carried: list[Any]) -> list[Any]:
                here = v.at(b, result, b.mul(i, v.I64(64)))
                score = v.load(b, f.FLOATS, here)
                if of_tokens:
                    scales, offsets = _params(b, v.at(b, first_param, b.mul(i, v.I64(64))))
                    score = b.fadd(b.fmul(score, scales), b.fmul(offsets, shift))
                elif shifted:
                    score = b.fadd(score, shift)
                v.store(b, b.fmul(score, factor), here)
                return carried

            v.loop(b, args[6], [], body)
            return context.get_dummy_value()

        i, real = types.int64, types.float32
        return types.void(out, i, params, i, real, real, i), generate

    return finish


@intrinsic
def highest(typing, scores, at, vectors):  # type: ignore[no-untyped-def]
    """The highest of 16 · vectors scores, none of them NaN."""

    def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
        first = v.data(context, b, sig, args, 0, 1)

        def greater(one: Any, other: Any) -> Any:
            return b.select(b.fcmp_ordered(">", one, other), one, other)

        def body(i: Any, most: list[Any]) -> list[Any]:
            return [greater(most[0], v.load(b, f.FLOATS, v.at(b, first, b.mul(i, v.I64(64)))))]

        return f.fold(b, v.loop(b, args[2], [v.constant(f.FLOATS, float("-inf"))], body)[0], greater)

    return types.float32(scores, types.int64, types.int64), generate


@intrinsic
def lane_sum(typing, values, at, vectors):  # type: ignore[no-untyped-def]
    """The sum of 16 · vectors values in the fixed order."""

    def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
        first = v.data(context, b, sig, args, 0, 1)

        def body(i: Any, lanes: list[Any]) -> list[Any]:
            return [b.fadd(lanes[0], v.load(b, f.FLOATS, v.at(b, first, b.mul(i, v.I64(64)))))]

        return f.fold(b, v.loop(b, args[2], [v.constant(f.FLOATS, 0.0)], body)[0])

    return types.float32(values, types.int64, types.int64), generate


@intrinsic
def from_bf16(typing, bits):  # type: ignore[no-untyped-def]
    """The float32 of a bfloat16's bits."""

    def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
        return b.bitcast(b.shl(b.zext(args[0], v.I32), v.I32(16)), v.F32)

    return types.float32(types.uint16), generate


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
    def weights(typing, scores, at, peak, params, param_at, vectors, sums, sums_at):  # type: ignore[no-untyped-def]
        """scores[at …] become weight · scale; sums[sums_at] += Σ weight · offset, the next += Σ weight."""

        def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
            row = v.data(context, b, sig, args, 0, 1)
            first_param = v.data(context, b, sig, args, 3, 4)
            result = v.data(context, b, sig, args, 6, 7)
            top = v.splat(b, args[2], 16)

            def body(i: Any, sums: list[Any]) -> list[Any]:
                here = v.at(b, row, b.mul(i, v.I64(64)))
                weight = _exp(b, b.fsub(v.load(b, f.FLOATS, here), top))
                mass = b.fadd(sums[1], weight)
                if not has_params:
                    v.store(b, weight, here)
                    return [sums[0], mass]
                scales, offsets = _params(b, v.at(b, first_param, b.mul(i, v.I64(64))))
                v.store(b, b.fmul(weight, scales), here)
                return [b.fadd(sums[0], b.fmul(weight, offsets)), mass]

            zero = v.constant(f.FLOATS, 0.0)
            for place, lanes in enumerate(v.loop(b, args[5], [zero, zero], body)):
                here = v.at(b, result, 4 * place)
                v.store(b, b.fadd(v.load(b, v.F32, here), f.fold(b, lanes)), here)
            return context.get_dummy_value()

        i = types.int64
        return types.void(scores, i, types.float32, params, i, i, sums, i), generate

    return weights


finish_exact, finish_scaled, finish_shifted = (
    _make_finish(of_tokens, shifted) for of_tokens, shifted in ((False, False), (True, False), (False, True))
)
weights_exact, weights_scaled = _make_weights(False), _make_weights(True)

"""Exact integer sums become floats: the end of every group's product, for 32 output rows and a few rows of x."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from nearbank.kernels.cpu import vectors as v
from nearbank.kernels.cpu.tiles import ROWS

FLOATS, LANES, CODES = v.vector(v.F32, 8), v.vector(v.I32, 8), v.vector(v.I8, 8)


def _typed_add_scaled(  # type: ignore[no-untyped-def]
    typing, sums, step, zeros, scales, place, x_sums, x_scales, first, groups, group, rows, part
):
    """part [rows, 32] += float32(step · sums − zeros · x_sums) · (x_scales · scales), in this order.

    sums int32 [rows, 32]; zeros uint8 and scales float32 are the 32 from `place` on; x_sums int32 [M, groups] and
    x_scales float32 [M], of which the rows from `first` on are meant.
    """

    def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
        total, out = v.data_at(context, b, sig, args, 0), v.data_at(context, b, sig, args, 11)
        x_sums, x_scales = v.data_at(context, b, sig, args, 5), v.data_at(context, b, sig, args, 6)
        zero, scale = v.data(context, b, sig, args, 2, 4), v.data(context, b, sig, args, 3, 4)
        times = v.splat(b, b.trunc(args[1], v.I32), 8)
        parts = range(ROWS // 8)
        zeros = [b.zext(v.load(b, CODES, v.at(b, zero, 8 * i)), LANES) for i in parts]
        scales = [v.load(b, FLOATS, v.at(b, scale, 32 * i)) for i in parts]

        def row(r: Any, nothing: list[Any]) -> list[Any]:
            m = b.add(args[7], r)
            element = b.add(b.mul(m, args[8]), args[9])
            x_sum = v.splat(b, v.load(b, v.I32, v.at(b, x_sums, b.mul(element, v.I64(4)))), 8)
            x_scale = v.splat(b, v.load(b, v.F32, v.at(b, x_scales, b.mul(m, v.I64(4)))), 8)
            here, there = (v.at(b, p, b.mul(r, v.I64(4 * ROWS))) for p in (total, out))
            for i in parts:
                found = b.mul(v.load(b, LANES, v.at(b, here, 32 * i)), times)
                exact = b.sitofp(b.sub(found, b.mul(zeros[i], x_sum)), FLOATS)
                value = b.fmul(exact, b.fmul(x_scale, scales[i]))
                to = v.at(b, there, 32 * i)
                v.store(b, b.fadd(v.load(b, FLOATS, to), value), to)
            return nothing

        v.loop(b, args[10], [], row)
        return context.get_dummy_value()

    i = types.int64
    return types.void(sums, i, zeros, scales, i, x_sums, x_scales, i, i, i, i, part), generate


add_scaled: Any = intrinsic(_typed_add_scaled)

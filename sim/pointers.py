"""Bare pointers and bits for compiled code."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic


def _make_pointer(typing_context, array, index):  # type: ignore[no-untyped-def]
    """A bare pointer to `array[index]`, or to the first element of that row.

    Unlike an array it is one register, is not counted, and takes no negative index: it is what the hot code works on.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        held = context.make_array(signature.args[0])(context, builder, arguments[0])
        start = builder.ptrtoint(held.data, arguments[1].type)
        distance = builder.mul(arguments[1], builder.extract_value(held.strides, 0))
        return builder.inttoptr(builder.add(start, distance), held.data.type)

    return types.CPointer(array.dtype)(array, types.intp), generate  # type: ignore[no-untyped-call]


def _make_popcount(typing_context, bits):  # type: ignore[no-untyped-def]
    """How many bits are set."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ctpop(arguments[0])

    return types.int64(types.int64), generate


def _make_lowest_bit(typing_context, bits):  # type: ignore[no-untyped-def]
    """The place of the lowest bit set; 64 if none is."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.cttz(arguments[0], context.get_constant(types.boolean, False))

    return types.int64(types.int64), generate


pointer: Any = intrinsic(_make_pointer)
popcount: Any = intrinsic(_make_popcount)
lowest_bit: Any = intrinsic(_make_lowest_bit)

"""Codes of a tile unpacked to bytes or to int16 words, a span of columns at a time, for all rows that need them."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from nearbank.compiled import compiled_part
from nearbank.kernels.cpu import vectors as v
from nearbank.kernels.cpu.tiles import BLOCK_BYTES

MEMBERS = 4  # activation rows at once; times half a tile, their sums leave registers for codes and products
SPAN_BYTES = 16 * 1024  # half of a first-level cache
HALF = v.vector(v.I32, 16)


def _make(shifts: list[int], mask: int) -> Any:
    """For every block, one block of output per shift: (codes >> shift) & mask."""

    @intrinsic
    def unpack(typing, codes, at, blocks, out):  # type: ignore[no-untyped-def]
        """`blocks` blocks of codes from byte `at` on."""

        def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
            first, to = v.data(context, b, sig, args, 0, 1), v.data_at(context, b, sig, args, 3)

            def body(block: Any, nothing: list[Any]) -> list[Any]:
                here = v.at(b, first, b.mul(block, v.I64(BLOCK_BYTES)))
                there = v.at(b, to, b.mul(block, v.I64(BLOCK_BYTES * len(shifts))))
                v.prefetch_block(b, here)
                for half in (0, BLOCK_BYTES // 2):
                    raw = v.load(b, HALF, v.at(b, here, half))
                    for i, shift in enumerate(shifts):
                        value = b.and_(b.lshr(raw, v.constant(HALF, shift)), v.constant(HALF, mask))
                        v.store(b, value, v.at(b, there, BLOCK_BYTES * i + half))
                return nothing

            v.loop(b, args[2], [], body)
            return context.get_dummy_value()

        i = types.int64
        return types.void(codes, i, i, out), generate

    return unpack


def _to_bytes(bits: int) -> Any:
    """Bytes [places, 32, 4]."""
    return _make([bits * place for place in range(8 // bits)], v.repeated_byte((1 << bits) - 1))


def _to_words(bits: int) -> Any:
    """Words [places, 2, 32]: two columns of one output row, the even or the odd bytes of a lane."""
    shifts = [bits * place + 8 * odd for place in range(8 // bits) for odd in range(2)]
    return _make(shifts, ((1 << bits) - 1) * 0x00010001)


def _choice(form: Any) -> Any:
    u1, u2, u4, u8 = map(form, (1, 2, 4, 8))

    @compiled_part
    def unpack(bits, codes, at, blocks, out):  # type: ignore[no-untyped-def]
        if bits == 1:
            u1(codes, at, blocks, out)
        elif bits == 2:
            u2(codes, at, blocks, out)
        elif bits == 4:
            u4(codes, at, blocks, out)
        else:
            u8(codes, at, blocks, out)

    return unpack


unpack_bytes, unpack_words = _choice(_to_bytes), _choice(_to_words)

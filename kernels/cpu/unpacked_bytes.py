"""Many activation rows times unpacked codes of one byte each, by VPMADDUBSW: u8 × i8, neighbours added to int16.

A span of codes is unpacked once, to bytes that stay in the nearest cache, and used for all rows: the loop over rows
neither shifts nor masks. int16 sums are emptied into int32 before they can overflow. 8-bit codes would overflow at
once: they are for `unpacked_words`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from nearbank.compiled import compiled_part
from nearbank.kernels.cpu import vectors as v
from nearbank.kernels.cpu.tiles import ROWS
from nearbank.kernels.cpu.unpack import MEMBERS, unpack_bytes

SPAN = 320  # columns unpacked at once
QUARTERS = ((0, 1), (2, 3))  # of a tile, 8 output rows each: what is computed at once
STEP_BYTES = 4 * ROWS  # 4 columns of a tile
LANES, WORDS, BYTES = v.vector(v.I32, 8), v.vector(v.I16, 16), v.vector(v.I8, 32)


def panels_of_bytes(x: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """int8 [M, K] → int8 [M / MEMBERS, K / 4, MEMBERS, 4], zeros in the rows that are not there."""
    words = x.view(np.int32)
    out = np.zeros((-(-len(x) // MEMBERS), words.shape[1], MEMBERS), np.int32)
    for member in range(min(MEMBERS, len(x))):
        part = words[member::MEMBERS]
        out[: len(part), :, member] = part
    return out.view(np.int8)


def _products(b: Any, codes: Any, x: Any, step: Any, quarters: Sequence[int]) -> list[Any]:
    """int16 products of 4 columns, neighbours added: one vector per row and quarter."""
    here = v.at(b, codes, b.mul(step, v.I64(STEP_BYTES)))
    words = v.at(b, x, b.mul(step, v.I64(4 * MEMBERS)))
    parts = [v.load(b, BYTES, v.at(b, here, 32 * q)) for q in quarters]
    found = []
    for m in range(MEMBERS):
        word = b.bitcast(v.splat(b, v.load(b, v.I32, v.at(b, words, 4 * m)), 8), BYTES)
        found += [v.call(b, "llvm.x86.avx2.pmadd.ub.sw", WORDS, [part, word]) for part in parts]
    return found


def _narrow_sums(b: Any, codes: Any, x: Any, quarters: Sequence[int], count: Any) -> list[Any]:
    """int16 sums of `count` times 4 columns, the first of which need not be added to anything.

    They pass through an empty piece of assembly, so that LLVM does not know where they come from: it would else add
    products to each other first and run out of registers. For the same reason a single step is the loop's whole body.
    """
    same = v.ir.FunctionType(WORDS, [WORDS])
    start = [b.asm(same, "", "=x,0", [products], False) for products in _products(b, codes, x, v.I64(0), quarters)]

    def body(i: Any, totals: list[Any]) -> list[Any]:
        more = _products(b, codes, x, b.add(i, v.I64(1)), quarters)
        return [b.add(total, products) for total, products in zip(totals, more, strict=True)]

    return v.loop(b, b.sub(count, v.I64(1)), start, body)


def _add_half(b: Any, codes: Any, x: Any, steps: Any, safe: Any, sums: Any, quarters: Sequence[int]) -> None:
    """sums [MEMBERS, 32] += products of `steps` · 4 columns for some quarters of the tile."""
    places = [v.at(b, sums, 4 * ROWS * m + 32 * q) for m in range(MEMBERS) for q in quarters]

    def body(i: Any, nothing: list[Any]) -> list[Any]:
        done = b.mul(i, safe)
        left = b.sub(steps, done)
        count = b.select(b.icmp_signed("<", left, safe), left, safe)
        here = v.at(b, codes, b.mul(done, v.I64(STEP_BYTES)))
        words = v.at(b, x, b.mul(done, v.I64(4 * MEMBERS)))
        for place, total in zip(places, _narrow_sums(b, here, words, quarters, count), strict=True):
            wide = v.call(b, "llvm.x86.avx2.pmadd.wd", LANES, [total, v.constant(WORDS, 1)])
            v.store(b, b.add(v.load(b, LANES, place), wide), place)
        return nothing

    v.loop(b, b.sdiv(b.add(steps, b.sub(safe, v.I64(1))), safe), [], body)


def _typed_add_dots(typing, codes, x, x_at, steps, safe, sums, sums_at):  # type: ignore[no-untyped-def]
    """sums [MEMBERS, 32] += the products of `steps` · 4 columns; int16 sums hold `safe` steps."""

    def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
        first, x0 = v.data_at(context, b, sig, args, 0), v.data(context, b, sig, args, 1, 2)
        out = v.data(context, b, sig, args, 5, 6)
        for quarters in QUARTERS:
            _add_half(b, first, x0, args[3], args[4], out, quarters)
        return context.get_dummy_value()

    i = types.int64
    return types.void(codes, x, i, i, i, sums, i), generate


_add_dots: Any = intrinsic(_typed_add_dots)


@compiled_part
def sums_of_bytes(bits, codes, at, blocks, x, x_at, panel, rows, unpacked, sums):  # type: ignore[no-untyped-def]
    """sums [rows · 32] = Σ code · x over the blocks of one group."""
    sums[: (rows + MEMBERS - 1) // MEMBERS * MEMBERS * ROWS] = 0
    safe = 32767 // (2 * 128 * ((1 << bits) - 1))
    most = SPAN * bits // 32
    for start in range(0, blocks, most):
        count = min(most, blocks - start)
        unpack_bytes(bits, codes, (at + start) * 4 * ROWS, count, unpacked)
        for m in range(0, rows, MEMBERS):
            here = x_at + m // MEMBERS * panel + start * 32 // bits * MEMBERS
            _add_dots(unpacked, x, here, count * 8 // bits, safe, sums, m * ROWS)

"""Many activation rows times a tile on any CPU: codes are unpacked to int16 once, a few columns at a time.

No instruction is named. Products of int16 whose neighbours are added are what every vector unit has (VPMADDWD and
VPDPWSSD on x86), and LLVM finds it. A word holds two columns of one output row: the even or the odd bytes of a lane,
so that activations come as int16 in the order 0, 2, 1, 3 of every four.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from nearbank.compiled import compiled, compiled_part
from nearbank.kernels.cpu import vectors as v
from nearbank.kernels.cpu.dot_wide import add_products
from nearbank.kernels.cpu.tiles import ROWS
from nearbank.kernels.cpu.unpack import MEMBERS, SPAN_BYTES, unpack_words

SPAN = SPAN_BYTES // (2 * ROWS)  # columns unpacked at once
HALF = v.vector(v.I32, 16)


def panels_of_words(x: npt.NDArray[np.int8]) -> npt.NDArray[np.int16]:
    """int8 [M, K] → int16 [M / MEMBERS, K / 2, MEMBERS, 2], every four columns in the order 0, 2, 1, 3."""
    out = np.zeros((-(-len(x) // MEMBERS), x.shape[1] // 2, MEMBERS, 2), np.int16)
    _fill_panels(x, out)
    return out


@compiled(nogil=True)
def _fill_panels(x, out):  # type: ignore[no-untyped-def]
    for m in range(x.shape[0]):
        panel, member = out[m // MEMBERS], m % MEMBERS
        for k in range(0, x.shape[1], 4):
            for odd in range(2):
                panel[k // 2 + odd, member, 0] = np.int16(x[m, k + odd])
                panel[k // 2 + odd, member, 1] = np.int16(x[m, k + 2 + odd])


def _typed_add_dots(typing, words, x, x_offset, pairs, sums, sums_offset):  # type: ignore[no-untyped-def]
    """sums [MEMBERS, 32] += the products of `pairs` · 2 columns."""

    def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
        first = v.data_at(context, b, sig, args, 0)
        x0 = v.data(context, b, sig, args, 1, 2)
        out = v.data(context, b, sig, args, 4, 5)
        for half in range(2):
            places = [v.at(b, out, 4 * ROWS * m + 64 * half) for m in range(MEMBERS)]

            def body(pair: Any, totals: list[Any], half: int = half) -> list[Any]:
                codes = v.load(b, HALF, v.at(b, first, b.add(b.mul(pair, v.I64(4 * ROWS)), v.I64(64 * half))))
                here = v.at(b, x0, b.mul(pair, v.I64(4 * MEMBERS)))
                x = [v.splat(b, v.load(b, v.I32, v.at(b, here, 4 * m)), 16) for m in range(MEMBERS)]
                return [add_products(b, total, codes, word) for total, word in zip(totals, x, strict=True)]

            before = [v.load(b, HALF, place) for place in places]
            for place, total in zip(places, v.loop(b, args[3], before, body), strict=True):
                v.store(b, total, place)
        return context.get_dummy_value()

    i = types.int64
    return types.void(words, x, i, i, sums, i), generate


_add_dots: Any = intrinsic(_typed_add_dots)


@compiled_part
def sums_of_words(bits, codes, at, blocks, x, x_offset, panel, rows, words, sums):  # type: ignore[no-untyped-def]
    """sums [rows · 32] = Σ code · x over the blocks of one group; the words of a span stay in the nearest cache."""
    sums[: (rows + MEMBERS - 1) // MEMBERS * MEMBERS * ROWS] = 0
    step = SPAN * bits // 32
    columns = 32 // bits
    for start in range(0, blocks, step):
        count = min(step, blocks - start)
        unpack_words(bits, codes, (at + start) * 4 * ROWS, count, words)
        for m in range(0, rows, MEMBERS):
            here = x_offset + m // MEMBERS * panel + start * columns * MEMBERS
            _add_dots(words, x, here, count * columns // 2, sums, m * ROWS)

"""Products of 1-bit and 2-bit activations with weights of as many bits, by AND and population count.

A 32-bit lane holds 32 / bits codes of one output row. Activations are unsigned, packed in the same places.

    1 bit:   Σ c·u = |c & u|
    2 bits:  Σ c·u = |c & u| + 2·|c & swapped u| + 3·|c & upper bits of u|,

where |·| counts set bits and `swapped` exchanges the two bits of every value: the first term pairs equal
places (weights 1 and 4, both counted once), the second unequal ones, the third what the first left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from nearbank.compiled import compiled
from nearbank.kernels.cpu import vectors as v
from nearbank.kernels.cpu.tiles import ROWS, Tiles

LANES = v.vector(v.I32, 16)
HALVES = 2
TIMES = {1: (1,), 2: (1, 2, 3)}
Words = npt.NDArray[np.uint32]


def words_of(codes: npt.NDArray[np.uint8], bits: int) -> Words:
    """Unsigned codes [M, K], K a multiple of 32 → words [M, blocks, 1 or 3], as the weights lie in a lane."""
    places = 8 // bits
    blocks = codes.reshape(len(codes), -1, places, 4)  # value p of byte b is column 4·p + b
    word = np.zeros(blocks.shape[:2], np.uint32)
    for p in range(places):
        for b in range(4):
            word |= blocks[:, :, p, b].astype(np.uint32) << np.uint32(8 * b + bits * p)
    if bits == 1:
        return np.ascontiguousarray(word[:, :, None])
    low, high = word & np.uint32(0x55555555), word & np.uint32(0xAAAAAAAA)
    swapped = (low << np.uint32(1)) | (high >> np.uint32(1))
    return np.ascontiguousarray(np.stack([word, swapped, high], axis=2))


def sums_of_codes(tiles: Tiles) -> npt.NDArray[np.int32]:
    """Σ codes of each row and group [tiles, groups, 32], for 1-bit and 2-bit codes."""
    words = tiles.codes.view(np.uint32).reshape(-1, tiles.groups, tiles.blocks, ROWS)
    parts = [words] if tiles.bits == 1 else [words & np.uint32(0x55555555)] + 2 * [words & np.uint32(0xAAAAAAAA)]
    counted = [np.bitwise_count(part).sum(axis=2, dtype=np.int32) for part in parts]
    return np.asarray(sum(counted), dtype=np.int32)


def _make(bits: int) -> Any:
    times = TIMES[bits]

    @intrinsic
    def dot(typing, w, w_offset, x, x_offset, blocks, out):  # type: ignore[no-untyped-def]
        """out[0 … 32] = Σ code · u of one tile."""

        def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
            weights = v.data(context, b, sig, args, 0, 1)
            words = v.data(context, b, sig, args, 2, 3)

            def body(block: Any, totals: list[Any]) -> list[Any]:
                tile = v.at(b, weights, b.mul(block, v.I64(128)))
                raw = [v.load(b, LANES, v.at(b, tile, 64 * half)) for half in range(HALVES)]
                here = v.at(b, words, b.mul(block, v.I64(4 * len(times))))
                for term in range(len(times)):
                    word = v.splat(b, v.load(b, v.I32, v.at(b, here, 4 * term)), 16)
                    for half in range(HALVES):
                        counted = v.call(b, "llvm.ctpop.v16i32", LANES, [b.and_(raw[half], word)])
                        slot = term * HALVES + half
                        totals[slot] = b.add(totals[slot], counted)
                return totals

            zero = v.constant(LANES, 0)
            totals = v.loop(b, args[4], [zero] * (HALVES * len(times)), body)
            sums = v.data_at(context, b, sig, args, 5)
            for half in range(HALVES):
                total = zero
                for term, factor in enumerate(times):
                    counted = totals[term * HALVES + half]
                    total = b.add(total, b.mul(counted, v.constant(LANES, factor)))
                v.store(b, total, v.at(b, sums, 64 * half))
            return context.get_dummy_value()

        i = types.int64
        return types.void(w, i, x, i, i, out), generate

    return dot


_dot_1, _dot_2 = _make(1), _make(2)


@compiled(nogil=True)
def multiply_bits(  # type: ignore[no-untyped-def]
    bits, first, last, x, x_scales, x_sums, x_step, x_low, codes, code_sums, scales, zeros, step, blocks, y
):
    """Tiles first … last of y; activation = x_step · u + x_low, x [M, groups · blocks, terms] the words of u."""
    groups, terms = scales.shape[1], x.shape[2]
    flat = x.reshape(-1)
    sums, total = np.empty(32, np.int32), np.empty(32, np.float32)
    for t in range(first, last):
        width = min(32, y.shape[1] - 32 * t)
        for m in range(x.shape[0]):
            total[:] = 0
            for g in range(groups):
                w_offset = (t * groups + g) * blocks * 128
                x_offset = (m * groups + g) * blocks * terms
                if bits == 1:
                    _dot_1(codes, w_offset, flat, x_offset, blocks, sums)
                else:
                    _dot_2(codes, w_offset, flat, x_offset, blocks, sums)
                for i in range(32):
                    dot = np.int32(x_step * sums[i] + x_low * code_sums[t, g, i])
                    exact = np.int32(step * dot - np.int32(zeros[t, g, i]) * x_sums[m, g])
                    total[i] += np.float32(exact) * (x_scales[m] * scales[t, g, i])
            for i in range(width):
                y[m, 32 * t + i] = total[i]

"""One tile times one activation row in plain loops: int16 on 16 lanes, which any compiler turns to vectors.

Layout "planes": a 16-bit word holds the codes of an even row (low byte) and an odd row (high byte) for the
same column, so both multiply the same activation. int16 sums are emptied into int32 before they overflow.
"""

from __future__ import annotations

import numpy as np
from numba import njit

LANES = 16


@njit(inline="always")
def _empty(even, odd, out, o):  # type: ignore[no-untyped-def]
    for i in range(LANES):
        out[o + 2 * i] += np.int32(even[i])
        out[o + 2 * i + 1] += np.int32(odd[i])
    even[:] = 0
    odd[:] = 0


@njit(nogil=True)
def dot_1(w, w_offset, x, x_offset, blocks, out, o, even, odd):  # type: ignore[no-untyped-def]
    words = w[w_offset : w_offset + 128 * blocks].view(np.uint16)
    for block in range(blocks):
        for b in range(4):
            v = words[64 * block + 16 * b : 64 * block + 16 * b + 16]
            k = x_offset + 32 * block + b
            x0, x1, x2, x3 = np.int16(x[k]), np.int16(x[k + 4]), np.int16(x[k + 8]), np.int16(x[k + 12])
            x4, x5, x6, x7 = (
                np.int16(x[k + 16]),
                np.int16(x[k + 20]),
                np.int16(x[k + 24]),
                np.int16(x[k + 28]),
            )
            for i in range(LANES):
                c = v[i]
                low = np.int16(np.int16(c & 1) * x0) + np.int16(np.int16((c >> 1) & 1) * x1)
                low += np.int16(np.int16((c >> 2) & 1) * x2) + np.int16(np.int16((c >> 3) & 1) * x3)
                low += np.int16(np.int16((c >> 4) & 1) * x4) + np.int16(np.int16((c >> 5) & 1) * x5)
                low += np.int16(np.int16((c >> 6) & 1) * x6) + np.int16(np.int16((c >> 7) & 1) * x7)
                even[i] = np.int16(even[i] + low)
                high = np.int16(np.int16((c >> 8) & 1) * x0) + np.int16(np.int16((c >> 9) & 1) * x1)
                high += np.int16(np.int16((c >> 10) & 1) * x2) + np.int16(np.int16((c >> 11) & 1) * x3)
                high += np.int16(np.int16((c >> 12) & 1) * x4) + np.int16(np.int16((c >> 13) & 1) * x5)
                high += np.int16(np.int16((c >> 14) & 1) * x6) + np.int16(np.int16((c >> 15) & 1) * x7)
                odd[i] = np.int16(odd[i] + high)
        if block % 7 == 6:  # 7 blocks · 32 columns · 128 < 2¹⁵
            _empty(even, odd, out, o)
    _empty(even, odd, out, o)


@njit(nogil=True)
def dot_2(w, w_offset, x, x_offset, blocks, out, o, even, odd):  # type: ignore[no-untyped-def]
    words = w[w_offset : w_offset + 128 * blocks].view(np.uint16)
    for block in range(blocks):
        for b in range(4):
            v = words[64 * block + 16 * b : 64 * block + 16 * b + 16]
            k = x_offset + 16 * block + b
            x0, x1, x2, x3 = np.int16(x[k]), np.int16(x[k + 4]), np.int16(x[k + 8]), np.int16(x[k + 12])
            for i in range(LANES):
                c = v[i]
                low = np.int16(np.int16(c & 3) * x0) + np.int16(np.int16((c >> 2) & 3) * x1)
                low += np.int16(np.int16((c >> 4) & 3) * x2) + np.int16(np.int16((c >> 6) & 3) * x3)
                even[i] = np.int16(even[i] + low)
                high = np.int16(np.int16((c >> 8) & 3) * x0) + np.int16(np.int16((c >> 10) & 3) * x1)
                high += np.int16(np.int16((c >> 12) & 3) * x2) + np.int16(np.int16((c >> 14) & 3) * x3)
                odd[i] = np.int16(odd[i] + high)
        if block % 5 == 4:  # 5 blocks · 16 columns · 3 · 128 < 2¹⁵
            _empty(even, odd, out, o)
    _empty(even, odd, out, o)


@njit(nogil=True)
def dot_4(w, w_offset, x, x_offset, blocks, out, o, even, odd):  # type: ignore[no-untyped-def]
    words = w[w_offset : w_offset + 128 * blocks].view(np.uint16)
    for block in range(blocks):
        for b in range(4):
            v = words[64 * block + 16 * b : 64 * block + 16 * b + 16]
            k = x_offset + 8 * block + b
            x0, x1 = np.int16(x[k]), np.int16(x[k + 4])
            for i in range(LANES):
                c = v[i]
                low = np.int16(np.int16(c & 15) * x0) + np.int16(np.int16((c >> 4) & 15) * x1)
                even[i] = np.int16(even[i] + low)
                high = np.int16(np.int16((c >> 8) & 15) * x0) + np.int16(np.int16((c >> 12) & 15) * x1)
                odd[i] = np.int16(odd[i] + high)
        if block % 2 == 1:  # 2 blocks · 8 columns · 15 · 128 < 2¹⁵
            _empty(even, odd, out, o)
    _empty(even, odd, out, o)


@njit(nogil=True)
def dot_8(w, w_offset, x, x_offset, blocks, out, o, even, odd):  # type: ignore[no-untyped-def]
    for step in range(4 * blocks):  # 4 columns in a block, one plane of 32 rows each
        plane = w[w_offset + 32 * step : w_offset + 32 * step + 32]
        xk = np.int32(x[x_offset + step])
        for i in range(32):
            out[o + i] += np.int32(np.int32(plane[i]) * xk)

"""One tile times a few activation rows, by whichever path the first argument names.

    dot(path, rows, w, w_offset, x, x_offset, x_stride, blocks, out)

writes int32 sums Σ code · x of 32 output rows for `rows` (1, 4 or 8) activation rows to out [rows · 32].
x is int8, or for the portable path int16 in the order of `pairs`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numba import njit
from numba.extending import overload

from nearbank.kernels.cpu import dot_avx2, dot_wide
from nearbank.kernels.cpu.paths import Avx2, Avx512Vnni, Portable


def dot(
    path: Any, rows: int, w: Any, w_offset: int, x: Any, x_offset: int, x_stride: int, blocks: int, out: Any
) -> None:
    """Compiled only: see the module's docstring."""
    raise NotImplementedError("dot runs inside compiled functions")


@njit(cache=True, nogil=True)
def pairs(x, out):  # type: ignore[no-untyped-def]
    """int8 [M, K] → int16 [M, K], every four in the order 0, 2, 1, 3."""
    for m in range(x.shape[0]):
        for k in range(0, x.shape[1], 4):
            out[m, k], out[m, k + 1] = np.int16(x[m, k]), np.int16(x[m, k + 2])
            out[m, k + 2], out[m, k + 3] = np.int16(x[m, k + 1]), np.int16(x[m, k + 3])


def _choice(make: Callable[[int, int], Any]) -> Callable[..., Any]:
    """The choice among twelve compiled forms: 1, 4 or 8 rows, 1, 2, 4 or 8 bits."""
    d11, d12, d14, d18 = (make(1, bits) for bits in (1, 2, 4, 8))
    d41, d42, d44, d48 = (make(4, bits) for bits in (1, 2, 4, 8))
    d81, d82, d84, d88 = (make(8, bits) for bits in (1, 2, 4, 8))

    def run(path, rows, w, w_offset, x, x_offset, x_stride, blocks, out):  # type: ignore[no-untyped-def]
        form = (rows, path.bits)
        if form == (1, 2):
            d12(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif form == (1, 1):
            d11(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif form == (1, 4):
            d14(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif form == (1, 8):
            d18(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif form == (4, 2):
            d42(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif form == (4, 1):
            d41(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif form == (4, 4):
            d44(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif form == (4, 8):
            d48(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif form == (8, 2):
            d82(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif form == (8, 1):
            d81(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif form == (8, 4):
            d84(w, w_offset, x, x_offset, x_stride, blocks, out)
        else:
            d88(w, w_offset, x, x_offset, x_stride, blocks, out)

    return run


IMPLEMENTATIONS: dict[type, Callable[..., Any]] = {
    Avx512Vnni: _choice(partial(dot_wide.make, dot_wide.VNNI)),
    Avx2: _choice(dot_avx2.make),
    Portable: _choice(partial(dot_wide.make, dot_wide.PORTABLE)),
}


@overload(dot)
def _dot(path, rows, w, w_offset, x, x_offset, x_stride, blocks, out):  # type: ignore[no-untyped-def]
    return IMPLEMENTATIONS[path.instance_class]

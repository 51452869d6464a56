"""One tile times a few activation rows, by whichever path the first argument names.

    dot(path, rows, w, w_offset, x, x_offset, x_stride, blocks, out)
    dot_one(path, w, w_offset, x, x_offset, blocks, out)

write int32 sums Σ code · x of 32 output rows for `rows` (as of ROWS_AT_ONCE), or for one, activation row to out
[rows · 32].
x is int8, or for the portable path, which takes one row only, int16 in the order of `words_in_pairs`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.extending import overload

from nearbank.kernels.cpu import dot_avx2, dot_wide
from nearbank.kernels.cpu.paths import Avx2, Avx512Vnni, NeonDot, Portable


def dot(
    path: Any, rows: int, w: Any, w_offset: int, x: Any, x_offset: int, x_stride: int, blocks: int, out: Any
) -> None:
    """Compiled only: see the module's docstring."""
    raise NotImplementedError("dot runs inside compiled functions")


def words_in_pairs(x: npt.NDArray[np.int8]) -> npt.NDArray[np.int16]:
    """int8 [M, K] → int16 [M, K], every four in the order 0, 2, 1, 3."""
    return np.ascontiguousarray(x.reshape(len(x), -1, 2, 2).swapaxes(2, 3).reshape(x.shape).astype(np.int16))


def dot_one(path: Any, w: Any, w_offset: int, x: Any, x_offset: int, blocks: int, out: Any) -> None:
    """Compiled only: see the module's docstring."""
    raise NotImplementedError("dot_one runs inside compiled functions")


def _choice_of_one(make: Callable[[int, int], Any]) -> Callable[..., Any]:
    """The choice among four compiled forms for one row."""
    d1, d2, d4, d8 = (make(1, bits) for bits in (1, 2, 4, 8))

    def run(path, w, w_offset, x, x_offset, blocks, out):  # type: ignore[no-untyped-def]
        if path.bits == 2:
            d2(w, w_offset, x, x_offset, 0, blocks, out)
        elif path.bits == 1:
            d1(w, w_offset, x, x_offset, 0, blocks, out)
        elif path.bits == 4:
            d4(w, w_offset, x, x_offset, 0, blocks, out)
        else:
            d8(w, w_offset, x, x_offset, 0, blocks, out)

    return run


def _choice(make: Callable[[int, int], Any], most: int) -> Callable[..., Any]:
    """The choice among eight compiled forms: `most` rows or half as many, 1, 2, 4 or 8 bits."""
    half = most // 2
    h1, h2, h4, h8 = (make(half, bits) for bits in (1, 2, 4, 8))
    m1, m2, m4, m8 = (make(most, bits) for bits in (1, 2, 4, 8))

    def run(path, rows, w, w_offset, x, x_offset, x_stride, blocks, out):  # type: ignore[no-untyped-def]
        form = (rows, path.bits)
        if form == (half, 2):
            h2(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif form == (half, 1):
            h1(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif form == (half, 4):
            h4(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif form == (half, 8):
            h8(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif form == (most, 2):
            m2(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif form == (most, 1):
            m1(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif form == (most, 4):
            m4(w, w_offset, x, x_offset, x_stride, blocks, out)
        else:
            m8(w, w_offset, x, x_offset, x_stride, blocks, out)

    return run


MAKERS: dict[type, Callable[[int, int], Any]] = {
    Avx512Vnni: partial(dot_wide.make, dot_wide.VNNI),
    Avx2: dot_avx2.make,
    NeonDot: dot_wide.make_neon,
    Portable: partial(dot_wide.make, dot_wide.PORTABLE),
}
# Activation rows whose sums fit the registers; half as many are compiled too.
# Portable products of several rows are all `unpacked`.
ROWS_AT_ONCE: dict[type, int] = {Avx512Vnni: 8, NeonDot: 8, Avx2: 4}
MANY = {path: _choice(MAKERS[path], most) for path, most in ROWS_AT_ONCE.items()}
ONE = {path: _choice_of_one(make) for path, make in MAKERS.items()}


@overload(dot)
def _dot(path, rows, w, w_offset, x, x_offset, x_stride, blocks, out):  # type: ignore[no-untyped-def]
    return MANY[path.instance_class]


@overload(dot_one)
def _dot_one(path, w, w_offset, x, x_offset, blocks, out):  # type: ignore[no-untyped-def]
    return ONE[path.instance_class]

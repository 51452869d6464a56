"""One tile times a few activation rows, by whichever path the first argument names.

    dot(path, rows, w, w_offset, x, x_offset, x_stride, blocks, out)
    dot_one(path, w, w_offset, x, x_offset, blocks, out)

write int32 sums Σ code · x of 32 output rows for `rows` (4 or 8), or for one, activation row to out [rows · 32].
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


def _choice(make: Callable[[int, int], Any]) -> Callable[..., Any]:
    """The choice among eight compiled forms: 4 or 8 rows, 1, 2, 4 or 8 bits."""
    d41, d42, d44, d48 = (make(4, bits) for bits in (1, 2, 4, 8))
    d81, d82, d84, d88 = (make(8, bits) for bits in (1, 2, 4, 8))

    def run(path, rows, w, w_offset, x, x_offset, x_stride, blocks, out):  # type: ignore[no-untyped-def]
        form = (rows, path.bits)
        if form == (4, 2):
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


MAKERS: dict[type, Callable[[int, int], Any]] = {
    Avx512Vnni: partial(dot_wide.make, dot_wide.VNNI),
    Avx2: dot_avx2.make,
    NeonDot: dot_wide.make_neon,
    Portable: partial(dot_wide.make, dot_wide.PORTABLE),
}
MANY = {path: _choice(make) for path, make in MAKERS.items() if path is not Portable}
ONE = {path: _choice_of_one(make) for path, make in MAKERS.items()}


@overload(dot)
def _dot(path, rows, w, w_offset, x, x_offset, x_stride, blocks, out):  # type: ignore[no-untyped-def]
    return MANY[path.instance_class]


@overload(dot_one)
def _dot_one(path, w, w_offset, x, x_offset, blocks, out):  # type: ignore[no-untyped-def]
    return ONE[path.instance_class]

"""One tile times a few activation rows, by whichever path the first argument names.

    dot(path, rows, w, w_offset, x, x_offset, x_stride, blocks, out, even, odd)

writes int32 sums Σ code · x of 32 output rows for `rows` (1, 4 or 8) activation rows to out [rows · 32].
`even` and `odd` are int16[16] scratch of the portable path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.extending import overload

from nearbank.kernels.cpu import dot_avx2 as avx2
from nearbank.kernels.cpu import dot_vnni as vnni
from nearbank.kernels.cpu.dot_portable import dot_1, dot_2, dot_4, dot_8
from nearbank.kernels.cpu.paths import Avx2, Avx512Vnni


def dot(
    path: Any,
    rows: int,
    w: Any,
    w_offset: int,
    x: Any,
    x_offset: int,
    x_stride: int,
    blocks: int,
    *scratch: Any,
) -> None:
    """Compiled only: see the module's docstring."""
    raise NotImplementedError("dot runs inside compiled functions")


def _intrinsics(module: Any) -> Callable[..., Any]:
    """The choice among one module's twelve compiled forms."""
    d11, d12, d14, d18 = module.dot_1_1, module.dot_1_2, module.dot_1_4, module.dot_1_8
    d41, d42, d44, d48 = module.dot_4_1, module.dot_4_2, module.dot_4_4, module.dot_4_8
    d81, d82, d84, d88 = module.dot_8_1, module.dot_8_2, module.dot_8_4, module.dot_8_8

    def run(path, rows, w, w_offset, x, x_offset, x_stride, blocks, out, even, odd):  # type: ignore[no-untyped-def]
        bits = path.bits
        if rows == 1:
            if bits == 2:
                d12(w, w_offset, x, x_offset, x_stride, blocks, out)
            elif bits == 1:
                d11(w, w_offset, x, x_offset, x_stride, blocks, out)
            elif bits == 4:
                d14(w, w_offset, x, x_offset, x_stride, blocks, out)
            else:
                d18(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif rows == 4:
            if bits == 2:
                d42(w, w_offset, x, x_offset, x_stride, blocks, out)
            elif bits == 1:
                d41(w, w_offset, x, x_offset, x_stride, blocks, out)
            elif bits == 4:
                d44(w, w_offset, x, x_offset, x_stride, blocks, out)
            else:
                d48(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif bits == 2:
            d82(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif bits == 1:
            d81(w, w_offset, x, x_offset, x_stride, blocks, out)
        elif bits == 4:
            d84(w, w_offset, x, x_offset, x_stride, blocks, out)
        else:
            d88(w, w_offset, x, x_offset, x_stride, blocks, out)

    return run


def _portable(path, rows, w, w_offset, x, x_offset, x_stride, blocks, out, even, odd):  # type: ignore[no-untyped-def]
    out[: rows * 32] = 0
    for m in range(rows):
        o, start = m * 32, x_offset + m * x_stride
        if path.bits == 2:
            dot_2(w, w_offset, x, start, blocks, out, o, even, odd)
        elif path.bits == 1:
            dot_1(w, w_offset, x, start, blocks, out, o, even, odd)
        elif path.bits == 4:
            dot_4(w, w_offset, x, start, blocks, out, o, even, odd)
        else:
            dot_8(w, w_offset, x, start, blocks, out, o, even, odd)


IMPLEMENTATIONS: dict[type, Callable[..., Any]] = {Avx512Vnni: _intrinsics(vnni), Avx2: _intrinsics(avx2)}


@overload(dot)
def _dot(path, rows, w, w_offset, x, x_offset, x_stride, blocks, out, even, odd):  # type: ignore[no-untyped-def]
    return IMPLEMENTATIONS.get(path.instance_class, _portable)

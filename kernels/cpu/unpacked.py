"""Many activation rows times tiles whose codes are unpacked once, a span at a time: loops over chunks and groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload

from nearbank.compiled import compiled
from nearbank.kernels.cpu.paths import Avx2, Path
from nearbank.kernels.cpu.scaled import add_scaled
from nearbank.kernels.cpu.tiles import CHUNK_BYTES, ROWS
from nearbank.kernels.cpu.unpack import MEMBERS, SPAN_BYTES
from nearbank.kernels.cpu.unpacked_bytes import panels_of_bytes, sums_of_bytes
from nearbank.kernels.cpu.unpacked_words import panels_of_words, sums_of_words

CHUNK_ROWS = 64  # their sums, int32 and float32, share the nearest cache with a span of codes


def panels_of_rows(path: Path, x: npt.NDArray[np.int8]) -> npt.NDArray[Any]:
    """Activations in panels of MEMBERS rows: int8 where bytes are multiplied, else int16."""
    return panels_of_bytes(x) if isinstance(path, Avx2) and path.bits < 8 else panels_of_words(x)


def _sums_of_group(
    bits: int, codes: Any, at: int, blocks: int, x: Any, x_at: int, panel: int, rows: int, unpacked: Any, sums: Any
) -> None:
    """Compiled only: sums [rows · 32] = Σ code · x over the blocks of one group."""
    raise NotImplementedError("_sums_of_group runs inside compiled functions")


@overload(_sums_of_group)
def _for_bytes_or_words(bits, codes, at, blocks, x, x_at, panel, rows, unpacked, sums):  # type: ignore[no-untyped-def]
    found = sums_of_bytes if x.dtype == types.int8 else sums_of_words

    def run(bits, codes, at, blocks, x, x_at, panel, rows, unpacked, sums):  # type: ignore[no-untyped-def]
        found(bits, codes, at, blocks, x, x_at, panel, rows, unpacked, sums)

    return run


@compiled(nogil=True)
def multiply_unpacked(  # type: ignore[no-untyped-def]
    bits, first, last, x, x_scales, x_sums, codes, scales, zeros, step, blocks, y
):
    """Tiles first … last of y. x as of `panels_of_rows`."""
    groups, columns = scales.shape[1], y.shape[1]
    flat, flat_scales, flat_zeros = x.reshape(-1), scales.reshape(-1), zeros.reshape(-1)
    flat_x_sums = x_sums.reshape(-1)
    panel = flat.shape[0] // x.shape[0]
    chunk = min(CHUNK_ROWS, max(8, CHUNK_BYTES * MEMBERS // (panel * x.itemsize) // 8 * 8))
    unpacked = np.empty(SPAN_BYTES, np.uint8)
    sums = np.empty(min(chunk, x.shape[0] * MEMBERS) * ROWS, np.int32)
    part = np.empty((min(chunk, x.shape[0] * MEMBERS), ROWS), np.float32)
    for start in range(0, y.shape[0], chunk):
        rows = min(chunk, y.shape[0] - start)
        for t in range(first, last):
            part[:rows] = 0
            for g in range(groups):
                at = (t * groups + g) * blocks
                x_at = start // MEMBERS * panel + g * (panel // groups)
                _sums_of_group(bits, codes, at, blocks, flat, x_at, panel, rows, unpacked, sums)
                add_scaled(
                    sums, step, flat_zeros, flat_scales, (t * groups + g) * ROWS, flat_x_sums, x_scales,
                    start, groups, g, rows, part,
                )  # fmt: skip
            width = min(ROWS, columns - ROWS * t)
            for r in range(rows):
                for i in range(width):
                    y[start + r, ROWS * t + i] = part[r, i]

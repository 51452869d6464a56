"""Matrix multiplication with packed weights, compiled: the loops over tiles, groups and rows of x.

What happens inside a tile is `nearbank.kernels.cpu.dot`; how tiles lie in memory, `nearbank.kernels.cpu.tiles`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.compiled import compiled
from nearbank.kernels.cpu.dense import Dense, matmul_dense, prepare_dense
from nearbank.kernels.cpu.dot import ROWS_AT_ONCE, dot, dot_one, words_in_pairs
from nearbank.kernels.cpu.dot_bits import multiply_bits, sums_of_codes, words_of
from nearbank.kernels.cpu.paths import PATHS, Avx2, Avx512Vnni, Path, Portable, chosen_path, cpu_features
from nearbank.kernels.cpu.scaled import add_scaled
from nearbank.kernels.cpu.tiles import CHUNK_BYTES, ROWS, Tiles, tile
from nearbank.kernels.cpu.unpacked import multiply_unpacked, panels_of_rows
from nearbank.kernels.cpu.weighted import matmul_tiles_floats
from nearbank.kernels.levels import Levels
from nearbank.kernels.packed import PackedMatrix
from nearbank.kernels.reference.lanes import padded
from nearbank.kernels.threads import in_parts

Floats = npt.NDArray[np.float32]
# Bits of a code → rows from which on AVX2 gains when codes are unpacked once for all of them; measured.
UNPACKED_FROM = {1: 9, 2: 9, 4: 9, 8: 32}


@dataclass(frozen=True)
class CpuMatrix:
    """Integer weights in tiles, with the instructions that will multiply them.

    `code_sums` int32 [tiles, groups, 32], kept where activations of few bits can use it.
    """

    path: Path
    tiles: Tiles
    code_sums: npt.NDArray[np.int32] | None = None


def prepare(packed: PackedMatrix) -> CpuMatrix | Dense:
    """Repack for the path chosen now; float weights stay row by row."""
    if packed.format.is_float:
        return prepare_dense(packed)
    kind = PATHS[chosen_path()][0]
    tiles = tile(packed.in_even_fields())
    code_sums = sums_of_codes(tiles) if tiles.bits <= 2 else None
    return CpuMatrix(kind(tiles.bits), tiles, code_sums)


@compiled(nogil=True)
def _multiply_row(path, first, last, x, x_scales, x_sums, codes, scales, zeros, step, blocks, y):  # type: ignore[no-untyped-def]
    """Tiles first … last of y for one row; small on purpose, so that weights keep streaming from tile to tile."""
    columns, groups = y.shape[1], scales.shape[1]
    padded = x.shape[1] // groups
    flat = x.reshape(-1)
    sums, part = np.empty(32, np.int32), np.empty(32, np.float32)
    for t in range(first, last):
        part[:] = 0
        for g in range(groups):
            place = t * groups + g
            dot_one(path, codes, place * blocks * 128, flat, g * padded, blocks, sums)
            for i in range(32):
                exact = np.int32(step * sums[i] - np.int32(zeros[t, g, i]) * x_sums[0, g])
                part[i] += np.float32(exact) * (x_scales[0] * scales[t, g, i])
        for i in range(min(32, columns - 32 * t)):
            y[0, 32 * t + i] = part[i]


@compiled(nogil=True)
def _multiply_rows(  # type: ignore[no-untyped-def]
    path, most, first, last, x, x_scales, x_sums, codes, scales, zeros, step, blocks, y
):
    """Tiles first … last of y. x [M, groups · padded] int8, x_sums [M, groups]; M is at least half of `most`."""
    rows, columns = x.shape[0], y.shape[1]
    groups = scales.shape[1]
    padded = x.shape[1] // groups
    flat, flat_x_sums = x.reshape(-1), x_sums.reshape(-1)
    flat_scales, flat_zeros = scales.reshape(-1), zeros.reshape(-1)
    sums = np.empty(most * 32, np.int32)
    part = np.empty((most, 32), np.float32)
    chunk = max(most, CHUNK_BYTES // x.shape[1] // most * most)
    for start in range(0, rows, chunk):
        end = min(start + chunk, rows)
        for t in range(first, last):
            width = min(32, columns - 32 * t)
            m = start
            while m < end:
                many = most if end - m >= most else most // 2
                m = min(m, end - many)  # the last rows may be computed twice, alike
                part[:many] = 0
                for g in range(groups):
                    place, x_offset = t * groups + g, m * x.shape[1] + g * padded
                    dot(path, many, codes, place * blocks * 128, flat, x_offset, x.shape[1], blocks, sums)
                    add_scaled(
                        sums, step, flat_zeros, flat_scales, place * 32, flat_x_sums, x_scales, m, groups, g, many, part
                    )
                for r in range(many):
                    for i in range(width):
                        y[m + r, 32 * t + i] = part[r, i]
                m += many


def _group_sums(codes: npt.NDArray[np.int8], sums: npt.NDArray[np.int32], tiles: Tiles) -> npt.NDArray[np.int32]:
    """Σ codes of each row and group [M, groups]."""
    if tiles.groups == 1:
        return sums.reshape(-1, 1)
    return np.asarray(codes.reshape(len(codes), tiles.groups, -1).sum(axis=2, dtype=np.int32))


def _way(path: Path, x: npt.NDArray[np.int8]) -> tuple[Callable[..., None], npt.NDArray[Any]]:
    """The compiled loop for so many rows, and x as it wants it."""
    if len(x) == 1:
        return partial(_multiply_row, path), words_in_pairs(x) if isinstance(path, Portable) else x
    most = ROWS_AT_ONCE.get(type(path), 0)
    if most and not (isinstance(path, Avx2) and len(x) >= UNPACKED_FROM[path.bits]):
        return partial(_multiply_rows, path, most), x
    return partial(multiply_unpacked, path.bits), panels_of_rows(path, x)


def matmul_codes(codes: npt.NDArray[np.int8], scales: Floats, sums: npt.NDArray[np.int32], state: CpuMatrix) -> Floats:
    """Integer activations [M, K] times integer weights → [M, N]."""
    least = ROWS_AT_ONCE.get(type(state.path), 2) // 2
    if 1 < len(codes) < least:
        wide = [padded(part, least, axis=0) for part in (codes, scales, sums)]
        return matmul_codes(wide[0], wide[1], wide[2], state)[: len(codes)]
    tiles = state.tiles
    x = tiles.spread_columns(codes)
    x_sums = _group_sums(x, sums, tiles)
    y = np.empty((len(codes), tiles.rows), np.float32)
    multiply, given = _way(state.path, x)

    def run(first: int, last: int) -> None:
        multiply(
            first, last, given, scales, x_sums, tiles.codes, tiles.scales, tiles.zeros, tiles.step, tiles.blocks, y
        )

    in_parts(run, -(-tiles.rows // ROWS), work=tiles.codes.nbytes * max(1, len(codes) // 4))
    return y


def _counting_wins(path: Path) -> bool:
    """One bit: always. Two bits: where a vector's bits are counted in one instruction and VNNI is not at hand."""
    return path.bits == 1 or (not isinstance(path, Avx512Vnni) and "avx512vpopcntdq" in cpu_features())


def matmul_low(
    codes: npt.NDArray[np.int8], scales: Floats, sums: npt.NDArray[np.int32], state: CpuMatrix, levels: Levels
) -> Floats:
    """`matmul_codes` for activations of 1 or 2 bits: counts bits where the weights have as many."""
    tiles = state.tiles
    if levels.bits != tiles.bits or state.code_sums is None or not _counting_wins(state.path):
        return matmul_codes(codes, scales, sums, state)
    unsigned = ((codes - np.int8(levels.low)) // np.int8(levels.step)).astype(np.uint8)
    words = words_of(tiles.spread_columns(unsigned), tiles.bits)
    x_sums = _group_sums(tiles.spread_columns(codes), sums, tiles)
    y = np.empty((len(codes), tiles.rows), np.float32)

    def run(first: int, last: int) -> None:
        multiply_bits(
            tiles.bits, first, last, words, scales, x_sums, levels.step, levels.low, tiles.codes,
            state.code_sums, tiles.scales, tiles.zeros, tiles.step, tiles.blocks, y,
        )  # fmt: skip

    in_parts(run, -(-tiles.rows // ROWS), work=tiles.codes.nbytes * max(1, len(codes) // 4))
    return y


def matmul_floats(x: Floats, state: CpuMatrix | Dense) -> Floats:
    """Float activations [M, K] times weights of any format → [M, N]."""
    if isinstance(state, Dense):
        return matmul_dense(x, state)
    return matmul_tiles_floats(x, state.tiles)

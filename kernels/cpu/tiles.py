"""Weights repacked for the CPU: tiles of 32 output rows, one lane per row, so no sum runs across lanes.

A block is 128 bytes and holds 4·P neighbouring columns of 32 rows, P = 8 / bits values per byte. Value p
of the byte at 4·row + b (lowest bits first) is column 4·p + b: a 32-bit lane per row, since the
instructions that multiply bytes add up neighbouring four.

The blocks of a group follow each other, then the next group, then the next tile: one stream in memory.
Groups are padded to a multiple of 32 columns (activations are padded with zeros), rows to one of 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.kernels.packed import PackedMatrix

Floats = npt.NDArray[np.float32]
ROWS = 32
BLOCK_BYTES = 128
COLUMN_STEP = 32
CACHE_LINE, LARGE_PAGE = 64, 2 << 20
# int8 activations of this many bytes stay in the second-level cache while all tiles pass by.
CHUNK_BYTES = 512 * 1024


@dataclass(frozen=True)
class Tiles:
    """Repacked integer weights: scales float32 and zeros uint8 are [tiles, groups, 32]."""

    bits: int
    step: int
    rows: int
    columns: int
    group_columns: int
    padded_columns: int
    codes: npt.NDArray[np.uint8]
    scales: Floats
    zeros: npt.NDArray[np.uint8]

    @property
    def groups(self) -> int:
        """Groups in a row."""
        return int(self.scales.shape[1])

    @property
    def blocks(self) -> int:
        """Blocks in one group of one tile."""
        return self.padded_columns * self.bits // 32

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.codes.nbytes + self.scales.nbytes + self.zeros.nbytes

    def spread_columns(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """x [M, K] → [M, groups · padded columns], zeros in the padding; x itself where nothing is padded."""
        if x.shape[1] == self.groups * self.padded_columns:
            return x
        out = np.zeros((x.shape[0], self.groups, self.padded_columns), x.dtype)
        for g in range(self.groups):
            part = x[:, g * self.group_columns : (g + 1) * self.group_columns]
            out[:, g, : part.shape[1]] = part
        return out.reshape(x.shape[0], -1)


def aligned_empty(size: int) -> npt.NDArray[np.uint8]:
    """`size` bytes at the start of a cache line; from the size of a large page on, at the start of one.

    NumPy asks Linux for large pages from 4 MB on, and only whole ones are given.
    """
    alignment = LARGE_PAGE if size >= LARGE_PAGE else CACHE_LINE
    raw = np.empty(size + alignment, np.uint8)
    return raw[-raw.ctypes.data % alignment :][:size]


def tile(packed: PackedMatrix) -> Tiles:
    """Repack integer weights."""
    rows, columns = packed.shape
    fmt = packed.format
    bits = 2 if fmt.name == "ternary-b3" else int(fmt.code_bits)
    width = fmt.scaling.group if fmt.scaling.per == "group" else columns
    groups, tiles = -(-columns // width), -(-rows // ROWS)
    padded = -(-width // COLUMN_STEP) * COLUMN_STEP
    codes = aligned_empty(tiles * groups * padded * ROWS * bits // 8)
    codes.reshape(tiles, -1)[:] = _packed_tiles(_stored_codes(packed), bits, width, groups)
    assert packed.scales is not None
    scales = _per_row_group(np.broadcast_to(packed.scales, (rows, groups)), np.float32)
    zero = 128 if fmt.name == "int8" else fmt.zero
    zeros = packed.zeros if packed.zeros is not None else np.full((1, 1), zero, np.uint8)
    spread_zeros = _per_row_group(np.broadcast_to(zeros, (rows, groups)), np.uint8)
    return Tiles(bits, fmt.step, rows, columns, width, padded, codes, scales, spread_zeros)


def _stored_codes(packed: PackedMatrix) -> npt.NDArray[np.uint8]:
    """Unsigned codes [N, K]; int8 is moved up by 128."""
    codes = packed.quantised().codes
    return (codes.view(np.uint8) ^ np.uint8(128)) if packed.format.name == "int8" else codes


def _packed_tiles(codes: npt.NDArray[np.uint8], bits: int, width: int, groups: int) -> npt.NDArray[np.uint8]:
    """[tiles, bytes of a tile], built one tile at a time to keep the unpacked copy small."""
    places = 8 // bits
    padded = -(-width // COLUMN_STEP) * COLUMN_STEP
    tiles = -(-codes.shape[0] // ROWS)
    out = np.empty((tiles, groups * padded * ROWS * bits // 8), np.uint8)
    for t in range(tiles):
        square = np.zeros((ROWS, groups, padded), np.uint8)
        part = codes[t * ROWS : (t + 1) * ROWS]
        for g in range(groups):
            columns = part[:, g * width : (g + 1) * width]
            square[: len(part), g, : columns.shape[1]] = columns
        parts = square.reshape(ROWS, groups * padded // (4 * places), places, 4)
        merged = np.zeros((ROWS, parts.shape[1], 4), np.uint8)
        for p in range(places):
            merged |= parts[:, :, p] << np.uint8(p * bits)
        out[t] = merged.swapaxes(0, 1).reshape(-1)
    return out


def _per_row_group(values: npt.NDArray[Any], dtype: Any) -> npt.NDArray[Any]:
    """[N, groups] → [tiles, groups, 32], zeros in the padding."""
    rows, groups = values.shape
    padded = np.zeros((-(-rows // ROWS) * ROWS, groups), dtype)
    padded[:rows] = values
    return np.ascontiguousarray(padded.reshape(-1, ROWS, groups).swapaxes(1, 2))

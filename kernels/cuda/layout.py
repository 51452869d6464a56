"""Packed weights in the order the CUDA kernels read them. NumPy only, once, at load.

A tile is 16 rows × (4096 / bits / 16) columns = 512 bytes: 16 bytes for each of 32 lanes, lane 4·g + t having
rows g and g + 8 and the t-th quarter of the columns. Within a lane, word 2·h + r is row g + 8·r and column half h
of each step; byte b of the word holds column b; bit position bits · i is step i. Columns are padded group by
group, rows to whole row blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels.packed import PackedMatrix

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

ROW_BLOCK = 64  # rows are padded to this, so that four 16-row tiles always exist
BITS = {"ternary": 2, "ternary-b3": 2, "int2": 2, "int4": 4, "int3": 4, "int8": 8, "binary": 1}


@dataclass(frozen=True)
class Shape:
    """How [rows, cols] lies in tiles: `groups` groups of `width` columns, each padded to `padded`."""

    rows: int
    cols: int
    bits: int
    width: int
    padded: int
    groups: int

    @property
    def row_tiles(self) -> int:
        """16-row tiles, padding included."""
        return -(-self.rows // ROW_BLOCK) * ROW_BLOCK // 16

    @property
    def columns(self) -> int:
        """Columns, padding included."""
        return self.groups * self.padded

    @property
    def tile_columns(self) -> int:
        """Columns of one 512-byte tile."""
        return 256 // self.bits


def shape_of(fmt: Format, rows: int, cols: int) -> Shape:
    """The padded shape of a matrix. Raises NearbankError for formats without integer tiles."""
    if fmt.name not in BITS:
        raise NearbankError(f"CUDA integer kernels: format {fmt.name}; supported: {', '.join(BITS)}")
    bits = BITS[fmt.name]
    width = min(fmt.scaling.group, cols) if fmt.scaling.per == "group" else cols
    tile = 256 // bits
    return Shape(rows, cols, bits, width, -(-width // tile) * tile, -(-cols // width))


def tile_codes(codes: npt.NDArray[np.generic], shape: Shape) -> Bytes:
    """Codes [rows, cols] (unsigned, or int8) → bytes [row tiles, column tiles, 512]."""
    grid = _padded_codes(codes, shape)
    steps = 8 // shape.bits
    # row = (tile, r, g), column = (column tile, t, step, h, byte)
    parts = grid.reshape(shape.row_tiles, 2, 8, -1, 4, steps, 2, 4)
    ordered = parts.transpose(0, 3, 2, 4, 6, 1, 7, 5)  # tile, column tile, g, t, h, r, byte, step
    packed = np.zeros(ordered.shape[:-1], np.uint8)
    for i in range(steps):
        packed |= ordered[..., i] << np.uint8(shape.bits * i)
    return packed.reshape(shape.row_tiles, -1, 512)


def untile_codes(tiles: Bytes, shape: Shape) -> Bytes:
    """The codes [rows, cols] back from tiles, as stored bytes."""
    steps = 8 // shape.bits
    packed = tiles.reshape(shape.row_tiles, -1, 8, 4, 2, 2, 4, 1)
    shifts = (np.arange(steps) * shape.bits).astype(np.uint8)
    ordered = (packed >> shifts) & np.uint8((1 << shape.bits) - 1)
    grid = ordered.transpose(0, 5, 2, 1, 3, 7, 4, 6).reshape(shape.row_tiles * 16, shape.groups, shape.padded)
    return np.ascontiguousarray(grid[: shape.rows, :, : shape.width].reshape(shape.rows, -1)[:, : shape.cols])


def _padded_codes(codes: npt.NDArray[np.generic], shape: Shape) -> Bytes:
    raw = np.ascontiguousarray(codes).view(np.uint8)
    flat = np.zeros((shape.row_tiles * 16, shape.groups * shape.width), np.uint8)
    flat[: shape.rows, : shape.cols] = raw
    grid = np.zeros((shape.row_tiles * 16, shape.groups, shape.padded), np.uint8)
    grid[:, :, : shape.width] = flat.reshape(-1, shape.groups, shape.width)
    return grid


def tile_matrix(packed: PackedMatrix) -> tuple[Shape, Bytes]:
    """A packed matrix's codes as tiles, with their shape."""
    shape = shape_of(packed.format, *packed.shape)
    return shape, tile_codes(packed.quantised().codes, shape)


def interleave_floats(words: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Float weights [rows, cols] so that each of 16 lanes reads its columns l, l + 16, … as 16-byte vectors.

    → [rows, blocks, 16 lanes, n] with n values in 16 bytes; padded with zeros.
    """
    per_vector = 16 // words.dtype.itemsize
    rows, cols = words.shape
    blocks = -(-cols // (16 * per_vector))
    grid = np.zeros((rows, blocks * 16 * per_vector), words.dtype)
    grid[:, :cols] = words
    return np.ascontiguousarray(grid.reshape(rows, blocks, per_vector, 16).transpose(0, 1, 3, 2))

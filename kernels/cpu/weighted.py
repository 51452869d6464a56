"""Float activations times integer weights in tiles: every level becomes a float, summed in the fixed order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nearbank.compiled import compiled
from nearbank.kernels.cpu.tiles import ROWS, Tiles
from nearbank.kernels.threads import in_parts

Floats = npt.NDArray[np.float32]


@compiled(nogil=True)
def _multiply(bits, first, last, x, codes, scales, zeros, step, blocks, y):  # type: ignore[no-untyped-def]
    """Tiles first … last of y. x [M, groups · padded] float32. Lane l of a sum takes columns l, l + 16 …"""
    groups, places = scales.shape[1], 8 // bits
    padded = x.shape[1] // groups
    mask = np.uint32((1 << bits) - 1)
    lanes = np.empty((16, 32), np.float32)
    total = np.empty(32, np.float32)
    for t in range(first, last):
        width = min(32, y.shape[1] - 32 * t)
        for m in range(x.shape[0]):
            total[:] = 0
            for g in range(groups):
                lanes[:] = 0
                base = (t * groups + g) * blocks * 128
                for k in range(padded):
                    block, inside = k // (4 * places), k % (4 * places)
                    at = base + 128 * block + inside % 4
                    shift = np.uint32(bits * (inside // 4))
                    xk = x[m, g * padded + k]
                    lane = lanes[k % 16]
                    for i in range(32):
                        code = np.int32((np.uint32(codes[at + 4 * i]) >> shift) & mask)
                        lane[i] += xk * np.float32(np.int32(step * code - np.int32(zeros[t, g, i])))
                for half in (8, 4, 2, 1):
                    for lane_number in range(half):
                        for i in range(32):
                            lanes[lane_number, i] += lanes[lane_number + half, i]
                for i in range(32):
                    total[i] += lanes[0, i] * scales[t, g, i]
            for i in range(width):
                y[m, 32 * t + i] = total[i]


def matmul_tiles_floats(x: Floats, tiles: Tiles) -> Floats:
    """x [M, K] float32 times tiles → [M, N]."""
    spread = tiles.spread_columns(x)
    y = np.empty((len(x), tiles.rows), np.float32)

    def run(first: int, last: int) -> None:
        _multiply(
            tiles.bits, first, last, spread, tiles.codes, tiles.scales, tiles.zeros, tiles.step,
            tiles.blocks, y,
        )  # fmt: skip

    in_parts(run, -(-tiles.rows // ROWS), work=tiles.codes.nbytes * len(x) * 4)
    return y

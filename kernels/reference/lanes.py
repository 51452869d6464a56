"""Float sums in one fixed order: 16 lanes, then a tree over the lanes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
LANES = 16


def padded(values: npt.NDArray[Any], multiple: int, axis: int = -1) -> npt.NDArray[Any]:
    """`values` with zeros added at the end of `axis` up to a multiple."""
    missing = -values.shape[axis] % multiple
    widths = [(0, 0)] * values.ndim
    widths[axis] = (0, missing)
    return np.pad(values, widths) if missing else values


def fold(lanes: Floats) -> Floats:
    """[…, 16] → […]: the tree over the lanes."""
    width = LANES
    while width > 1:
        width //= 2
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    return np.asarray(lanes[..., 0])


def lane_sum(terms: Floats) -> Floats:
    """Sum over the last axis in the fixed order."""
    blocks = padded(terms, LANES)
    blocks = blocks.reshape(*blocks.shape[:-1], -1, LANES)
    total = np.zeros((*blocks.shape[:-2], LANES), dtype=np.float32)
    for j in range(blocks.shape[-2]):
        total = total + blocks[..., j, :]
    return fold(total)


def lane_dot(x: Floats, w: Floats) -> Floats:
    """x [K] · w [N, K] → [N] in the fixed order, without holding all products."""
    x, w = padded(x, LANES), padded(w, LANES)
    total = np.zeros((w.shape[0], LANES), dtype=np.float32)
    for j in range(0, x.shape[0], LANES):
        total = total + x[j : j + LANES] * w[:, j : j + LANES]
    return fold(total)

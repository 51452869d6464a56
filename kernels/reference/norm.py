"""RMS and layer norm of activations: the definition, sums in the order that every backend keeps.

A sum over a row runs in 256 lanes: lane l adds columns l, l + 256, …, then lane l adds lane l + 128, l + 64, … l + 1.

    value = (x − centre) · (1 / √(mean of (x − centre)² + epsilon)) · gain + bias

with centre 0 for "rms" and the mean for "layer"; every operation rounds to float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nearbank.kernels.reference.lanes import padded

Floats = npt.NDArray[np.float32]
NORMS = ("rms", "layer")
NORM_LANES = 256


def row_sums(x: Floats) -> Floats:
    """Σ of each row [M, K] → [M]."""
    blocks = padded(x, NORM_LANES)
    lanes = np.zeros((len(x), NORM_LANES), np.float32)
    for first in range(0, blocks.shape[1], NORM_LANES):
        lanes = lanes + blocks[:, first : first + NORM_LANES]
    width = NORM_LANES
    while width > 1:
        width //= 2
        lanes = lanes[:, :width] + lanes[:, width : 2 * width]
    return np.ascontiguousarray(lanes[:, 0])


def normed(x: Floats, norm: str, gain: Floats | None, bias: Floats | None, epsilon: np.float32) -> Floats:
    """x [M, K] normalised row by row. A row whose squares are beyond float32 becomes NaN."""
    cols = np.float32(x.shape[1])
    with np.errstate(all="ignore"):
        centre = row_sums(x) / cols if norm == "layer" else np.zeros(len(x), np.float32)
        away = x - centre[:, None]
        mean = row_sums(away * away) / cols
        factor = np.float32(1) / np.sqrt(mean + epsilon)
        value = away * np.where(np.isfinite(mean), factor, np.float32(np.nan))[:, None]
        value = value if gain is None else value * gain
        return value if bias is None else value + bias

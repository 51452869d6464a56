"""exp for softmax, written out so that every backend rounds alike: x ≤ 0, error below 2 units in the last place."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)  # ln 2 in two parts, the first with few bits: n · LN2_HIGH is exact
LN2_LOW = np.float32(-2.12194440e-4)
ROUND = np.float32(12582912.0)  # 1.5 · 2²³: adding and subtracting it rounds to an integer
LEAST = np.float32(-87.0)  # below this the result is 0
# Horner coefficients of (exp(r) − 1 − r) / r² on |r| ≤ ln 2 / 2 (the Cephes library's expf), highest first
TAYLOR = tuple(
    np.float32(c) for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
)


def exp_non_positive(x: Floats) -> Floats:
    """exp(x) for x ≤ 0, elementwise."""
    clamped = np.maximum(x, LEAST)
    n = (clamped * LOG2_E + ROUND) - ROUND
    r = (clamped - n * LN2_HIGH) - n * LN2_LOW
    poly = np.full_like(r, TAYLOR[0])
    for c in TAYLOR[1:]:
        poly = poly * r + c
    value = (poly * (r * r) + r) + np.float32(1)
    power = ((n.astype(np.int32) + 127) << 23).view(np.float32)
    return np.where(x < LEAST, np.float32(0), value * power).astype(np.float32)

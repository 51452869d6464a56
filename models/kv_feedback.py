"""Rounding K and V so that a token's later channels make good the errors of its earlier ones.

What an error d [E] of a token's key or value costs is dᵀ M d, M the Fisher information that a calibration text gives
(`nearbank.models.kv_metric`). Rounding to nearest takes M for diagonal. Here channels are rounded one after the other,
and after each the ones to come move by −error · Uₖ,· / Uₖₖ with UᵀU = M⁻¹, as GPTQ (arXiv 2210.17323) does for
weights. That is tried for a few ranges of codes, each trimmed at either end, and the cheapest is kept.

The format, its bytes and its decoder stay what they were. Only append is dearer: half of E² multiplications for each
range tried. Not part of WKVQuant, whose codes are the nearest ones.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt

from nearbank.formats import from_bf16
from nearbank.kernels.reference.quantise import token_grid

Floats = npt.NDArray[np.float32]

TRIMS = (0.0, 0.06, 0.12)  # shares of a token's range that its codes may leave out, at either end


def rounded_with_feedback(values: Floats, feedback: Floats, top: int) -> Floats:
    """Values [G, n, E] as codes 0 … top give them back; feedback: U [G, E, E].

    Element by element, so that a token's codes do not depend on the tokens beside it.
    """
    channels = np.ascontiguousarray(np.moveaxis(values, 2, 0))  # [E, G, n]
    low, high = channels.min(axis=0), channels.max(axis=0)
    best, least = channels, np.full_like(low, np.inf)
    for below, above in product(map(np.float32, TRIMS), repeat=2):
        trimmed = low + below * (high - low), high - above * (high - low)
        found, cost = _one_range(channels, feedback, *trimmed, top)
        better = cost < least
        best, least = np.where(better, found, best), np.where(better, cost, least)
    return np.ascontiguousarray(np.moveaxis(best, 0, 2))


def _one_range(channels: Floats, feedback: Floats, low: Floats, high: Floats, top: int) -> tuple[Floats, Floats]:
    """What [E, G, n] becomes with codes over low … high [G, n], and its cost [G, n]."""
    scales, offsets = token_grid(low, high, top)
    step, start = from_bf16(scales), from_bf16(offsets)
    inverse = np.divide(1, step, out=np.zeros_like(step), where=step != 0)
    moved, found, cost = channels.copy(), np.empty_like(channels), np.zeros_like(step)
    for k, value in enumerate(moved):
        found[k] = start + step * np.clip(np.rint((value - start) * inverse), 0, top)
        error = (value - found[k]) / feedback[:, k, k, None]
        moved[k + 1 :] -= feedback[:, k, k + 1 :].T[:, :, None] * error
        cost += error * error
    return found, cost

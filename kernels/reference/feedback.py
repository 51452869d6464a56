"""Rounding K and V so that a token's later channels make good the errors of its earlier ones: the definition.

What an error d [E] of a token's key or value costs is dᵀ M d, M measured on a calibration text
(`nearbank.models.kv_metric`). Rounding to nearest takes M for diagonal. Here channels are rounded one after the other,
as GPTQ (arXiv 2210.17323) does with weights. With UᵀU = M⁻¹, U upper triangular, and x = (value − offset) / scale:

    code[k] = x[k] to the nearest of 0 … top
    d       = x[k] − code[k]
    x[j]    = x[j] − U[k, j] / U[k, k] · d      for all j > k
    cost    = Σ (d / U[k, k])² · scale²

That is tried for nine ranges of codes, each trimmed at either end, and the cheapest is kept. Quotients by U are rounded
once, when a cache is made, and 1 / scale once per range, so that a token's way is products and sums alone.

The format, its bytes and its decoder stay what they were. Only append is dearer: half of E² multiplications for each
range. Not part of WKVQuant, whose codes are the nearest ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import from_bf16
from nearbank.kernels.reference.lanes import padded
from nearbank.kernels.reference.quantise import token_grid
from nearbank.kernels.store import PAGE, CacheStore, pack_rows

Floats = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint16]

TRIMS = (0.0, 0.06, 0.12)  # shares of a token's range that its codes may leave out, at either end


@dataclass(frozen=True)
class Feedback:
    """For each KV head: shares [G, E, E], how much of channel k's error each channel j > k takes over, 0 for the
    others; weights [G, E], what an error weighs when it is made, 1 / U[k, k]."""

    shares: Floats
    weights: Floats

    @classmethod
    def of(cls, upper: Floats) -> Feedback:
        """From U [G, E, E]. Raises NearbankError where that is no upper triangle with a positive diagonal."""
        if upper.ndim != 3 or upper.shape[1] != upper.shape[2]:
            raise NearbankError(f"feedback is {list(upper.shape)}; expected [kv_heads, head_dim, head_dim]")
        diagonal = np.diagonal(upper, axis1=1, axis2=2)
        if not (diagonal > 0).all() or np.tril(upper, -1).any():
            raise NearbankError("feedback: expected upper triangles with positive diagonals, as the metric's factor is")
        with np.errstate(all="ignore"):
            shares, weights = (upper / diagonal[:, :, None]).astype(np.float32), (1 / diagonal).astype(np.float32)
        if not (np.isfinite(shares).all() and np.isfinite(weights).all()):
            raise NearbankError("feedback: a quotient by the diagonal is not finite; dampen the metric more")
        return cls(np.triu(shares, 1), np.ascontiguousarray(weights))


def ranges(trims: Sequence[float] = TRIMS) -> Floats:
    """What each range leaves out below and above [ranges, 2], the whole one first."""
    return np.array(list(product(trims, repeat=2)), np.float32)


def encode_with_feedback(
    values: Floats, feedback: Feedback, top: int, trims: Sequence[float] = TRIMS
) -> tuple[npt.NDArray[np.uint8], Bits, Bits]:
    """values [G, n, E] → codes 0 … top [G, n, E], scale and offset [G, n] as bfloat16 bits.

    Element by element, so that a token's codes do not depend on the tokens beside it.
    """
    channels = np.ascontiguousarray(np.moveaxis(values, 2, 0))  # [E, G, n]
    low, high = channels.min(axis=0) + np.float32(0), channels.max(axis=0) + np.float32(0)  # no zero is negative
    with np.errstate(all="ignore"):
        first, *others = (
            _one_range(channels, feedback, low + (a * high - a * low), high - (b * high - b * low), top)
            for a, b in ranges(trims)
        )
    for other in others:
        cheaper = other[-1] < first[-1]
        first = [np.where(cheaper, new, old) for new, old in zip(other, first, strict=True)]
    codes, scales, offsets, _ = first
    return np.ascontiguousarray(np.moveaxis(codes, 0, 2)).astype(np.uint8), scales, offsets


def _one_range(channels: Floats, feedback: Feedback, low: Floats, high: Floats, top: int) -> list[npt.NDArray[Any]]:
    """Of codes over low … high [G, n]: codes [E, G, n] as floats, scales, offsets and costs [G, n]."""
    scales, offsets = token_grid(low, high, top)
    step = from_bf16(scales)
    inverse = np.divide(1, step, out=np.zeros_like(step), where=step != 0)
    x, cost = (channels - from_bf16(offsets)) * inverse, np.zeros_like(step)
    for k, here in enumerate(x):
        code = np.rint(np.fmin(np.fmax(here, 0), np.float32(top)))
        error = here - code
        x[k + 1 :] -= feedback.shares[:, k, k + 1 :].T[:, :, None] * error
        weighted = error * feedback.weights[:, k, None]
        cost += weighted * weighted
        x[k] = code
    return [x, scales, offsets, cost * step * step]


def rounded_with_feedback(values: Floats, upper: Floats, top: int, trims: Sequence[float] = TRIMS) -> Floats:
    """Values [G, n, E] as codes 0 … top give them back; upper: U [G, E, E]."""
    codes, scales, offsets = encode_with_feedback(values, Feedback.of(upper), top, trims)
    return from_bf16(offsets)[..., None] + from_bf16(scales)[..., None] * codes


def write_fed_back(
    store: CacheStore, rows: npt.NDArray[Any], params: Bits, start: int, new: Floats, feedback: Feedback
) -> None:
    """new [T, kv heads, head_dim] → one layer's rows and params, from position `start`."""
    codes, scales, offsets = encode_with_feedback(new.swapaxes(0, 1), feedback, store.format.high)
    codes = padded(codes, rows.shape[-1] * store.format.values_per_word)
    for t in range(len(new)):
        page, slot = divmod(start + t, PAGE)
        held = store.table[page]
        rows[held, :, slot] = pack_rows(codes[:, t], store.format)
        params[held, :, slot, 0], params[held, :, slot, 1] = scales[:, t], offsets[:, t]

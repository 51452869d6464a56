"""Elastic activations of "Binary and Ternary Natural Language Generation" (arXiv 2306.01841): 2 or 1 bit, α learned.

For a tensor X that cannot be negative (after softmax or ReLU), and for any other:

    ternary  α·round(clip(X/α, 0, 2))      α·round(clip((X − X̄)/α, −1, 1))
    binary   α·round(clip(X/α, 0, 1))      α·sign((X − X̄)/α)

X̄ is taken per row (token) here: a mean over a batch would let later tokens influence earlier ones. The authors' code
leaves X̄ out of signed activations, and subtracts the minimum from unsigned ternary ones (per row here, for the same
reason); `variant` says which form is meant. This is the definition in NumPy; training is in
`nearbank.models.training.elastic`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.models.quantize import check_variant

Floats = npt.NDArray[np.float32]

START_SHARES = tuple(2 ** (-i / 4) for i in range(32))


@dataclass(frozen=True)
class Elastic:
    """Which codes an activation may take. bits: 2 (ternary) or 1 (binary)."""

    bits: int
    signed: bool
    variant: str = "paper"

    def __post_init__(self) -> None:
        if self.bits not in (1, 2):
            raise NearbankError(f"elastic activations: {self.bits} bits; expected 1 or 2")
        check_variant(self.variant)

    @property
    def low(self) -> int:
        return -1 if self.signed else 0

    @property
    def high(self) -> int:
        return 2 if self.bits == 2 and not self.signed else 1

    @property
    def offset(self) -> str:
        """What is subtracted from each row first: "mean", "minimum" or "nothing"."""
        if self.variant == "paper":
            return "mean" if self.signed else "nothing"
        return "minimum" if self.bits == 2 and not self.signed else "nothing"

    def first_alpha(self, x: Floats) -> float:
        """Where the learning of α starts: the share of max|X| with the least square error on X [M, K].

        The authors' code starts at 2·mean|X|/√high signed, 4·mean|X|/√high unsigned.
        """
        centred = x - self.offsets(x)
        tried = [float(np.abs(centred).max() * share) or 1.0 for share in START_SHARES]
        errors = [np.square(centred - self.rounded(x, alpha)).mean(dtype=np.float64) for alpha in tried]
        return tried[int(np.argmin(errors))]

    def offsets(self, x: Floats) -> Floats:
        """What is subtracted from the rows of x [M, K]: [M, 1]."""
        if self.offset == "mean":
            return np.asarray(x.mean(axis=1, keepdims=True, dtype=np.float64), dtype=np.float32)
        return x.min(axis=1, keepdims=True) if self.offset == "minimum" else np.zeros((len(x), 1), np.float32)

    def codes(self, x: Floats, alpha: float) -> npt.NDArray[np.int8]:
        """Codes low … high [M, K] of x [M, K]; the value is alpha · code."""
        _check_alpha(alpha)
        ratio = (x - self.offsets(x)) / np.float32(alpha)
        if self.bits == 1 and self.signed:
            return np.where(ratio >= 0, 1, -1).astype(np.int8)
        return np.asarray(np.rint(np.clip(ratio, self.low, self.high)), dtype=np.int8)

    def rounded(self, x: Floats, alpha: float) -> Floats:
        """The values [M, K] that the codes stand for."""
        return self.codes(x, alpha) * np.float32(alpha)

    def gradients(self, x: Floats, alpha: float, upstream: Floats) -> tuple[Floats, float]:
        """The gradients of x [M, K] and of α, given that of the rounded values (LSQ, arXiv 1902.08153).

        x: passes where the ratio is not clipped. α: code where clipped, code − ratio elsewhere; for signed binary the
        code alone. Summed, and scaled by 1/√(values · high).
        """
        codes = self.codes(x, alpha)
        ratio = (x - self.offsets(x)) / np.float32(alpha)
        inside = (ratio > self.low) & (ratio < self.high)
        binary = self.bits == 1 and self.signed
        slope = codes if binary else np.where(inside, codes - ratio, codes)
        share = 1 / np.sqrt(x.size * self.high)
        return np.where(inside, upstream, 0).astype(np.float32), float((upstream * slope).sum() * share)


def _check_alpha(alpha: float) -> None:
    if not (np.isfinite(alpha) and alpha > 0):
        raise NearbankError(f"elastic activations: alpha is {alpha}; expected a number above 0")

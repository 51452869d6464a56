"""Weight quantisers of "Binary and Ternary Natural Language Generation" (Liu et al., ACL 2023, arXiv 2306.01841).

Per output row with n entries W and mean μ:

    ternary  α·round(clip((W − μ)/α, −1, 1)),  α = (4/3)·‖W − μ‖₁/n
    binary   α·sign((W − μ)/α),                α = ‖W − μ‖₁/n

The authors' code leaves μ out; `variant` says which form is meant. Rounding and packing are those of
`nearbank.formats`; training through the quantisers is `nearbank.models.training`'s matter; 8-bit activations are
`nearbank.kernels.activations`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import FORMATS, Format, Quantised

Floats = npt.NDArray[np.float32]

VARIANTS = ("paper", "reference")


@dataclass(frozen=True)
class WeightQuantiser:
    """Rounds a weight matrix to ternary or binary codes with one scale α per output row.

    variant: "paper" subtracts each row's mean first, "reference" (the authors' code) does not.
    """

    format: str = "ternary"
    variant: str = "paper"

    def __post_init__(self) -> None:
        if self.format not in ("ternary", "binary"):
            raise NearbankError(f"weight quantiser: format '{self.format}'; expected ternary or binary")
        check_variant(self.variant)

    @property
    def stored_as(self) -> Format:
        return FORMATS[self.format]

    def apply(self, weights: npt.NDArray[Any]) -> Quantised:
        """Codes [N, K] and scales α [N, 1] of float weights [N, K]. Raises on NaN and infinity."""
        return self.stored_as.quantise(self._centred(weights))

    def rounded(self, weights: npt.NDArray[Any]) -> Floats:
        """The values [N, K] that the quantised weights stand for."""
        return self.stored_as.dequantise(self.apply(weights))

    def _centred(self, weights: npt.NDArray[Any]) -> Floats:
        matrix = np.asarray(weights, dtype=np.float32)
        if self.variant == "reference" or matrix.ndim != 2:
            return matrix
        mean = matrix.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        return np.asarray(matrix - mean)


def check_variant(variant: str) -> None:
    """Raises NearbankError unless `variant` is known."""
    if variant not in VARIANTS:
        raise NearbankError(f"unknown quantiser variant '{variant}'; known: {', '.join(VARIANTS)}")

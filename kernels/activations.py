"""Activations as integers: per-token int8 by the largest magnitude.

Learned 2-bit and 1-bit quantisers belong to the models; their codes enter at `linear_codes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.kernels.arrays import floats32, is_float, taken
from nearbank.kernels.backends import backend_named
from nearbank.kernels.reference.norm import NORMS, normed

Floats = npt.NDArray[np.float32]
EPSILON = np.float32(1e-5)
LEAST_EPSILON = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Rows:
    """Integer activations: value[m, k] = scales[m] · codes[m, k]; sums[m] = Σ codes[m]."""

    codes: npt.NDArray[np.int8]
    scales: Floats
    sums: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Norm:
    """A norm of each row before it is rounded: kind "rms" or "layer", gain and bias float32 [K] or None."""

    kind: str
    gain: Floats | None = None
    bias: Floats | None = None
    epsilon: np.float32 = EPSILON

    @classmethod
    def checked(cls, kind: str, gain: Any, bias: Any, epsilon: float, columns: int) -> Norm:
        """Raises NearbankError for a norm, a vector or an epsilon that cannot be."""
        if kind not in NORMS:
            raise NearbankError(f"unknown norm '{kind}'; supported: {', '.join(NORMS)} or None")
        if not isinstance(epsilon, Real) or not LEAST_EPSILON <= epsilon < np.inf:
            raise NearbankError(f"norm epsilon {epsilon!r}; expected a number above 0 that float32 holds")
        vectors = [None if v is None else floats32(taken(v, n)[0]) for n, v in (("gain", gain), ("bias", bias))]
        for name, vector in zip(("gain", "bias"), vectors, strict=True):
            if vector is not None and vector.shape != (columns,):
                raise NearbankError(f"'{name}' is {list(vector.shape)}; expected [{columns}]")
        return cls(kind, vectors[0], vectors[1], np.float32(epsilon))

    def apply(self, rows: Floats) -> Floats:
        """The normalised rows."""
        return normed(rows, self.kind, self.gain, self.bias, self.epsilon)


def checked_rows(rows: npt.NDArray[Any], name: str = "x") -> Floats:
    """Rows as contiguous float32 [M, K]. Raises NearbankError, naming what was given."""
    if rows.ndim != 2 or not is_float(rows):
        raise NearbankError(f"'{name}' is {rows.dtype}{list(rows.shape)}; expected floats [M, K]")
    return floats32(rows)


def quantise_rows(x: Any, backend: str = "auto", norm: Norm | None = None) -> Rows:
    """Round each row of x [M, K] to int8: scale = max|x| / 127, code = x / scale to nearest even.

    A row of zeros has scale 0 and codes 0. With a norm, the rows are normalised first. Raises NearbankError on NaN
    and infinity.
    """
    rows, kernels = checked_rows(taken(x, "x")[0]), backend_named(backend)
    together = getattr(kernels, "quantise_normed", None)  # not every backend has both in one kernel
    if norm is not None and together is not None:
        codes, scales, sums = together(rows, norm.kind, norm.gain, norm.bias, norm.epsilon)
    else:
        codes, scales, sums = kernels.quantise_rows(rows if norm is None else norm.apply(rows))
    if not np.isfinite(scales).all():
        bad = int(np.flatnonzero(~np.isfinite(scales))[0])
        beyond = norm is not None and bool(np.isfinite(rows[bad]).all())
        why = f"is beyond float32 after the norm '{norm.kind}'" if norm and beyond else "holds NaN or infinity"
        raise NearbankError(f"'x' row {bad} {why}; expected finite activations")
    return Rows(codes, scales, sums)

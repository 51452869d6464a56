"""Activations as integers: per-token int8 by the largest magnitude.

Learned 2-bit and 1-bit quantisers belong to the models; their codes enter at `linear_codes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.kernels.arrays import floats32, taken
from nearbank.kernels.backends import backend_named

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """Integer activations: value[m, k] = scales[m] · codes[m, k]; sums[m] = Σ codes[m]."""

    codes: npt.NDArray[np.int8]
    scales: Floats
    sums: npt.NDArray[np.int32]


def checked_rows(rows: npt.NDArray[Any], name: str = "x") -> Floats:
    """Rows as contiguous float32 [M, K]. Raises NearbankError, naming what was given."""
    if rows.ndim != 2 or rows.dtype not in (np.float32, np.float16, np.float64):
        raise NearbankError(f"'{name}' is {rows.dtype}{list(rows.shape)}; expected floats [M, K]")
    return floats32(rows)


def quantise_rows(x: Any, backend: str = "auto") -> Rows:
    """Round each row of x [M, K] to int8: scale = max|x| / 127, code = x / scale to nearest even.

    A row of zeros has scale 0 and codes 0. Raises NearbankError on NaN and infinity.
    """
    rows = checked_rows(taken(x, "x")[0])
    codes, scales, sums = backend_named(backend).quantise_rows(rows)
    if not np.isfinite(scales).all():
        bad = int(np.flatnonzero(~np.isfinite(scales))[0])
        raise NearbankError(f"'x' row {bad} holds NaN or infinity; expected finite activations")
    return Rows(codes, scales, sums)

"""Activations as codes and scales, one row at a time: how a trained checkpoint rounds its activations, in NumPy.

| kind | signed | nowhere negative |
|---|---|---|
| int8 | code = x / (max|x| / 127) | code = x / (max x / 255) |
| int4 | code = x / (max|x| / 7) | code = x / (max x / 15) |
| elastic2, elastic1 | `nearbank.models.elastic.Elastic`, one learned α per tensor | the same |
| twn | −1, 0, 1: 0 below 0.7 · mean|x|; scale: mean|x| of the others | 0, 1 alike |
| bwn | −1, 1 by sign; scale: mean|x| | 1 where x > 0; scale: mean x |

The last two are the quantisers of TWN (arXiv 1605.04711) and BWN (arXiv 1603.05279). int4 is for rounding after
training alone; of the others, training's own, with gradients, is `nearbank.models.training.elastic`. "fp32" in a
checkpoint rounds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import FORMATS
from nearbank.kernels import Matrix, linear_codes, quantise_rows
from nearbank.models.elastic import Elastic

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int16]

KINDS = ("fp32", "int8", "elastic2", "elastic1", "twn", "bwn")
FORMATS_OF = MappingProxyType(
    {"int8": "int8", "int4": "int4", "elastic2": "ternary", "twn": "ternary", "elastic1": "binary", "bwn": "binary"}
)
TWN_SHARE = np.float32(0.7)


@dataclass(frozen=True)
class Rounding:
    """One kind of rounding. signed: values may be negative; form: of elastic kinds, whose α is given."""

    kind: str
    signed: bool = True
    form: str = "paper"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in FORMATS_OF:
            raise NearbankError(f"unknown activation rounding '{self.kind}'; known: {', '.join(FORMATS_OF)}")

    @property
    def format(self) -> str:
        """The format with as many bits as a code: int8, int4, ternary (2 bits) or binary."""
        return FORMATS_OF[self.kind]

    @property
    def scale_bytes(self) -> int:
        """Bytes of scale that every row stores: none where the scale is learned."""
        return 0 if self.kind.startswith("elastic") else 4

    def apply(self, x: Floats) -> tuple[Codes, Floats]:
        """x [M, K] → codes [M, K], scales [M]; the values are scale · code."""
        return _RULES[self.kind](x, self)

    def multiply(self, x: Floats, matrix: Matrix) -> Floats:
        """x [M, K], rounded, times packed weights → [M, N]."""
        codes, scales = self.apply(x)
        levels = "int8" if self.format == "int4" else self.format
        y: Floats = linear_codes(codes.astype(np.int8), scales, matrix, levels)
        return y


def _eight_bits(x: Floats, rounding: Rounding) -> tuple[Codes, Floats]:
    if rounding.signed:
        rows = quantise_rows(x, "numpy")
        return rows.codes.astype(np.int16), rows.scales
    return _evenly(x, 255)


def _four_bits(x: Floats, rounding: Rounding) -> tuple[Codes, Floats]:
    return _evenly(x, 7 if rounding.signed else 15)


def _evenly(x: Floats, top: int) -> tuple[Codes, Floats]:
    """Codes up to `top` for the largest magnitude of a row."""
    scales = np.asarray(np.abs(x).max(axis=1, initial=0) / np.float32(top), dtype=np.float32)
    steps = np.where(scales > 0, scales, np.float32(1))[:, None]
    return np.rint(x / steps).astype(np.int16), scales


def _elastic(x: Floats, rounding: Rounding) -> tuple[Codes, Floats]:
    kind = Elastic(int(rounding.kind[-1]), rounding.signed, rounding.form)
    return kind.codes(x, rounding.alpha).astype(np.int16), np.full(len(x), rounding.alpha, np.float32)


def _twn(x: Floats, _rounding: Rounding) -> tuple[Codes, Floats]:
    size = np.abs(x)
    large = size > TWN_SHARE * size.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    total = np.where(large, size, 0).sum(axis=1, dtype=np.float64)
    return (np.sign(x) * large).astype(np.int16), (total / np.maximum(large.sum(axis=1), 1)).astype(np.float32)


def _bwn(x: Floats, rounding: Rounding) -> tuple[Codes, Floats]:
    low = -1 if rounding.signed else 0
    up = x >= 0 if rounding.signed else x > 0
    return np.where(up, 1, low).astype(np.int16), np.abs(x).mean(axis=1, dtype=np.float64).astype(np.float32)


_RULES: Mapping[str, Callable[[Floats, Rounding], tuple[Codes, Floats]]] = MappingProxyType(
    {"int8": _eight_bits, "int4": _four_bits, "elastic2": _elastic, "elastic1": _elastic, "twn": _twn, "bwn": _bwn}
)


@dataclass(frozen=True)
class AttentionRounding:
    """How one layer's attention rounds: queries, keys and values per token and head, probabilities per query."""

    q: Rounding
    k: Rounding
    v: Rounding
    p: Rounding

    def bytes_per_token(self, kv_heads: int, head_dim: int) -> int:
        """Bytes of K and V of one token in one layer, packed, with their scales."""
        per_head = [FORMATS[r.format].row_bytes(head_dim) + r.scale_bytes for r in (self.k, self.v)]
        return kv_heads * sum(per_head)

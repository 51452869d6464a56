"""The values that integer activations may take: int8, and the 2-bit and 1-bit ones of ternary and binary models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError


@dataclass(frozen=True)
class Levels:
    """Activations take the values low, low + step … high, stored in `bits` bits."""

    name: str
    low: int
    high: int
    step: int
    bits: int


_ALL = (
    Levels("int8", -128, 127, 1, 8),
    Levels("ternary", -1, 1, 1, 2),
    Levels("uint2", 0, 3, 1, 2),
    Levels("binary", -1, 1, 2, 1),
    Levels("uint1", 0, 1, 1, 1),
)
LEVELS: Mapping[str, Levels] = MappingProxyType({levels.name: levels for levels in _ALL})


def checked_levels(name: str, codes: npt.NDArray[Any]) -> Levels:
    """The levels called `name`. Raises NearbankError when a code is not one of them."""
    if name not in LEVELS:
        raise NearbankError(f"unknown activation levels '{name}'; known: {', '.join(LEVELS)}")
    levels = LEVELS[name]
    outside = codes.size and (codes.min() < levels.low or codes.max() > levels.high)
    if outside or (levels.step == 2 and not np.all(codes & 1)):
        raise NearbankError(
            f"activation codes are not all {name}: expected {levels.low} to {levels.high} in steps of {levels.step}"
        )
    return levels

"""What the ASIC computes, in numbers: sums by an adder tree, norms, GELU, softmax's parts, rounding to integers.

Everything is float32. Sums are those of an adder tree: neighbours pairwise. Divisions, roots and exponentials come in
two kinds: `EXACT`, and `PIM_GPT`, the published approximations with the terms and iterations that
`nearbank.mapping.asic` counts. What each costs in time is that module's matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Format, from_bf16, to_bf16
from nearbank.mapping.asic import RECIPROCAL_ITERATIONS, ROOT_ITERATIONS, TAYLOR_TERMS
from nearbank.mapping.bank_arithmetic import Singles, tree_sum

F = np.float32
LOG2_E = F(math.log2(math.e))
LEAST_EXPONENT = -126
MOST = F(87)  # e^87 < 2^126, the largest whose reciprocal is a normal number
SQRT_2_OVER_PI = F(math.sqrt(2 / math.pi))
GELU_CUBIC = F(0.044715)


@dataclass(frozen=True)
class AsicArithmetic:
    """exp(x); x / y for y > 0; x / √y for y > 0: elementwise in float32."""

    name: str
    exp: Callable[[Singles], Singles]
    divide: Callable[[Singles, Singles], Singles]
    over_root: Callable[[Singles, Singles], Singles]

    def norm(self, x: Singles, gain: Singles, bias: Singles, eps: float) -> Singles:
        """Layer norm over the last axis."""
        share = F(1 / x.shape[-1])
        centred = x - (tree_sum(x) * share)[..., None]
        variance = (tree_sum(centred * centred) * share)[..., None]
        return np.asarray(self.over_root(centred, variance + F(eps)) * gain + bias, dtype=F)

    def gelu(self, x: Singles) -> Singles:
        """x · σ(2u), u = √(2/π)·(x + 0.044715 x³): GELU's tanh form."""
        u = SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x)
        return np.asarray(self.divide(x, F(1) + self.exp(F(-2) * u)), dtype=F)

    def quantise(self, x: Singles) -> tuple[npt.NDArray[np.int8], Singles]:
        """x [.., K] → int8 codes, and scales max|x| / 127 [..]; a vector of zeros has scale 0 and codes 0."""
        scales = np.asarray(np.abs(x).max(axis=-1) / F(127), dtype=F)
        ratio = self.divide(x, np.where(scales > 0, scales, F(1))[..., None])
        return np.clip(np.rint(ratio), -127, 127).astype(np.int8), scales

    def round_token(self, fmt: Format, values: npt.NDArray[np.floating[Any]]) -> Rounded:
        """K or V [.., head_dim] as the cache keeps it: each head's range over the codes, as the kernels round.

        The offset is rounded down to bf16 and the scale up, so that the codes cover the range.
        """
        values = values.astype(F)
        if fmt.is_float:
            codes = fmt.quantise(values.reshape(-1, values.shape[-1])).codes.reshape(values.shape)
            return Rounded(fmt, codes, np.ones(values.shape[:-1], F), np.zeros(values.shape[:-1], F))
        top = fmt.for_cache().high
        offsets = floor_bf16(values.min(axis=-1))
        scales = ceil_bf16((values.max(axis=-1) - offsets) / F(top))
        ratio = self.divide(values - offsets[..., None], np.where(scales > 0, scales, F(1))[..., None])
        codes = np.clip(np.rint(ratio), 0, top).astype(np.int16) - signed_zero(fmt)
        return Rounded(fmt, codes.astype(np.int8 if fmt.name == "int8" else np.uint8), scales, offsets)


@dataclass(frozen=True)
class Rounded:
    """K or V in a cache's format: codes [.., head_dim] as they lie in the banks, scales and offsets [..] in float32.

    value = offset + scale · (code + signed_zero); floats have scale 1 and offset 0.
    """

    format: Format
    codes: npt.NDArray[Any]
    scales: Singles
    offsets: Singles

    @property
    def values(self) -> Singles:
        """What the codes stand for."""
        if self.format.is_float:
            return from_bf16(self.codes) if self.format.name == "bf16" else self.codes.astype(F)
        levels = self.codes.astype(F) + F(signed_zero(self.format))
        return np.asarray(self.offsets[..., None] + self.scales[..., None] * levels, dtype=F)


def signed_zero(fmt: Format) -> int:
    """The MAC units' int8 is signed, the cache's codes run from 0 to 255: 128 is taken off, and added by the ASIC."""
    return 128 if fmt.name == "int8" else 0


def floor_bf16(values: Singles) -> Singles:
    """The largest bf16 value not above each value."""
    return _truncated(values, np.signbit(values))


def ceil_bf16(values: Singles) -> Singles:
    """The smallest bf16 value not below each value."""
    return _truncated(values, ~np.signbit(values))


def _truncated(values: Singles, away: npt.NDArray[np.bool_]) -> Singles:
    """Values with the upper 16 bits alone, away from zero where `away`."""
    bits = np.ascontiguousarray(values, dtype=F).view(np.uint32)
    return from_bf16(((bits + np.where(away, np.uint32(0xFFFF), np.uint32(0))) >> np.uint32(16)).astype(np.uint16))


def bf16(values: Singles) -> Singles:
    """Rounded to bf16, as on the way to the global buffer."""
    return from_bf16(to_bf16(values.astype(F)))


def taylor_exp(x: Singles) -> Singles:
    """2^(i + f) with x·log2(e) = i + f, |f| ≤ 1/2, and the series of 2^f up to `TAYLOR_TERMS` by Horner's rule."""
    exponent = np.clip(x * LOG2_E, F(LEAST_EXPONENT), F(126))
    whole = np.rint(exponent)
    f = exponent - whole
    series = np.zeros_like(f)
    for k in range(TAYLOR_TERMS, 0, -1):
        series = (series + F(math.log(2) ** k / math.factorial(k))) * f
    power = ((whole.astype(np.int32) + 127) << 23).view(F)
    return np.asarray(np.where(whole > LEAST_EXPONENT, (series + F(1)) * power, F(0)), dtype=F)


def newton_divide(x: Singles, y: Singles) -> Singles:
    """x · 1/y: a first guess of the reciprocal from y's exponent bits, then Newton-Raphson's r ← r·(2 − y·r)."""
    y = np.ascontiguousarray(y, dtype=F)
    r = (np.int32(0x7EF311C7) - y.view(np.int32)).view(F)
    for _ in range(RECIPROCAL_ITERATIONS):
        r = r * (F(2) - y * r)
    return np.asarray(x * r, dtype=F)


def fast_over_root(x: Singles, y: Singles) -> Singles:
    """x · 1/√y by the fast inverse square root."""
    y = np.ascontiguousarray(y, dtype=F)
    r = (np.int32(0x5F3759DF) - (y.view(np.int32) >> 1)).view(F)
    half = F(0.5) * y
    for _ in range(ROOT_ITERATIONS):
        r = r * (F(1.5) - half * r * r)
    return np.asarray(x * r, dtype=F)


def _exact_exp(x: Singles) -> Singles:
    return np.asarray(np.exp(np.minimum(x, MOST)), dtype=F)


def _exact_divide(x: Singles, y: Singles) -> Singles:
    return np.asarray(x / y, dtype=F)


def _exact_over_root(x: Singles, y: Singles) -> Singles:
    return np.asarray(x / np.sqrt(y), dtype=F)


EXACT = AsicArithmetic("exact", _exact_exp, _exact_divide, _exact_over_root)
PIM_GPT = AsicArithmetic("pim-gpt", taylor_exp, newton_divide, fast_over_root)
ARITHMETICS = {each.name: each for each in (EXACT, PIM_GPT)}


def arithmetic_named(name: str) -> AsicArithmetic:
    """Raises `NearbankError` with the known names."""
    if name not in ARITHMETICS:
        raise NearbankError(f"unknown ASIC arithmetic {name!r}; known: {', '.join(ARITHMETICS)}")
    return ARITHMETICS[name]

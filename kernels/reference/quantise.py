"""Activations to int8 and cache rows to unsigned codes: the definition."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nearbank.formats import from_bf16

Floats = npt.NDArray[np.float32]


def quantise_rows(x: Floats) -> tuple[npt.NDArray[np.int8], Floats, npt.NDArray[np.int32]]:
    """x [M, K] → int8 codes, scales max|x| / 127 [M], sums of codes [M]; code = x / scale to nearest even."""
    scales = (np.abs(x).max(axis=1, initial=0.0) / np.float32(127)).astype(np.float32)
    ratio = np.zeros_like(x)
    with np.errstate(all="ignore"):
        np.divide(x, scales[:, None], out=ratio, where=scales[:, None] != 0)
        codes = np.nan_to_num(np.clip(np.rint(ratio), -127, 127)).astype(np.int8)
    return codes, scales, codes.sum(axis=1, dtype=np.int32)


def floor_bf16(values: Floats) -> npt.NDArray[np.uint16]:
    """The largest bfloat16 not above each value, as bits."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    away = np.where(bits >> 31 == 1, np.uint32(0xFFFF), np.uint32(0))
    return ((bits + away) >> np.uint32(16)).astype(np.uint16)


def ceil_bf16(values: Floats) -> npt.NDArray[np.uint16]:
    """The smallest bfloat16 not below each value ≥ 0, as bits."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0xFFFF)) >> np.uint32(16)).astype(np.uint16)


def quantise_tokens(
    values: Floats, top: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """values […, D] → codes 0 … top […, D], scale and offset […] as bfloat16 bits.

    value ≈ offset + scale · code. The offset is rounded down and the scale up, so codes cover the range.
    """
    scales, offsets = token_grid(values.min(axis=-1), values.max(axis=-1), top)
    step = from_bf16(scales)[..., None]
    shifted = values - from_bf16(offsets)[..., None]
    ratio = np.zeros_like(values)
    np.divide(shifted, step, out=ratio, where=step != 0)
    codes = np.clip(np.rint(ratio), 0, top).astype(np.uint8)
    return codes, scales, offsets


def token_grid(low: Floats, high: Floats, top: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Scale and offset, as bfloat16 bits, of codes 0 … top that cover low … high, the offset rounded down, the scale
    up."""
    offsets = floor_bf16(low)
    return ceil_bf16(((high - from_bf16(offsets)) / np.float32(top)).astype(np.float32)), offsets

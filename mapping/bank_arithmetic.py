"""The arithmetic of a bank's MAC unit: what it takes packed bytes for, and the order in which it adds.

Products of floating values are summed in float32: an adder tree over the lanes of one MAC command, then one addition
to the accumulator per command, in the order of the commands. Sums of integers are exact.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import format_named, from_bf16, to_bf16

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Levels = npt.NDArray[Any]  # int8 or float32

_NO_CODE = 127  # in the tables of formats below a byte, whose levels are all smaller


def decode(fmt: str, data: Bytes, strict: bool = True) -> Levels:
    """What a unit takes packed bytes […, bytes] for: float32 values, or int8 codes with a fixed zero taken off.

    Formats whose zeros are stored (int4, int2) give their codes; the ASIC takes the zeros off. Bytes that are no codes
    are refused unless `strict` is False.
    """
    form = format_named(fmt)
    data = np.ascontiguousarray(data)
    if fmt == "bf16":
        return from_bf16(data.view(np.uint16))
    if form.values_per_word == 1:
        return data.view(np.int8) if fmt == "int8" else data.view(f"f{form.word_bytes}").astype(np.float32)
    levels = _levels_of_bytes(fmt)[data].reshape(*data.shape[:-1], -1)
    if strict:
        check_codes(fmt, levels)
    return levels


def check_codes(fmt: str, levels: Levels) -> None:
    """`NearbankError` where levels came from bytes that are no codes of the format."""
    if format_named(fmt).values_per_word > 1 and (levels == _NO_CODE).any():
        raise NearbankError(f"a bank holds bytes that are no codes of {fmt}; they were never written, or as another")


@lru_cache
def _levels_of_bytes(fmt: str) -> npt.NDArray[np.int8]:
    """int8[256, values per byte]: the levels in every byte; `_NO_CODE` in bytes that hold none."""
    form = format_named(fmt)
    table = np.full((256, form.values_per_word), _NO_CODE, dtype=np.int8)
    for byte in range(256):
        try:
            codes = form.unpack(np.array([[byte]], dtype=np.uint8), form.values_per_word).astype(np.int8)
        except NearbankError:
            continue
        table[byte] = codes if form.stores_zeros else form.step * codes - form.zero
    return table


def integer_macs(sums: Floats, weights: Levels, vectors: Levels) -> Floats:
    """sums […] plus the products of all commands and lanes: weights and vectors […, commands, lanes]. Exact."""
    products = weights.astype(np.float32) * vectors.astype(np.float32)  # int8 · int8: exact, and so are ≤ 512 of them
    return np.asarray(sums + products.sum(axis=-1).sum(axis=-1, dtype=np.float64))


def float_macs(sums: Floats, weights: Levels, vectors: Levels) -> Floats:
    """The same in float32: a tree over the lanes, then command after command to the accumulator."""
    trees = tree_sum(weights.astype(np.float32) * vectors.astype(np.float32))
    chain = np.concatenate([sums.astype(np.float32)[..., None], trees], axis=-1)
    return np.add.accumulate(chain, axis=-1)[..., -1].astype(np.float64)


def tree_sum(terms: Singles) -> Singles:
    """Neighbours added pairwise in float32 over the last axis, as an adder tree does."""
    while terms.shape[-1] > 1:
        if terms.shape[-1] % 2:
            terms = np.concatenate([terms, np.zeros_like(terms[..., :1])], axis=-1)
        terms = terms[..., 0::2] + terms[..., 1::2]
    return terms[..., 0]


def read_out(sums: Floats, accumulator_bytes: int) -> Floats:
    """Accumulators as they leave the bank: rounded to bf16 with two bytes, as they are with four."""
    if accumulator_bytes != 2:
        return sums
    return from_bf16(to_bf16(sums.astype(np.float32))).astype(np.float64)

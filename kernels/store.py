"""The memory of a KV cache: preallocated pages of codes with their scales and offsets.

One page holds `PAGE` tokens of one layer and KV head. Within a row (one token, one head), int8 has one
value per byte; int4 and int2 interleave blocks of 16 values, so that one mask and shift yields 16
neighbours: byte i of 16 holds value i in its lowest bits, value i + 16 above, and so on.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.formats import Format, from_bf16, to_bf16

PAGE = 256
LANES = 16
CACHE_LINE = 64
ROW_DTYPE: dict[str, Any] = {"fp32": np.float32, "fp16": np.uint16, "bf16": np.uint16}


@dataclass(frozen=True)
class CacheStore:
    """Pages of K and V: rows [layers, pages, kv heads, PAGE, row], params […, PAGE, 2] (scale, offset; bf16).

    `params` of a float format are empty. `head_dim` is what the caller sees; rows may be padded.
    `table` int64: the sequence's first 256 tokens are in page table[0] of every layer, the next in table[1], and so on.
    """

    format: Format
    head_dim: int
    keys: npt.NDArray[Any]
    values: npt.NDArray[Any]
    key_params: npt.NDArray[np.uint16]
    value_params: npt.NDArray[np.uint16]
    table: npt.NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Bytes of the pages allocated."""
        return sum(a.nbytes for a in (self.keys, self.values, self.key_params, self.value_params))


def with_pages(store: CacheStore, pages: list[int]) -> CacheStore:
    """The same memory as a sequence sees it that holds these pages, in this order."""
    return replace(store, table=np.array(pages, np.int64))


def row_length(fmt: Format, head_dim: int) -> int:
    """Elements of one stored row: floats, or bytes of packed codes, padded to whole vectors."""
    per_byte = 1 if fmt.is_float else fmt.values_per_word
    return -(-head_dim // (LANES * per_byte)) * LANES


def allocate(fmt: Format, layers: int, kv_heads: int, head_dim: int, capacity: int) -> CacheStore:
    """Zeroed pages for `capacity` tokens per layer, rounded up to whole pages."""
    pages = -(-capacity // PAGE)
    shape = (layers, pages, kv_heads, PAGE)
    rows = (*shape, row_length(fmt, head_dim))
    params = (*shape, 2) if not fmt.is_float else (*shape, 0)
    dtype = ROW_DTYPE.get(fmt.name, np.uint8)
    if math.prod(rows) > sys.maxsize // 16:
        raise MemoryError  # NumPy has another error for what no address reaches
    keys, values = (_aligned_zeros(rows, dtype) for _ in range(2))
    key_params, value_params = (_aligned_zeros(params, np.uint16) for _ in range(2))
    return CacheStore(fmt, head_dim, keys, values, key_params, value_params, np.arange(pages, dtype=np.int64))


def _aligned_zeros(shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """Zeros that start on a cache line, so that no vector load crosses one."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(nbytes + CACHE_LINE, np.uint8)
    aligned: npt.NDArray[Any] = raw[-raw.ctypes.data % CACHE_LINE :][:nbytes].view(dtype).reshape(shape)
    return aligned


def stored_floats(fmt: Format, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Floats as a float format stores them: float32, or 16-bit patterns."""
    if fmt.name == "fp32":
        return values
    return values.astype(np.float16).view(np.uint16) if fmt.name == "fp16" else to_bf16(values)


def floats_stored(fmt: Format, stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The floats behind what a float format stores."""
    if fmt.name == "fp32":
        return stored
    return stored.view(np.float16).astype(np.float32) if fmt.name == "fp16" else from_bf16(stored)


def pack_rows(codes: npt.NDArray[np.uint8], fmt: Format) -> npt.NDArray[np.uint8]:
    """Codes […, D padded] → interleaved bytes […, row]."""
    per_byte, bits = fmt.values_per_word, int(fmt.code_bits)
    blocks = codes.reshape(*codes.shape[:-1], -1, per_byte, LANES)
    packed = np.zeros((*blocks.shape[:-2], LANES), np.uint8)
    for place in range(per_byte):
        packed |= blocks[..., place, :] << np.uint8(place * bits)
    return packed.reshape(*codes.shape[:-1], -1)


def unpack_rows(packed: npt.NDArray[np.uint8], fmt: Format) -> npt.NDArray[np.uint8]:
    """Interleaved bytes […, row] → codes […, D padded]."""
    per_byte, bits = fmt.values_per_word, int(fmt.code_bits)
    blocks = packed.reshape(*packed.shape[:-1], packed.shape[-1] // LANES, 1, LANES)
    shifts = (np.arange(per_byte, dtype=np.uint8) * bits).astype(np.uint8)[:, None]
    codes = (blocks >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(*packed.shape[:-1], packed.shape[-1] * per_byte)

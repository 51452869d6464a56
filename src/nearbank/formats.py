"""How numbers are stored: bits per value, packing, scales and zeros.

A `Format` is a frozen value in `FORMATS`. It knows its byte layout, counts the bytes it really stores
(scales and zeros included), and quantises, packs, unpacks and dequantises with NumPy. It is the one
vocabulary for weights, activations and the KV cache; how fast a format multiplies is the kernels' matter.

Every integer format means one thing:

    value = scale · (step · code − zero)

with `code` the stored integer. `scale` is one float32 per tensor, per row, or per group of columns.
Packed rows start on a byte; value k of a row lies in word k // n at the low-to-high place k % n, where n
values share a word; a row's last word is filled with the format's neutral code. A word is a byte, but for int3: 8
values there share 3 bytes, the first holding the lowest bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Per = Literal["none", "tensor", "row", "group"]


@dataclass(frozen=True)
class Scaling:
    """Which values share a scale (and a zero), and how many bytes those take.

    `group` is the number of neighbouring columns that share a scale when `per` is "group".
    """

    per: Per = "none"
    group: int = 0
    scale_bytes: int = 4
    zero_bytes: int = 0

    def groups(self, cols: int) -> int:
        """Scales in one row of `cols` values (1 for "row" and "tensor")."""
        return -(-cols // self.group) if self.per == "group" else 1

    def shape(self, rows: int, cols: int) -> tuple[int, int]:
        """The shape of the array of scales of a rows × cols matrix."""
        shapes = {"none": (0, 0), "tensor": (1, 1), "row": (rows, 1)}
        return shapes.get(self.per, (rows, self.groups(cols)))

    def bytes_for(self, rows: int, cols: int) -> int:
        """Bytes of the scales and zeros of a rows × cols matrix."""
        across, down = self.shape(rows, cols)
        return across * down * (self.scale_bytes + self.zero_bytes)

    def spread(self, values: Array, cols: int) -> Array:
        """Scales or zeros [rows or 1, groups], repeated to one per column: [rows or 1, cols or 1]."""
        return np.repeat(values, self.group, axis=1)[:, :cols] if self.per == "group" else values


PER_ROW = Scaling("row")
GROUP_128 = Scaling("group", group=128, zero_bytes=1)
# What the KV cache keeps for one token and head: a scale and an offset, each in bf16.
PER_TOKEN = Scaling("row", scale_bytes=2, zero_bytes=2)


@dataclass(frozen=True)
class Quantised:
    """Unpacked codes [rows, cols] with their scales [·, groups] and, for some formats, zeros alike."""

    codes: Array
    scales: Floats | None = None
    zeros: Bytes | None = None


@dataclass(frozen=True)
class Format:
    """One way to store numbers.

    `values_per_word` codes lie in `word_bytes` bytes. Integer formats have codes from `low` to `high`,
    the meaning `scale · (step · code − zero)`, and `zero` unless each group stores its own.
    """

    name: str
    summary: str
    values_per_word: int
    word_bytes: int
    scaling: Scaling = Scaling()
    low: int = 0
    high: int = 0
    step: int = 1
    zero: int = 0

    @property
    def spec(self) -> str:
        """The name that `format_named` turns back into this format: "int4", "int4-g64", "ternary-tensor"."""
        if self.scaling == FORMATS[self.name].scaling:
            return self.name
        suffix = f"g{self.scaling.group}" if self.scaling.per == "group" else self.scaling.per
        return f"{self.name}-{suffix}"

    @property
    def is_float(self) -> bool:
        """True for fp32, fp16 and bf16, which have neither codes nor scales."""
        return self.scaling.per == "none"

    @property
    def code_bits(self) -> Fraction:
        """Bits of one packed code, without scales: 32 … 1, and 8/5 for ternary-b3."""
        return Fraction(8 * self.word_bytes, self.values_per_word)

    @property
    def stores_zeros(self) -> bool:
        """True when every scale has its own zero beside it."""
        return self.scaling.zero_bytes > 0

    def row_bytes(self, cols: int) -> int:
        """Bytes of one packed row of `cols` values, rounded up to whole words, without scales."""
        return -(-cols // self.values_per_word) * self.word_bytes

    def bytes_for(self, rows: int, cols: int) -> int:
        """Bytes really stored for a rows × cols matrix: packed rows, scales and zeros."""
        if rows < 0 or cols < 0:
            raise NearbankError(f"format {self.name}: a matrix of {rows} × {cols} values cannot be stored")
        return rows * self.row_bytes(cols) + self.scaling.bytes_for(rows, cols)

    def bits_per_value(self, rows: int, cols: int) -> float:
        """Bits really stored per value of a rows × cols matrix, scales and zeros included."""
        return 8 * self.bytes_for(rows, cols) / (rows * cols)

    def with_scaling(self, scaling: Scaling) -> Format:
        """The same codes with other scales."""
        if self.is_float or scaling.per == "none":
            raise NearbankError(f"format {self.name} cannot have scales '{scaling.per}'")
        if scaling.per == "group" and scaling.group < 1:
            raise NearbankError(f"format {self.name}: group size {scaling.group}; expected 1 or more")
        return replace(self, scaling=scaling)

    def for_cache(self) -> Format:
        """The form a KV cache stores: one scale and offset (bf16 each) per row = one token and head.

        Codes are unsigned there, int8 too: value = offset + scale · code.
        """
        if self.is_float:
            return self
        return replace(self, scaling=PER_TOKEN, low=0, high=(1 << int(self.code_bits)) - 1)

    def quantise(self, values: Array) -> Quantised:
        """Round float values [rows, cols] to this format. Raises on NaN and infinity."""
        matrix = _checked_matrix(self, values)
        quantised: Quantised = _QUANTISERS[self.name](self, matrix)
        return quantised

    def dequantise(self, quantised: Quantised) -> Floats:
        """The float32 values [rows, cols] that the codes stand for."""
        if self.is_float:
            return _floats_of(self, quantised.codes)
        assert quantised.scales is not None
        cols = quantised.codes.shape[1]
        scales = self.scaling.spread(quantised.scales, cols)
        return (self.levels(quantised) * scales).astype(np.float32)

    def levels(self, quantised: Quantised) -> npt.NDArray[np.int16]:
        """The integers `step · code − zero` [rows, cols], before scaling."""
        zero: Any = self.zero
        if quantised.zeros is not None:
            zero = self.scaling.spread(quantised.zeros.astype(np.int16), quantised.codes.shape[1])
        return np.asarray(self.step * quantised.codes.astype(np.int16) - zero, dtype=np.int16)

    def pack(self, codes: Array) -> Bytes:
        """Codes [rows, cols] as bytes [rows, row_bytes(cols)]. Raises on codes out of range."""
        _check_codes(self, codes)
        if self.values_per_word == 1:
            return np.ascontiguousarray(codes).view(np.uint8).reshape(codes.shape[0], -1)
        words = _in_places(self, codes).astype(np.uint32) @ _place_values(self)
        parts = words[:, :, None] >> (8 * np.arange(self.word_bytes, dtype=np.uint32))
        return np.asarray((parts & 255).astype(np.uint8).reshape(codes.shape[0], -1))

    def unpack(self, packed: Bytes, cols: int) -> Array:
        """Bytes [rows, row_bytes(cols)] back to codes [rows, cols]. Raises on codes out of range."""
        _check_packed(self, packed, cols)
        if self.values_per_word == 1:
            return np.ascontiguousarray(packed).view(_CODE_DTYPE[self.name])
        base = self.high + 1 if self.name == "ternary-b3" else 1 << int(self.code_bits)
        places = _place_values(self)
        parts = packed.reshape(packed.shape[0], -1, self.word_bytes).astype(np.uint32)
        words = (parts << (8 * np.arange(self.word_bytes, dtype=np.uint32))).sum(axis=2, dtype=np.uint32)
        digits = words[:, :, None] // places
        digits[:, :, :-1] %= base
        codes = digits.reshape(packed.shape[0], -1).astype(np.uint8)
        _check_codes(self, codes)
        kept: Array = codes[:, :cols]
        return kept


_CODE_DTYPE: Mapping[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16, "int8": np.int8}


def _place_values(fmt: Format) -> npt.NDArray[np.uint32]:
    """What each place of a word counts: powers of 3 for base 3, else powers of two, low bits first."""
    if fmt.name == "ternary-b3":
        return np.array([1, 3, 9, 27, 81], dtype=np.uint32)
    return np.array([1 << (i * int(fmt.code_bits)) for i in range(fmt.values_per_word)], dtype=np.uint32)


def _in_places(fmt: Format, codes: Array) -> Array:
    """Codes [rows, cols] → [rows, words, values per word], padded with the neutral code."""
    rows, cols = codes.shape
    padded = np.full((rows, fmt.row_bytes(cols) // fmt.word_bytes * fmt.values_per_word), fmt.zero, dtype=np.uint8)
    padded[:, :cols] = codes
    return padded.reshape(rows, -1, fmt.values_per_word)


def _check_codes(fmt: Format, codes: Array) -> None:
    if codes.ndim != 2:
        raise NearbankError(f"format {fmt.name}: codes have shape {codes.shape}; expected [rows, columns]")
    expected = _CODE_DTYPE.get(fmt.name)
    if expected is not None and codes.dtype != expected:
        raise NearbankError(f"format {fmt.name}: codes are {codes.dtype}; expected {np.dtype(expected)}")
    if fmt.is_float or codes.size == 0:
        return
    least, most = int(codes.min()), int(codes.max())
    if least < fmt.low or most > fmt.high:
        raise NearbankError(
            f"format {fmt.name}: codes from {least} to {most}; expected {fmt.low} to {fmt.high}. "
            "The data is damaged or in another format"
        )


def _check_packed(fmt: Format, packed: Bytes, cols: int) -> None:
    expected = fmt.row_bytes(cols)
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != expected:
        raise NearbankError(
            f"format {fmt.name}: packed data is {packed.dtype}{list(packed.shape)}; "
            f"expected uint8[rows, {expected}] for {cols} columns"
        )


def _checked_matrix(fmt: Format, values: Array) -> Floats:
    matrix = np.asarray(values)
    if matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.floating):
        raise NearbankError(
            f"format {fmt.name}: cannot quantise {matrix.dtype}{list(matrix.shape)}; expected floats [rows, columns]"
        )
    if not np.isfinite(matrix).all():
        raise NearbankError(f"format {fmt.name}: the values hold NaN or infinity; nothing was quantised")
    return matrix.astype(np.float32, copy=False)


def to_bf16(values: Array) -> npt.NDArray[np.uint16]:
    """Float32 values as bfloat16 bits, rounded to nearest even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def from_bf16(bits: npt.NDArray[np.uint16]) -> Floats:
    """Bfloat16 bits as float32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _floats_of(fmt: Format, codes: Array) -> Floats:
    return from_bf16(codes) if fmt.name == "bf16" else codes.astype(np.float32)


def _quantise_float(fmt: Format, values: Floats) -> Quantised:
    if fmt.name == "bf16":
        return Quantised(to_bf16(values))
    with np.errstate(over="ignore"):
        codes = values.astype(_CODE_DTYPE[fmt.name])
    if not np.isfinite(codes).all():
        raise NearbankError(f"format {fmt.name}: the values reach {np.abs(values).max():.3g}, beyond its range")
    return Quantised(codes)


def _grouped(fmt: Format, values: Floats, fill: float) -> Floats:
    """Values as [scale rows, groups, values per group], the last group padded with `fill`."""
    rows, cols = values.shape
    if fmt.scaling.per == "tensor":
        return values.reshape(1, 1, -1)
    groups = fmt.scaling.groups(cols)
    width = fmt.scaling.group if fmt.scaling.per == "group" else cols
    padded = np.full((rows, groups * width), fill, dtype=np.float32)
    padded[:, :cols] = values
    return padded.reshape(rows, groups, width)


def _mean_magnitude(fmt: Format, values: Floats) -> Floats:
    """Mean |value| over what shares a scale, ignoring the padding of a last group: [·, groups]."""
    magnitude = np.abs(_grouped(fmt, values, 0.0)).astype(np.float64)
    present = _grouped(fmt, np.ones_like(values), 0.0).sum(axis=2)
    return np.asarray(magnitude.sum(axis=2) / np.maximum(present, 1), dtype=np.float32)


def _ratio(values: Floats, scales: Floats) -> Floats:
    """values / scales, and 0 where the scale is 0."""
    out = np.zeros(np.broadcast_shapes(values.shape, scales.shape), dtype=np.float32)
    with np.errstate(over="ignore"):
        np.divide(values, scales, out=out, where=scales != 0)
    return out


def _quantise_ternary(fmt: Format, values: Floats) -> Quantised:
    scales = (np.float32(4 / 3) * _mean_magnitude(fmt, values)).astype(np.float32)
    ratio = _ratio(values, fmt.scaling.spread(scales, values.shape[1]))
    return Quantised((np.rint(np.clip(ratio, -1, 1)) + 1).astype(np.uint8), scales)


def _quantise_binary(fmt: Format, values: Floats) -> Quantised:
    return Quantised((values >= 0).astype(np.uint8), _mean_magnitude(fmt, values))


def _quantise_symmetric(fmt: Format, values: Floats) -> Quantised:
    peak = np.abs(_grouped(fmt, values, 0.0)).max(axis=2, initial=0.0)
    scales = (peak / np.float32(fmt.high)).astype(np.float32)
    ratio = _ratio(values, fmt.scaling.spread(scales, values.shape[1]))
    return Quantised(np.clip(np.rint(ratio), -fmt.high, fmt.high).astype(np.int8), scales)


def _quantise_with_zeros(fmt: Format, values: Floats) -> Quantised:
    """Asymmetric: the range of each group, widened to hold 0, over the codes low … high."""
    grouped = _grouped(fmt, values, 0.0).astype(np.float64)
    least, most = grouped.min(axis=2, initial=0.0), grouped.max(axis=2, initial=0.0)
    scales = ((most - least) / fmt.high).astype(np.float32)
    zeros = np.clip(np.rint(_ratio((-least).astype(np.float32), scales)), 0, fmt.high).astype(np.uint8)
    cols = values.shape[1]
    ratio = np.rint(_ratio(values, fmt.scaling.spread(scales, cols)))
    codes = np.clip(ratio + fmt.scaling.spread(zeros.astype(np.float32), cols), fmt.low, fmt.high)
    return Quantised(codes.astype(np.uint8), scales, zeros)


_QUANTISERS: Mapping[str, Any] = {
    "fp32": _quantise_float,
    "fp16": _quantise_float,
    "bf16": _quantise_float,
    "int8": _quantise_symmetric,
    "int4": _quantise_with_zeros,
    "int3": _quantise_with_zeros,
    "int2": _quantise_with_zeros,
    "ternary": _quantise_ternary,
    "ternary-b3": _quantise_ternary,
    "binary": _quantise_binary,
}

# fmt: off
_ALL = (
    Format("fp32",       "IEEE single precision",                 1, 4),
    Format("fp16",       "IEEE half precision",                   1, 2),
    Format("bf16",       "the upper half of fp32",                1, 2),
    Format("int8",       "two's complement, scale per row",       1, 1, PER_ROW, low=-128, high=127),
    Format("int4",       "2 per byte, scale and zero per group",  2, 1, GROUP_128, high=15),
    Format("int3",       "8 in 3 bytes, scale, zero per group",   8, 3, GROUP_128, high=7),
    Format("int2",       "4 per byte, scale and zero per group",  4, 1, GROUP_128, high=3),
    Format("ternary",    "−1, 0, 1 as codes 0, 1, 2: 4 per byte", 4, 1, PER_ROW, high=2, zero=1),
    Format("ternary-b3", "the same in base 3, 5 per byte: files", 5, 1, PER_ROW, high=2, zero=1),
    Format("binary",     "−1, 1 as bits 0, 1: 8 per byte",        8, 1, PER_ROW, high=1, step=2, zero=1),
)
# fmt: on
FORMATS: Mapping[str, Format] = MappingProxyType({fmt.name: fmt for fmt in _ALL})


def format_named(name: str) -> Format:
    """The format called `name`; "-tensor", "-row" or "-g64" after it chooses other scales.

    Raises NearbankError with the known names.
    """
    if name in FORMATS:
        return FORMATS[name]
    match = re.fullmatch(r"(.+)-(tensor|row|g(\d+))", name)
    if match is None or match[1] not in FORMATS:
        raise NearbankError(
            f"unknown format '{name}'; known: {', '.join(FORMATS)} "
            "(integer formats also with -tensor, -row or -g64 for the scales)"
        )
    base = FORMATS[match[1]]
    per: Per = "group" if match[3] else "row" if match[2] == "row" else "tensor"
    chosen = base.with_scaling(replace(base.scaling, per=per, group=int(match[3] or 0)))
    return replace(chosen, name=base.name)

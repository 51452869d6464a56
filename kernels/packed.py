"""A weight matrix as it lies in a file: packed codes, scales and zeros, the same bytes on every machine.

What a backend makes of it at load is the backend's matter (`nearbank.kernels.prepare`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import FORMATS, Format, Quantised, format_named
from nearbank.kernels.arrays import is_torch, taken

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def as_format(chosen: Format | str) -> Format:
    """A format given by name or as itself."""
    if not isinstance(chosen, (Format, str)):
        raise NearbankError(f"format {chosen!r}; expected a name, one of {', '.join(FORMATS)}, or a Format")
    return format_named(chosen) if isinstance(chosen, str) else chosen


@dataclass(frozen=True)
class PackedMatrix:
    """W [rows N, columns K] of y = x · Wᵀ in a neutral layout.

    `packed` is uint8 [N, format.row_bytes(K)], `scales` float32 and `zeros` uint8 of the shape
    format.scaling.shape(N, K); both are None where the format has none.
    """

    format: Format
    shape: tuple[int, int]
    packed: Bytes
    scales: Floats | None = None
    zeros: Bytes | None = None

    def __post_init__(self) -> None:
        rows, cols = self.shape
        if rows < 1 or cols < 1:
            raise NearbankError(f"a matrix of {rows} × {cols} weights; expected at least 1 × 1")
        _expect("packed", self.packed, np.uint8, (rows, self.format.row_bytes(cols)), self)
        _check_scaling(self)

    @classmethod
    def from_codes(
        cls, fmt: Format | str, codes: Array, scales: Floats | None = None, zeros: Bytes | None = None
    ) -> PackedMatrix:
        """Pack stored codes [N, K] (ternary: 0, 1, 2), or floats of a float format."""
        chosen, codes = as_format(fmt), np.asarray(codes)
        _check_whole(codes)
        if not chosen.is_float and codes.dtype.kind not in "iu":
            raise NearbankError(f"format {chosen.name}: codes are {codes.dtype}; expected integers")
        packed = chosen.pack(codes)
        return cls(chosen, (codes.shape[0], codes.shape[1]), packed, scales, zeros)

    @classmethod
    def quantise(cls, values: Any, fmt: Format | str) -> PackedMatrix:
        """Round float weights [N, K], a torch parameter too, to the format by its own quantiser and pack them."""
        chosen = as_format(fmt)
        weights = taken(values.detach() if is_torch(values) else values, "values")[0]
        _check_whole(weights)
        rounded = chosen.quantise(weights)
        return cls.from_codes(chosen, rounded.codes, rounded.scales, rounded.zeros)

    @property
    def nbytes(self) -> int:
        """Bytes stored: packed rows, scales and zeros."""
        return self.packed.nbytes + sum(part.nbytes for part in (self.scales, self.zeros) if part is not None)

    def quantised(self) -> Quantised:
        """Unpacked codes [N, K] with scales and zeros. Raises on codes that the format does not have."""
        return Quantised(self.format.unpack(self.packed, self.shape[1]), self.scales, self.zeros)

    def levels(self) -> npt.NDArray[np.int16]:
        """The integers [N, K] that the codes stand for, before scaling."""
        return self.format.levels(self.quantised())

    def in_even_fields(self) -> PackedMatrix:
        """The same weights with codes that never lie across bytes: int3 in the fields of int4, all else as it is."""
        if self.format.name != "int3":
            return self
        wider = FORMATS["int4"].with_scaling(self.format.scaling)
        return PackedMatrix.from_codes(wider, self.quantised().codes, self.scales, self.zeros)

    def dequantise(self) -> Floats:
        """The float32 weights [N, K]."""
        return self.format.dequantise(self.quantised())


def _check_whole(given: Array) -> None:
    if given.ndim == 2 and given.size == 0:
        raise NearbankError(f"a matrix of {given.shape[0]} × {given.shape[1]} weights; expected at least 1 × 1")


def _expect(name: str, array: Array | None, dtype: Any, shape: tuple[int, ...], matrix: PackedMatrix) -> None:
    if array is None or array.dtype != dtype or array.shape != shape:
        given = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
        raise NearbankError(
            f"{matrix.format.spec} matrix {matrix.shape[0]} × {matrix.shape[1]}: '{name}' is {given}; "
            f"expected {np.dtype(dtype)}{list(shape)}"
        )


def _check_scaling(matrix: PackedMatrix) -> None:
    fmt, shape = matrix.format, matrix.format.scaling.shape(*matrix.shape)
    if fmt.is_float:
        if matrix.scales is not None or matrix.zeros is not None:
            raise NearbankError(f"format {fmt.name} has no scales or zeros, yet some were given")
        return
    _expect("scales", matrix.scales, np.float32, shape, matrix)
    assert matrix.scales is not None
    if not np.isfinite(matrix.scales).all():
        raise NearbankError(f"{fmt.spec} matrix: scales hold NaN or infinity; expected finite float32")
    if fmt.stores_zeros:
        _expect("zeros", matrix.zeros, np.uint8, shape, matrix)
        assert matrix.zeros is not None
        if int(matrix.zeros.max(initial=0)) > fmt.high:
            raise NearbankError(f"{fmt.spec} matrix: zeros reach {matrix.zeros.max()}; expected 0 to {fmt.high}")

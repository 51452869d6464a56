"""y = x · Wᵀ for packed weights on any backend: the checks and the choice, none of the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels.activations import Floats, Norm, Rows, checked_rows, quantise_rows
from nearbank.kernels.arrays import on_gpu, plain, taken
from nearbank.kernels.backends import backend_named, resolve
from nearbank.kernels.levels import checked_levels
from nearbank.kernels.packed import PackedMatrix
from nearbank.kernels.support import longest_sum, summed_columns


@dataclass(frozen=True)
class Matrix:
    """Weights [N, K] repacked for one backend. Made by `prepare`, used by `linear`."""

    format: Format
    shape: tuple[int, int]
    backend: str
    state: Any


def prepare(packed: PackedMatrix, backend: str = "auto") -> Matrix:
    """Repack weights once, at load. Codes that the format does not have raise NearbankError."""
    if not isinstance(packed, PackedMatrix):
        raise NearbankError(f"'packed' is a {type(packed).__name__}; expected PackedMatrix.quantise(weights, format)")
    name = resolve(backend)
    _check_sum_fits(packed)
    return Matrix(packed.format, packed.shape, name, backend_named(name).prepare(packed))


def linear(
    x: Any,
    matrix: Matrix,
    activations: str = "auto",
    norm: str | None = None,
    gain: Any = None,
    bias: Any = None,
    epsilon: float = 1e-5,
) -> Any:
    """x [M, K] float → x · Wᵀ [M, N] float32: a torch tensor for a torch tensor, else a NumPy array.

    With weights prepared for the backend "cupy", x may lie on the GPU: y stays there, nothing is copied or waited for.

    activations: "int8" rounds each row of x to int8 and multiplies integers; "fp32" keeps x.
    "auto" is "int8" for integer weights and "fp32" for float weights.

    norm: "rms" or "layer" normalises each row of x first, with float32 `gain` and `bias` [K] if given; see
    `nearbank.kernels.reference.norm`.
    """
    if not isinstance(matrix, Matrix):
        raise NearbankError(f"'matrix' is a {type(matrix).__name__}; expected prepare(PackedMatrix, backend)")
    chosen = _activations_for(matrix, activations)
    if norm is None and (gain is not None or bias is not None):
        raise NearbankError("'gain' and 'bias' belong to a norm; expected norm='rms' or 'layer'")
    if on_gpu(x) and matrix.backend == "cupy":
        return _linear_on_gpu(x, matrix, chosen, norm, gain, bias, epsilon)
    given, handed_back = taken(x, "x")
    rows = checked_rows(given)
    _check_width(rows.shape, matrix)
    if len(rows) == 0:
        return handed_back(np.empty((0, matrix.shape[0]), np.float32))
    before = None if norm is None else Norm.checked(norm, gain, bias, epsilon, rows.shape[1])
    if chosen == "fp32":
        kept = rows if before is None else before.apply(rows)
        return handed_back(backend_named(matrix.backend).matmul_floats(kept, matrix.state))
    return handed_back(_multiply(quantise_rows(rows, matrix.backend, before), matrix))


def linear_codes(codes: Any, scales: Any, matrix: Matrix, levels: str = "int8") -> Any:
    """Integer activations codes [M, K] int8 with scales [M] float32 → [M, N] float32, of the codes' kind of array.

    levels: which values the codes take, of `nearbank.kernels.levels`: "int8", "ternary" (−1, 0, 1), "uint2"
    (0 … 3), "binary" (−1, 1), "uint1" (0, 1). Fewer levels may be faster; the result is the same.

    y[m, n] = Σ over groups g, in order, of float32(Σ codes · levels) · (scales[m] · weight scale[n, g]),
    the inner sum exact. Weights must be of an integer format.
    """
    if matrix.format.is_float:
        raise NearbankError(f"integer activations need integer weights; these are {matrix.format.name}")
    given, handed_back = taken(codes, "codes")
    rows = _checked_codes(given, taken(scales, "scales")[0])
    _check_width(rows.codes.shape, matrix)
    if len(rows.codes) == 0:
        return handed_back(np.empty((0, matrix.shape[0]), np.float32))
    chosen = checked_levels(levels, rows.codes)
    low = getattr(backend_named(matrix.backend), "matmul_low", None)  # not every backend has a faster way
    if low is None or chosen.bits == 8:
        return handed_back(_multiply(rows, matrix))
    return handed_back(low(rows.codes, rows.scales, rows.sums, matrix.state, chosen))


def _checked_codes(codes: npt.NDArray[Any], scales: npt.NDArray[Any]) -> Rows:
    if codes.ndim != 2 or codes.dtype != np.int8:
        raise NearbankError(f"'codes' is {codes.dtype}{list(codes.shape)}; expected int8 [M, K]")
    if scales.dtype != np.float32 or scales.shape != codes.shape[:1]:
        raise NearbankError(f"'scales' is {scales.dtype}{list(scales.shape)}; expected float32[{len(codes)}]")
    if not np.isfinite(scales).all():
        raise NearbankError("'scales' hold NaN or infinity; expected finite float32")
    sums = codes.sum(axis=1, dtype=np.int32)
    return Rows(plain(codes), plain(scales), sums)


def _linear_on_gpu(
    x: Any, matrix: Matrix, activations: str, norm: str | None, gain: Any, bias: Any, epsilon: float
) -> Any:
    from nearbank.kernels import cupy_backend  # needs CuPy, which these weights show to be there

    return cupy_backend.linear(x, matrix.state, norm, gain, bias, epsilon, activations=activations)


def _multiply(rows: Rows, matrix: Matrix) -> Floats:
    return backend_named(matrix.backend).matmul_codes(rows.codes, rows.scales, rows.sums, matrix.state)


def _activations_for(matrix: Matrix, wanted: str) -> str:
    if wanted not in ("auto", "int8", "fp32"):
        raise NearbankError(f"unknown activations '{wanted}'; known: auto, int8, fp32")
    if wanted == "int8" and matrix.format.is_float:
        raise NearbankError(f"int8 activations need integer weights; these are {matrix.format.name}")
    return ("fp32" if matrix.format.is_float else "int8") if wanted == "auto" else wanted


def _check_width(shape: tuple[int, ...], matrix: Matrix) -> None:
    if shape[1] != matrix.shape[1]:
        raise NearbankError(f"'x' has {shape[1]} columns; these weights have K = {matrix.shape[1]}")


def _check_sum_fits(packed: PackedMatrix) -> None:
    """Refuse a K so long that an int32 sum could overflow."""
    fmt = packed.format
    if not fmt.is_float and summed_columns(fmt, packed.shape[1]) > longest_sum(fmt):
        raise NearbankError(
            f"{fmt.spec}: K = {packed.shape[1]} could overflow an int32 sum; supported up to {longest_sum(fmt)}"
        )

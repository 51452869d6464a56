"""GPTQ (arXiv 2210.17323): weights rounded one column after the other, each error made good by the columns to come.

For a matrix W [N, K] with inputs X [tokens, K], H = XᵀX. After column k is rounded the columns that are left move by
−error · [H⁻¹]ₖ,· / [H⁻¹]ₖₖ, H⁻¹ taken over the columns not yet rounded, which keeps ‖X(W − Ŵ)ᵀ‖ smallest. Columns go
in falling order of the diagonal of H ("act-order"), a share of whose mean is added to it. Scales and zeros are those
of rounding to nearest, so any integer format and grouping works, and the kernels run the result as they run any other.
A row that rounding to nearest serves better keeps that.

`quantise_matrix` is one matrix, `fit_weights` a whole decoder: matrices in the order in which a calibration text meets
them, each on the activations that the matrices already rounded leave it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from nearbank.errors import NearbankError
from nearbank.formats import Array, Format, Quantised, format_named
from nearbank.kernels import PackedMatrix, linear, prepare
from nearbank.models.execution import Floats, Linear, Pass
from nearbank.models.kv import kv_scheme
from nearbank.models.kv_fit import calibration_parts
from nearbank.models.model import Model
from nearbank.models.plain_cache import PlainCache
from nearbank.models.rounding import Rounding
from nearbank.models.tensors import Precision

Doubles = npt.NDArray[np.float64]
Matrices = Mapping[str, PackedMatrix]  # "layer.name" → the rounded matrix

DAMPING = 0.01
BLOCK = 128  # columns whose errors reach the rest at once
WINDOWS = 32  # contexts of calibration text
PARTS = ("packed", "scales", "zeros")


@dataclass(frozen=True)
class Grid:
    """The values that codes can stand for: scales and zeros [N or 1, K], one for every column."""

    fmt: Format
    scales: Doubles
    zeros: Doubles

    def at(self, columns: Any) -> Grid:
        """The same of some columns, or of columns in another order."""
        zeros = self.zeros if self.zeros.shape[1] == 1 else self.zeros[:, columns]
        scales = self.scales if self.scales.shape[1] == 1 else self.scales[:, columns]
        return Grid(self.fmt, scales, zeros)

    def codes(self, values: Doubles) -> Doubles:
        """The nearest codes of values [N, ·]; the neutral one where the scale is 0."""
        ratio = np.divide(values, self.scales, out=np.zeros_like(values), where=self.scales != 0)
        return np.asarray(np.clip(np.rint((ratio + self.zeros) / self.fmt.step), self.fmt.low, self.fmt.high))

    def values(self, codes: Array) -> Doubles:
        """What codes [N, ·] stand for."""
        return np.asarray(self.scales * (self.fmt.step * codes.astype(np.float64) - self.zeros))


def grid_of(fmt: Format, quantised: Quantised, cols: int) -> Grid:
    """The grid of scales and zeros as they are stored."""
    assert quantised.scales is not None
    scales = fmt.scaling.spread(quantised.scales.astype(np.float64), cols)
    if quantised.zeros is None:
        return Grid(fmt, scales, np.array([[float(fmt.zero)]]))
    return Grid(fmt, scales, fmt.scaling.spread(quantised.zeros.astype(np.float64), cols))


def quantise_matrix(
    weights: Floats, hessian: Doubles, fmt: Format, damping: float = DAMPING, block: int = BLOCK
) -> PackedMatrix:
    """W [N, K] in `fmt`, whose inputs have XᵀX = hessian [K, K] (any multiple of it).

    damping: share of the diagonal's mean that is added to it.
    """
    if fmt.is_float:
        raise NearbankError(f"GPTQ rounds to integer formats; {fmt.name} has no codes to choose")
    nearest = fmt.quantise(weights)
    exact, grid = weights.astype(np.float64), grid_of(fmt, nearest, weights.shape[1])
    order = np.argsort(-np.diag(hessian), kind="stable")
    codes = np.empty(weights.shape)
    factor = inverse_factor(hessian[np.ix_(order, order)], damping)
    codes[:, order] = _choose(exact[:, order], factor, grid.at(order), block)
    better = output_error(exact - grid.values(codes), hessian) < output_error(
        exact - grid.values(nearest.codes), hessian
    )
    kept = np.where(better[:, None], codes, nearest.codes).astype(nearest.codes.dtype)
    return PackedMatrix.from_codes(fmt, kept, nearest.scales, nearest.zeros)


def output_error(difference: Doubles, hessian: Doubles) -> Doubles:
    """‖X d‖² of each row d of W − Ŵ: [N]."""
    return np.asarray(((difference @ hessian) * difference).sum(axis=1))


def inverse_factor(hessian: Doubles, damping: float) -> Doubles:
    """Upper U [K, K] with UᵀU = (H + damping · mean diagonal)⁻¹: row k, from k on, is what column k's error does."""
    mean = float(np.diag(hessian).mean())
    damped = hessian + np.eye(len(hessian)) * (damping * mean if mean > 0 else 1.0)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(damped)).T)


def _choose(weights: Doubles, factor: Doubles, grid: Grid, block: int) -> Doubles:
    """Codes [N, K], columns in order; errors reach the columns beyond a block when it is done."""
    moved, codes = weights.copy(), np.empty(weights.shape)
    for start in range(0, weights.shape[1], block):
        end = min(start + block, weights.shape[1])
        errors = np.empty((len(weights), end - start))
        for k in range(start, end):
            here, column = grid.at(slice(k, k + 1)), moved[:, k : k + 1]
            codes[:, k : k + 1] = here.codes(column)
            errors[:, k - start] = ((column - here.values(codes[:, k : k + 1])) / factor[k, k])[:, 0]
            moved[:, k + 1 : end] -= np.outer(errors[:, k - start], factor[k, k + 1 : end])
        moved[:, end:] -= errors @ factor[start:end, end:]
    return codes


@dataclass
class _Fitting(Pass):
    """A pass that rounds every matrix it meets, but the LM head, to the activations that reach it."""

    fmt: Format = field(kw_only=True)
    found: dict[str, PackedMatrix] = field(default_factory=dict, kw_only=True)

    def matmul(self, weight: Linear, x: Floats) -> Floats:
        if weight.name == "lm_head":
            return weight(x)
        exact = x.astype(np.float64)
        packed = quantise_matrix(float_weights(weight), exact.T @ exact, self.fmt)
        self.found[f"{self.layer}.{weight.name}"] = packed
        rounded = prepare(packed, weight.matrix.backend)
        return replace(weight, matrix=rounded, inputs="fp32", rounding=None)(x)


def float_weights(weight: Linear) -> Floats:
    """The values [N, K] of a prepared matrix: its products with unit vectors."""
    unit = np.eye(weight.matrix.shape[1], dtype=np.float32)
    return np.ascontiguousarray(np.asarray(linear(unit, weight.matrix, "fp32")).T)


def fit_matrices(model: Model, text: str, weights: str, windows: int = WINDOWS) -> dict[str, PackedMatrix]:
    """The block matrices of a full-precision model, rounded on the first `windows` contexts of `text`."""
    _check_model(model, weights)
    parts, shape = calibration_parts(model, text, windows), model.shape
    sizes = (shape.layers, shape.kv_heads, shape.head_dim)
    exact = kv_scheme("fp32")
    caches = [PlainCache(*sizes, len(part), exact, shape.windows, shape.softcap) for part in parts]
    run = _Fitting(np.concatenate(parts), [len(part) for part in parts], caches, fmt=format_named(weights))
    model.network.forward(run)
    return run.found


def _check_model(model: Model, weights: str) -> None:
    if model.weights != "fp32" or model.inputs != "fp32":
        raise NearbankError(f"GPTQ rounds full-precision models; {model.name} has {model.weights} weights already")
    if model.shape.encoder is not None:
        raise NearbankError(
            f"GPTQ is fitted to decoders, and {model.name} has an encoder; round its weights to nearest"
        )
    if format_named(weights).is_float:
        raise NearbankError(f"GPTQ rounds to integer formats, such as int4; not to {weights}")


def fit_weights(model: Model, text: str, weights: str, inputs: str | None = None, windows: int = WINDOWS) -> Model:
    """The model with its block matrices rounded to `weights` by GPTQ; inputs: their activations, as in `load_model`."""
    return with_matrices(model, fit_matrices(model, text, weights, windows), weights, inputs)


def with_matrices(model: Model, matrices: Matrices, weights: str, inputs: str | None = None) -> Model:
    """The model with these block matrices in place of its own."""
    precision = Precision(weights, inputs)
    rounding = Rounding("int4") if inputs == "int4" else None

    def replaced(part: Any, layer: int) -> Any:
        if isinstance(part, Linear):
            packed = matrices[f"{layer}.{part.name}"]
            matrix = prepare(packed, part.matrix.backend)
            return replace(part, matrix=matrix, inputs=precision.activations, rounding=rounding)
        if isinstance(part, tuple):
            return tuple(replaced(one, layer) for one in part)
        if not is_dataclass(part) or isinstance(part, type):
            return part
        return replace(part, **{f.name: replaced(getattr(part, f.name), layer) for f in fields(part)})

    network: Any = model.network
    blocks = tuple(replaced(block, layer) for layer, block in enumerate(network.blocks))
    return replace(model, network=replace(network, blocks=blocks), weights=weights, inputs=precision.activations)


def save_matrices(path: Path, matrices: Matrices) -> None:
    """Write rounded matrices as safetensors: "layer.name.packed", ".scales" and, where there are some, ".zeros"."""
    parts = {f"{name}.{part}": getattr(matrix, part) for name, matrix in matrices.items() for part in PARTS}
    columns = {f"{name}.columns": np.array([matrix.shape[1]]) for name, matrix in matrices.items()}
    try:
        save_file({name: part for name, part in (parts | columns).items() if part is not None}, path)
    except (OSError, SafetensorError) as error:
        raise NearbankError(f"{path}: cannot write the matrices ({error})") from error


def load_matrices(path: Path, weights: str) -> dict[str, PackedMatrix]:
    """Read what `save_matrices` wrote, matrices in the format `weights`."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise NearbankError(f"{path}: no rounded matrices; expected a file that save_matrices wrote") from error
    names = sorted(name.removesuffix(".packed") for name in tensors if name.endswith(".packed"))
    if not names or any(f"{name}.columns" not in tensors for name in names):
        raise NearbankError(f"{path}: no rounded matrices; expected a file that save_matrices wrote")
    fmt = format_named(weights)

    def matrix(name: str) -> PackedMatrix:
        packed, scales, zeros = (tensors.get(f"{name}.{part}") for part in PARTS)
        assert packed is not None
        return PackedMatrix(fmt, (len(packed), int(tensors[f"{name}.columns"][0])), packed, scales, zeros)

    return {name: matrix(name) for name in names}

"""Checkpoints of our own models on disk: one safetensors file, its header in the file's metadata.

Per block matrix `h.{i}.attn.qkv`, `.attn.proj`, `.mlp.fc1`, `.mlp.fc2`: `<name>.codes` uint8 [N, packed K] in the
layout of `nearbank.formats`, and `<name>.scale` float32 [N]; where the scale of its input is learned, `<name>.alpha`
float32 [1], and `h.{i}.attn.q.alpha`, `k`, `v`, `p` likewise. Beside them `wte`, `wpe` (and `head` unless it is tied)
as float16, LayerNorms as float32. A full-precision checkpoint has `<name>.weight` instead, all in float32. Needs
neither torch nor a network of any kind; it only stores and checks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from nearbank.errors import NearbankError
from nearbank.formats import FORMATS, Quantised
from nearbank.models.config import Matrix, ModelConfig
from nearbank.models.quantize import check_variant
from nearbank.models.rounding import KINDS
from nearbank.models.shape import gpt_shape

Tensors = dict[str, npt.NDArray[Any]]

SCHEMA = "nearbank-checkpoint"
VERSION = 2
OLDEST = 1  # version 1 had no field "attention": nothing in it was rounded
HEADER_KEY = "nearbank"
DEFAULT_NAME = "shakespeare-ternary"


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from. Losses in nats per character over the whole validation split."""

    val_loss_nats: float
    val_loss_twin_nats: float
    twin_steps: int
    student_steps: int
    batch: int
    seed: int
    data_sha256: str
    date: str
    torch_version: str
    device: str


@dataclass(frozen=True)
class Checkpoint:
    """A model's description, vocabulary, origin and tensors by name."""

    config: ModelConfig
    vocabulary: str
    origin: Origin
    tensors: Tensors


def stored_codes(config: ModelConfig, tensors: Tensors, matrix: Matrix) -> Quantised:
    """The unpacked codes [N, K] and scales [N, 1] of a block matrix."""
    codes = FORMATS[config.weights].unpack(tensors[f"{matrix.name}.codes"], matrix.inputs)
    return Quantised(codes, tensors[f"{matrix.name}.scale"][:, None])


def bundled_path(name: str = DEFAULT_NAME) -> Path:
    """Where the checkpoint `name` that ships with the package lies."""
    return Path(__file__).parent / "checkpoints" / f"{name}.safetensors"


def bundled_names() -> list[str]:
    """Names of the checkpoints that ship with the package."""
    return sorted(path.stem for path in bundled_path().parent.glob("*.safetensors"))


def load_checkpoint(source: str | Path = DEFAULT_NAME) -> Checkpoint:
    """Read and check a checkpoint: the name of a bundled one, or a file.

    Raises NearbankError naming the file and what is wrong with it.
    """
    path = bundled_path(str(source)) if str(source) in bundled_names() else Path(source)
    header, tensors = _read(path)
    config, vocabulary, origin = _parse_header(path, header)
    _check_tensors(path, config, tensors)
    return Checkpoint(config, vocabulary, origin, tensors)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, first beside its place and then renamed into it."""
    _check_tensors(path, checkpoint.config, checkpoint.tensors)
    header = json.dumps(_header(checkpoint), ensure_ascii=True)
    part = path.with_suffix(".part")
    try:
        part.write_bytes(save(dict(sorted(checkpoint.tensors.items())), metadata={HEADER_KEY: header}))
        part.replace(path)
    except OSError as error:
        raise NearbankError(f"{path}: cannot write the checkpoint ({error.strerror})") from error


def _header(checkpoint: Checkpoint) -> dict[str, Any]:
    shape = checkpoint.config.shape
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "architecture": shape.family,
        "name": shape.name,
        "layers": shape.layers,
        "width": shape.width,
        "heads": shape.heads,
        "context": shape.context,
        "vocabulary": checkpoint.vocabulary,
        "tied_head": checkpoint.config.tied_head,
        "weights": checkpoint.config.weights,
        "activations": checkpoint.config.activations,
        "variant": checkpoint.config.variant or "",
        "attention": checkpoint.config.attention,
        "origin": asdict(checkpoint.origin),
    }


def _read(path: Path) -> tuple[dict[str, Any], Tensors]:
    if not path.is_file():
        raise NearbankError(
            f"{path}: no such checkpoint file; expected a .safetensors file or one of: {', '.join(bundled_names())}"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise NearbankError(f"{path}: truncated, or not a safetensors file ({error})") from error
    return _header_of(path, metadata), tensors


def _header_of(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        header = json.loads(metadata[HEADER_KEY])
    except (KeyError, ValueError):
        header = None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise NearbankError(
            f"{path}: a safetensors file without a {SCHEMA} header; expected one written by `nearbank train`"
        )
    if header.get("version") not in range(OLDEST, VERSION + 1):
        raise NearbankError(
            f"{path}: checkpoint version {header.get('version')!r}; this nearbank reads versions {OLDEST} to "
            f"{VERSION}. Train it again or use the nearbank that wrote it"
        )
    return {"attention": "fp32", **header}


_HEADER_TYPES: Mapping[str, type] = {
    "architecture": str,
    "name": str,
    "layers": int,
    "width": int,
    "heads": int,
    "context": int,
    "vocabulary": str,
    "tied_head": bool,
    "weights": str,
    "activations": str,
    "variant": str,
    "attention": str,
    "origin": dict,
}


_SUPPORTED: Mapping[str, tuple[str, ...]] = {
    "architecture": ("gpt",),
    "weights": ("ternary", "binary", "fp32"),
    "activations": KINDS,
    "attention": KINDS,
}


def _parse_header(path: Path, header: dict[str, Any]) -> tuple[ModelConfig, str, Origin]:
    for field, kind in _HEADER_TYPES.items():
        _check_field(path, field, header.get(field), kind)
    for field, expected in _SUPPORTED.items():
        if header[field] not in expected:
            raise NearbankError(
                f"{path}: header field '{field}' is {header[field]!r}; expected {' or '.join(map(repr, expected))}"
            )
    try:
        if header["weights"] != "fp32":
            check_variant(header["variant"])
        shape = gpt_shape(
            header["name"], header["layers"], header["width"], header["heads"],
            len(header["vocabulary"]), header["context"],
        )  # fmt: skip
    except NearbankError as error:
        raise NearbankError(f"{path}: {error}") from error
    formats = (header["weights"], header["activations"], header["variant"] or None, header["attention"])
    config = ModelConfig(shape, header["tied_head"], *formats)
    return config, header["vocabulary"], _parse_origin(path, header["origin"])


def _parse_origin(path: Path, origin: Mapping[str, Any]) -> Origin:
    kinds = {"int": int, "float": float, "str": str}
    for field in fields(Origin):
        _check_field(path, f"origin.{field.name}", origin.get(field.name), kinds[str(field.type)])
    losses = (origin["val_loss_nats"], origin["val_loss_twin_nats"])
    if not all(math.isfinite(loss) for loss in losses):
        raise NearbankError(f"{path}: header losses are {losses}; expected finite numbers")
    return Origin(**{field.name: origin[field.name] for field in fields(Origin)})


def _check_field(path: Path, field: str, value: Any, kind: type) -> None:
    if type(value) is not kind:
        raise NearbankError(f"{path}: header field '{field}' is {value!r}; expected a value of type {kind.__name__}")


def _expected_tensors(config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """dtype and shape of every tensor by name."""
    expected = config.floats() | dict.fromkeys(config.alphas(), ("float32", (1,)))
    for matrix in config.all_block_matrices() if config.is_packed else ():
        row_bytes = FORMATS[config.weights].row_bytes(matrix.inputs)
        expected[f"{matrix.name}.codes"] = ("uint8", (matrix.outputs, row_bytes))
        expected[f"{matrix.name}.scale"] = ("float32", (matrix.outputs,))
    return expected


def _check_tensors(path: Path, config: ModelConfig, tensors: Tensors) -> None:
    expected = _expected_tensors(config)
    for words, names in (
        ("lacks", expected.keys() - tensors.keys()),
        ("has unexpected", tensors.keys() - expected.keys()),
    ):
        if names:
            raise NearbankError(
                f"{path}: {words} {len(names)} tensors: {', '.join(sorted(names)[:8])}"
                f"{' …' if len(names) > 8 else ''}; expected those of a {config.shape.layers}-layer {config.name}"
            )
    for name, (dtype, dims) in expected.items():
        _check_tensor(path, name, tensors[name], dtype, dims)
    for matrix in config.all_block_matrices() if config.is_packed else ():
        _check_codes(path, config, matrix.name, tensors[f"{matrix.name}.codes"], matrix.inputs)
    for name in config.alphas():
        if not tensors[name][0] > 0:
            raise NearbankError(f"{path}: tensor '{name}' is {tensors[name][0]}; expected a scale above 0")


def _check_tensor(path: Path, name: str, tensor: npt.NDArray[Any], dtype: str, dims: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tensor.shape != dims:
        raise NearbankError(
            f"{path}: tensor '{name}' is {tensor.dtype}{list(tensor.shape)}; expected {dtype}{list(dims)}"
        )
    if dtype != "uint8" and not np.isfinite(tensor).all():
        raise NearbankError(f"{path}: tensor '{name}' holds NaN or infinity; expected finite numbers")


def _check_codes(path: Path, config: ModelConfig, name: str, packed: npt.NDArray[np.uint8], inputs: int) -> None:
    try:
        FORMATS[config.weights].unpack(packed, inputs)
    except NearbankError as error:
        raise NearbankError(f"{path}: tensor '{name}.codes': {error}") from error

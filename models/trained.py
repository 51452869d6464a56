"""A checkpoint of `nearbank train` as a model: packed matrices, and activations rounded as they were in training."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from nearbank.errors import NearbankError
from nearbank.kernels import PackedMatrix
from nearbank.kernels.backends import resolve
from nearbank.models.checkpoint import Checkpoint, stored_codes
from nearbank.models.config import LEARNED, Matrix
from nearbank.models.execution import Linear
from nearbank.models.gpt import Block, Gpt, load_gpt
from nearbank.models.model import Model
from nearbank.models.rounding import AttentionRounding, Rounding
from nearbank.models.tensors import Precision, Tensor, Tensors
from nearbank.models.tokenizer import CharTokenizer

TABLES = {"wte": "wte.weight", "wpe": "wpe.weight", "head": "lm_head.weight"}  # their names in a checkpoint
KERNELS_OWN = ("fp32", "int8")  # activations that `nearbank.kernels.linear` rounds itself


def checkpoint_model(
    checkpoint: Checkpoint, backend: str = "auto", kv: str | None = None, precision: Precision | None = None
) -> Model:
    """A checkpoint in memory as a model.

    kv: of the cache; bf16 unless given, but a model that was trained with rounded attention has its own. precision:
    what a full-precision checkpoint is rounded to. Raises NearbankError where the checkpoint already says.
    """
    config, name = checkpoint.config, resolve(backend)
    if precision is not None and config.is_packed:
        raise NearbankError(
            f"{config.name}: a trained checkpoint has its own formats; leave out weights, inputs and head"
        )
    if kv is not None and config.attention != "fp32":
        raise NearbankError(
            f"{config.name}: its attention was trained with {config.attention}; leave out the KV format"
        )
    held = precision or Precision(head="bf16" if config.is_packed else "fp32")
    network = load_gpt(config.shape, Tensors(_tensors(checkpoint), name, held))
    attention = _attention(checkpoint)
    return Model(
        _with_rounding(network, checkpoint),
        CharTokenizer(checkpoint.vocabulary),
        config.weights if config.is_packed else held.weights,
        _input_format(config.activations) if config.is_packed else held.activations,
        kv or (attention[0].k.format if attention else "bf16"),
        name,
        asdict(checkpoint.origin),
        attention=attention,
    )


def _tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Matrices packed or float, everything else as float32, by the names of `nearbank.models.gpt`."""
    config = checkpoint.config
    floats = {TABLES.get(n, n): checkpoint.tensors[n].astype(np.float32) for n in config.floats()}
    blocks = config.all_block_matrices() if config.is_packed else []
    return {**floats, **{f"{matrix.name}.weight": _packed(checkpoint, matrix) for matrix in blocks}}


def _packed(checkpoint: Checkpoint, matrix: Matrix) -> PackedMatrix:
    quantised = stored_codes(checkpoint.config, checkpoint.tensors, matrix)
    return PackedMatrix.from_codes(checkpoint.config.weights, quantised.codes, quantised.scales)


def _input_format(kind: str) -> str:
    return kind if kind in KERNELS_OWN else Rounding(kind).format


def _rounding(checkpoint: Checkpoint, kind: str, owner: str, signed: bool = True) -> Rounding:
    """`kind` with the scale that the checkpoint learned for `owner`, if it is one that learns."""
    alpha = float(checkpoint.tensors[f"{owner}.alpha"][0]) if kind in LEARNED else 1.0
    form = (checkpoint.config.variant or "paper") if signed else "paper"
    return Rounding(kind, signed, form, alpha)


def _with_rounding(network: Gpt, checkpoint: Checkpoint) -> Gpt:
    """Block matrices whose inputs are rounded as the checkpoint says."""
    kind = checkpoint.config.activations
    if kind in KERNELS_OWN:
        return network

    def rounded(linear: Linear, layer: int) -> Linear:
        rounding = _rounding(checkpoint, kind, f"h.{layer}.{linear.name}")
        return replace(linear, inputs=rounding.format, rounding=rounding)

    def block(layer: int, b: Block) -> Block:
        qkv, proj, fc1, fc2 = (rounded(linear, layer) for linear in (b.qkv, b.proj, b.fc1, b.fc2))
        return replace(b, qkv=qkv, proj=proj, fc1=fc1, fc2=fc2)

    return replace(network, blocks=tuple(block(i, b) for i, b in enumerate(network.blocks)))


def _attention(checkpoint: Checkpoint) -> tuple[AttentionRounding, ...] | None:
    """How each layer's attention rounds; None where it does not."""
    kind = checkpoint.config.attention
    if kind == "fp32":
        return None
    return tuple(
        AttentionRounding(*(_rounding(checkpoint, kind, f"h.{i}.attn.{part}", part != "p") for part in "qkvp"))
        for i in range(checkpoint.config.shape.layers)
    )

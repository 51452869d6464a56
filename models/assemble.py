"""Networks from tensors: packs or takes packed matrices, prepares them for a backend, checks every shape.

Where the tensors come from is the loaders' matter (`nearbank.models.load`, `nearbank.models.hf`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.kernels import PackedMatrix, prepare
from nearbank.models.execution import Floats, Linear
from nearbank.models.gpt import Block, Gpt, Norm
from nearbank.models.operations import inputs_for
from nearbank.models.shape import Shape

Tensor = npt.NDArray[np.float32] | PackedMatrix


@dataclass(frozen=True)
class Tensors:
    """Tensors by name, each handed out with its shape checked; a prefix walks into a layer."""

    tensors: Mapping[str, Tensor]
    backend: str
    weights: str | None = None  # a format to round float matrices of blocks to; None keeps them fp32
    source: str = "the checkpoint"
    prefix: str = ""

    def at(self, prefix: str) -> Tensors:
        """The same tensors, with names below `prefix`."""
        return Tensors(self.tensors, self.backend, self.weights, self.source, self.prefix + prefix)

    def floats(self, name: str, *shape: int) -> Floats:
        """A float32 tensor, dequantised if packed."""
        tensor = self._named(name, shape)
        values = tensor.dequantise() if isinstance(tensor, PackedMatrix) else tensor
        if not np.isfinite(values).all():
            raise NearbankError(f"{self.source}: tensor {self.prefix}{name} holds NaN or infinity; write it again")
        return values

    def linear(self, name: str, label: str, n: int, k: int, bias: str | None = None) -> Linear:
        """A block's matrix [n, k], called `label` in traces."""
        values = self._named(name, (n, k))
        packed = values if isinstance(values, PackedMatrix) else self._packed(self.floats(name, n, k))
        return self.multiplier(label, packed, None if bias is None else self.floats(bias, n))

    def multiplier(self, label: str, packed: PackedMatrix, bias: Floats | None = None) -> Linear:
        """A packed matrix ready to multiply: int8 activations for integer weights, float32 ones otherwise."""
        inputs = "fp32" if packed.format.is_float else inputs_for(packed.format.name)
        return Linear(label, prepare(packed, self.backend), inputs, bias)

    def _packed(self, values: Floats) -> PackedMatrix:
        return PackedMatrix.quantise(values, self.weights or "fp32")

    def _named(self, name: str, shape: tuple[int, ...]) -> Tensor:
        full = self.prefix + name
        if full not in self.tensors:
            raise NearbankError(f"{self.source}: tensor {full} is missing; expected float {list(shape)}")
        tensor = self.tensors[full]
        if tuple(tensor.shape) != shape:
            raise NearbankError(f"{self.source}: tensor {full} is {list(tensor.shape)}; expected {list(shape)}")
        return tensor


def gpt(shape: Shape, tensors: Tensors, head: str = "bf16") -> Gpt:
    """The bundled architecture. The head is tied to `wte` unless there is a `head`."""
    wte = tensors.floats("wte", shape.vocabulary, shape.width)
    return Gpt(
        shape,
        wte,
        tensors.floats("wpe", shape.context, shape.width),
        tuple(_block(shape, tensors.at(f"h.{i}.")) for i in range(shape.layers)),
        _norm(tensors.at("ln_f."), shape.width),
        tensors.multiplier("lm_head", PackedMatrix.quantise(_head(shape, tensors, wte), head)),
    )


def _head(shape: Shape, tensors: Tensors, wte: Floats) -> Floats:
    tied = "head" not in tensors.tensors
    return wte if tied else tensors.floats("head", shape.vocabulary, shape.width)


def _norm(tensors: Tensors, width: int) -> Norm:
    return Norm(tensors.floats("weight", width), tensors.floats("bias", width))


def _block(shape: Shape, tensors: Tensors) -> Block:
    width, hidden = shape.width, shape.hidden
    return Block(
        _norm(tensors.at("ln_1."), width),
        tensors.linear("attn.qkv", "attn.qkv", 3 * width, width),
        tensors.linear("attn.proj", "attn.proj", width, width),
        _norm(tensors.at("ln_2."), width),
        tensors.linear("mlp.fc1", "mlp.fc1", hidden, width),
        tensors.linear("mlp.fc2", "mlp.fc2", width, hidden),
    )

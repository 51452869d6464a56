"""A model's weights as `nearbank.models.device` uses them: matrices prepared for the GPU, vectors and tables there too.

Refuses, in one line, what the decoding kernels do not compute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.kernels.cuda.decode import Angles, Norm
from nearbank.kernels.cuda.host import Runtime
from nearbank.models import gpt, llama
from nearbank.models.execution import Linear
from nearbank.models.functions import gelu_tanh, relu, relu_squared, silu
from nearbank.models.model import Model
from nearbank.models.shape import Shape

ACTIVATIONS: dict[Callable[..., Any], str] = {gelu_tanh: "gelu", silu: "silu", relu_squared: "relu2", relu: "relu"}
NONE = Norm(0)


@dataclass(frozen=True)
class Part:
    """A matrix on the device, as Tiles or FloatRows. rounds: its inputs are int8."""

    weights: Any
    outputs: int
    bias: Any
    rounds: bool


@dataclass(frozen=True)
class DeviceBlock:
    """A decoder layer. qkv: one matrix or three; wide: fc1, or gate and up, apart or as one."""

    norm_1: Norm
    qkv: tuple[Part, ...]
    attn_norm: Norm
    proj: Part
    norm_2: Norm
    wide: tuple[Part, ...]
    mlp_norm: Norm
    down: Part


@dataclass(frozen=True)
class DeviceWeights:
    """All of a network. positions: learned ones [C, D], or None."""

    shape: Shape
    embedding: Any
    positions: Any
    embedding_scale: float
    angles: Angles
    blocks: tuple[DeviceBlock, ...]
    last_norm: Norm
    head: Any
    attention_scale: float
    activation: str


def upload(model: Model, capacity: int, runtime: Runtime) -> DeviceWeights:
    """Weights of a model prepared for the backend "cupy". Raises NearbankError naming what cannot be decoded there."""
    network, shape = model.network, model.shape
    if model.attention is not None:
        raise NearbankError(f"{model.name}: attention trained with rounded activations is not decoded on a GPU")
    if capacity > shape.context:
        raise NearbankError(f"a capacity of {capacity}; {model.name} takes 1 to {shape.context} tokens")
    if any(window is not None and window < capacity for window in shape.windows) or shape.softcap is not None:
        raise NearbankError(f"{model.name}: sliding windows and soft caps are not decoded on a GPU")
    if isinstance(network, gpt.Gpt):
        return _gpt(network, runtime)
    if isinstance(network, llama.Llama):
        return _llama(network, capacity, runtime)
    raise NearbankError(f"{model.name}: family {shape.family} is not decoded on a GPU; gpt and LLaMA's are")


def _gpt(network: gpt.Gpt, runtime: Runtime) -> DeviceWeights:
    shape = network.shape
    nothing = runtime.zeros(1, np.float32)
    return DeviceWeights(
        shape,
        runtime.asarray(network.wte),
        runtime.asarray(network.wpe),
        1.0,
        Angles(nothing, nothing, 0),
        tuple(_gpt_block(block, runtime) for block in network.blocks),
        _layer_norm(network.ln_f, runtime),
        _part(network.head, runtime).weights,
        shape.head_dim**-0.5,
        "gelu",
    )


def _gpt_block(block: gpt.Block, runtime: Runtime) -> DeviceBlock:
    return DeviceBlock(
        _layer_norm(block.ln_1, runtime),
        (_part(block.qkv, runtime),),
        NONE,
        _part(block.proj, runtime),
        _layer_norm(block.ln_2, runtime),
        (_part(block.fc1, runtime),),
        NONE,
        _part(block.fc2, runtime),
    )


def _llama(network: llama.Llama, capacity: int, runtime: Runtime) -> DeviceWeights:
    shape = network.shape
    if network.softcap is not None:
        raise NearbankError(f"{shape.name}: soft caps are not decoded on a GPU")
    positions = np.arange(capacity)
    cosines, sines = network.rotary.angles(positions, np.full(capacity, capacity))
    given = network.attention_scale
    return DeviceWeights(
        shape,
        runtime.asarray(network.embedding),
        None,
        network.embedding_scale,
        Angles(_table(cosines, runtime), _table(sines, runtime), int(cosines.shape[-1])),
        tuple(_llama_block(block, shape, runtime) for block in network.blocks),
        _rms_norm(network.ln_f, runtime),
        _part(network.head, runtime).weights,
        shape.head_dim**-0.5 if given is None else given,
        ACTIVATIONS[network.activation],
    )


def _llama_block(block: llama.Block, shape: Shape, runtime: Runtime) -> DeviceBlock:
    for name in ("q_norm", "k_norm", "attn_post", "mlp_post"):
        if getattr(block, name) is not None:
            raise NearbankError(f"{shape.name}: the norm {name} is not decoded on a GPU")
    return DeviceBlock(
        _rms_norm(block.ln_1, runtime),
        tuple(_part(part, runtime) for part in block.qkv),
        _rms_norm(block.attn_sub, runtime),
        _part(block.proj, runtime),
        _rms_norm(block.ln_2, runtime),
        tuple(_part(part, runtime) for part in block.gate_up),
        _rms_norm(block.mlp_sub, runtime),
        _part(block.down, runtime),
    )


def _layer_norm(norm: gpt.Norm, runtime: Runtime) -> Norm:
    return Norm(2, runtime.asarray(norm.weight), runtime.asarray(norm.bias), norm.eps)


def _rms_norm(norm: llama.Rms | None, runtime: Runtime) -> Norm:
    return NONE if norm is None else Norm(1, runtime.asarray(norm.weight), None, norm.eps)


def _part(linear: Linear, runtime: Runtime) -> Part:
    """A matrix that was prepared for the backend "cupy"."""
    matrix = linear.matrix
    if matrix.backend != "cupy":
        raise NearbankError(f"{linear.name} is prepared for '{matrix.backend}'; load the model with backend='cupy'")
    if linear.rounding is not None:
        raise NearbankError(f"{linear.name}: inputs rounded to {linear.inputs} are not decoded on a GPU")
    bias = None if linear.bias is None else runtime.asarray(linear.bias)
    return Part(matrix.state, matrix.shape[0], bias, linear.inputs == "int8")


def _table(values: npt.NDArray[np.float32], runtime: Runtime) -> Any:
    return runtime.asarray(np.ascontiguousarray(values[:, 0], dtype=np.float32))

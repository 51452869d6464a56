"""A model of `nearbank.models` as the weights that `nearbank.mapping.decoder` puts into the banks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Quantised, format_named, to_bf16
from nearbank.kernels import PackedMatrix, prepare
from nearbank.kernels.reference.matmul import Unpacked
from nearbank.mapping.decoder import GptWeights, Norm
from nearbank.models import Model, gpt
from nearbank.models.execution import Floats, Linear
from nearbank.models.operations import inputs_for

BACKEND = "numpy"  # the definition of every kernel; the others return its bits
MATRICES = ("qkv", "proj", "fc1", "fc2")


def network_of(model: Model) -> gpt.Gpt:
    """The network, if it is of the one family that can be executed in the banks and prepared for NumPy."""
    if not isinstance(model.network, gpt.Gpt):
        raise NearbankError(
            f"{model.name} is of the {model.shape.family} family; only gpt models can be executed in the banks so far"
        )
    if model.backend != BACKEND:
        raise NearbankError(f"{model.name} is prepared for {model.backend}; load it with backend='{BACKEND}'")
    return model.network


def rounded_model(model: Model, weights: str | None) -> Model:
    """The model with its block matrices rounded to another format, from the values that they stand for now."""
    network = network_of(model)
    if weights is None or weights == model.weights:
        return model
    format_named(weights)
    blocks = tuple(_rounded_block(block, weights) for block in network.blocks)
    inputs = blocks[0].qkv.inputs
    return replace(model, network=replace(network, blocks=blocks), weights=weights, inputs=inputs)


def _rounded_block(block: gpt.Block, weights: str) -> gpt.Block:
    matrices: dict[str, Any] = {name: _rounded(getattr(block, name), weights) for name in MATRICES}
    return replace(block, **matrices)


def _rounded(linear: Linear, weights: str) -> Linear:
    packed = PackedMatrix.quantise(values_of(linear), weights)
    inputs = "fp32" if packed.format.is_float else inputs_for(packed.format.name)
    return replace(linear, matrix=prepare(packed, BACKEND), inputs=inputs)


def unpacked(linear: Linear) -> Unpacked:
    """Integer levels, or floats, [N, K] with their scales [N, groups]."""
    state = linear.matrix.state
    assert isinstance(state, Unpacked)
    return state


def values_of(linear: Linear) -> npt.NDArray[np.float32]:
    """The float32 weights [N, K] that a matrix stands for."""
    state = unpacked(linear)
    scales = np.repeat(state.scales, [part.stop - part.start for part in state.groups], axis=1)
    return np.asarray(state.values * scales, dtype=np.float32)


def stored(linear: Linear) -> Quantised:
    """The codes and scales of a matrix, as its format packs them; zero points are taken into the codes."""
    fmt, state = linear.matrix.format, unpacked(linear)
    if fmt.is_float:
        floats = state.values.astype(np.float32)
        return Quantised(to_bf16(floats) if fmt.name == "bf16" else fmt.quantise(floats).codes)
    levels = state.values.astype(np.int16)
    if not fmt.stores_zeros:
        codes = (levels + fmt.zero) // fmt.step
        alike = fmt.scaling.per == "tensor" and bool((state.scales == state.scales[0]).all())
        scales = state.scales[:1] if alike else state.scales  # the ASIC has one for all, or one of each
        return Quantised(codes.astype(np.int8 if fmt.low < 0 else np.uint8), scales)
    least = np.stack([levels[:, part].min(axis=1) for part in state.groups], axis=1)
    zeros = np.maximum(-least, 0).astype(np.uint8)
    codes = levels + fmt.scaling.spread(zeros.astype(np.int16), levels.shape[1])
    return Quantised(codes.astype(np.uint8), state.scales, zeros)


def mapped_weights(model: Model, scales: Sequence[Floats] = ()) -> GptWeights:
    """Everything that a `MappedDecoder` needs; `scales`: of each layer's context product (`nearbank.proof.folding`)."""
    network = network_of(model)
    matrices = {name: [stored(getattr(block, name)) for block in network.blocks] for name in MATRICES}
    return GptWeights(
        tokens=network.wte,
        positions=network.wpe,
        norms=[(_norm(block.ln_1), _norm(block.ln_2)) for block in network.blocks],
        final_norm=_norm(network.ln_f),
        matrices={**matrices, "lm_head": [stored(network.head)]},
        biases=dict(_biases(network)),
        context_scales=scales,
    )


def _norm(norm: gpt.Norm) -> Norm:
    return Norm(norm.weight, norm.bias, norm.eps)


def _biases(network: gpt.Gpt) -> Iterator[tuple[str, list[npt.NDArray[np.float32]]]]:
    for name in MATRICES:
        found = [getattr(block, name).bias for block in network.blocks]
        if all(bias is not None for bias in found):
            yield name, found

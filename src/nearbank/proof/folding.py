"""WKVQuant's shift and scale of every channel of K and V, taken into what stands before and behind the cache.

K' = (K − shift) / scale: rows of the matrix that gives K and its bias; q' = q · scale: rows of that which gives q. The
shift of K changes all scores of a query alike, so softmax does not see it. V' likewise; probabilities sum to 1, so V's
shift comes back as a constant, the next matrix times it: that goes into its bias. V's scale lies across the columns of
that matrix, where rounded weights cannot take it: the ASIC multiplies the context product with it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nearbank.errors import NearbankError
from nearbank.models import Model, gpt
from nearbank.models.execution import Floats, Linear
from nearbank.models.kv import ChannelFit
from nearbank.proof.bridge import network_of, unpacked, values_of


def fold_channels(model: Model) -> Model:
    """The model with its channel fit in its weights; what is left is `context_scales`. As it is, without a fit."""
    if model.kv_fit is None:
        return model
    if model.kv_fit.fed_back:
        raise NearbankError(
            f"KV cache '{model.kv}' of {model.name} feeds errors of rounding back, which the ASIC does not; use a fit "
            "without feedback"
        )
    network = network_of(model)
    blocks = tuple(_folded(block, model.kv_fit, layer, model) for layer, block in enumerate(network.blocks))
    return replace(model, network=replace(network, blocks=blocks))


def context_scales(model: Model) -> list[Floats]:
    """[layers] of [heads · head_dim]: what the ASIC multiplies the context product with; empty without a fit."""
    if model.kv_fit is None:
        return []
    shared = model.shape.heads // model.shape.kv_heads
    return [np.repeat(scale, shared, axis=0).reshape(-1) for scale in model.kv_fit.value_scale]


def _folded(block: gpt.Block, fit: ChannelFit, layer: int, model: Model) -> gpt.Block:
    shared = model.shape.heads // model.shape.kv_heads
    wide = np.repeat(fit.key_scale[layer], shared, axis=0).reshape(-1)
    key_scale, value_scale = fit.key_scale[layer].reshape(-1), fit.value_scale[layer].reshape(-1)
    factors = np.concatenate([wide, 1 / key_scale, 1 / value_scale])
    shifts = [np.zeros_like(wide), fit.key_shift[layer].reshape(-1), fit.value_shift[layer].reshape(-1)]
    qkv = _rows_scaled(block.qkv, factors.astype(np.float32), np.concatenate(shifts))
    shift = np.repeat(fit.value_shift[layer], shared, axis=0).reshape(-1)
    return replace(block, qkv=qkv, proj=_shifted(block.proj, values_of(block.proj) @ shift))


def _rows_scaled(linear: Linear, factors: Floats, shifts: Floats) -> Linear:
    """(W·x + b − shift) · factor, row by row; 16-bit weights are rounded to their format again."""
    state = unpacked(linear)
    fmt = linear.matrix.format
    if fmt.is_float:
        values = fmt.dequantise(fmt.quantise(state.values * factors[:, None]))
        state = replace(state, values=values)
    else:
        scales = np.broadcast_to(state.scales, (len(factors), state.scales.shape[1]))
        state = replace(state, scales=np.asarray(scales * factors[:, None], np.float32))
    bias = (0 if linear.bias is None else linear.bias) - shifts
    matrix = replace(linear.matrix, state=state)
    return replace(linear, matrix=matrix, bias=np.asarray(bias * factors, np.float32))


def _shifted(linear: Linear, shift: Floats) -> Linear:
    return replace(linear, bias=np.asarray((0 if linear.bias is None else linear.bias) + shift, np.float32))

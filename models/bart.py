"""BART and mBART: an encoder that reads the source, a decoder that attends it.

Learned positions, biased matrices and LayerNorms. BART normalises after each half of a block, mBART before it and
once more after the last block. `encode` leaves K and V of the source for every decoder layer in the pass's `sources`,
computed once; `forward` is a decoder like any other, with one more attention in each block.

Shapes: M new tokens, S tokens of the source, D width, H heads, E head_dim, F hidden, V vocabulary, C context. Weights
are [outputs, inputs]. Operations of the encoder are called `encoder.…`, those that attend the source `cross.…`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from nearbank.models.execution import Floats, Linear, Pass
from nearbank.models.functions import gelu_erf, gelu_tanh, relu, silu
from nearbank.models.gpt import Norm
from nearbank.models.operations import OUTSIDE
from nearbank.models.shape import Shape
from nearbank.models.tensors import Tensors

POSITION_OFFSET = 2  # rows of the position tables before position 0
EPS = 1e-5
ACTIVATIONS: Mapping[str, Callable[[Floats], Floats]] = MappingProxyType(
    {"gelu_erf": gelu_erf, "gelu": gelu_tanh, "relu": relu, "silu": silu}
)


@dataclass(frozen=True)
class Attention:
    """Four matrices [D, D]. In a block of the decoder k and v of `cross` multiply the encoder's output."""

    norm: Norm
    q: Linear
    k: Linear
    v: Linear
    proj: Linear


@dataclass(frozen=True)
class Block:
    attn: Attention
    cross: Attention | None  # None in the encoder
    ln_2: Norm
    fc1: Linear  # [F, D]
    fc2: Linear  # [D, F]


@dataclass(frozen=True)
class Half:
    """The encoder or the decoder: tables, norm of the embedding, blocks, mBART's norm after the last one."""

    prefix: str
    first_layer: int
    heads: int
    embedding: Floats  # [V, D]
    positions: Floats  # [C + 2, D]
    ln_emb: Norm
    blocks: tuple[Block, ...]
    ln_f: Norm | None


@dataclass(frozen=True)
class Bart:
    """A network. `encode` first, then `forward` as often as needed; norms come first where `ln_f` is there."""

    shape: Shape
    encoder: Half
    decoder: Half
    head: Linear  # [V, D], with the final logits' bias
    activation: Callable[[Floats], Floats]
    embedding_scale: float = 1.0

    def encode(self, run: Pass) -> None:
        """Run the encoder over the sources [S, ..]; K and V for each decoder layer go to `run.sources`."""
        x = self._blocks(run, self.encoder, run.attend_all)  # [S, D]
        run.first_layer = self.decoder.first_layer
        for run.layer, block in enumerate(self.decoder.blocks, self.decoder.first_layer):
            assert block.cross is not None
            k, v = (
                run.matmul(part, x).reshape(len(x), self.decoder.heads, -1) for part in (block.cross.k, block.cross.v)
            )
            run.keep_source("cross", k, v)
        run.layer = OUTSIDE

    def forward(self, run: Pass, every: bool = False) -> Floats:
        """Logits [sequences, V] after the last token of each sequence, or [M, V] after every token."""
        run.first_layer = self.decoder.first_layer
        x = self._blocks(run, self.decoder, run.attend, every)
        return run.matmul(self.head, x)

    def _blocks(self, run: Pass, half: Half, attend: Callable[..., Floats], every: bool = True) -> Floats:
        x = run.embed(f"{half.prefix}wte", partial(self._embed, half), run)  # [M, D]
        x = run.norm(f"{half.prefix}ln_emb", half.ln_emb, x)
        for run.layer, block in enumerate(half.blocks, half.first_layer):
            x = self._add(run, half, "attn", "ln_1", block.attn.norm, x, partial(_attend, run, half, block, attend))
            if block.cross is not None:
                x = self._add(
                    run, half, "cross", "ln_cross", block.cross.norm, x, partial(_attend_source, run, half, block.cross)
                )
            x = self._add(run, half, "mlp", "ln_2", block.ln_2, x, partial(self._mlp, run, half, block))
        run.layer = OUTSIDE
        x = x if every else x[run.last]
        return x if half.ln_f is None else run.norm(f"{half.prefix}ln_f", half.ln_f, x)

    def _embed(self, half: Half, run: Pass) -> Floats:
        scaled = half.embedding[run.tokens] * np.float32(self.embedding_scale)
        return np.asarray(scaled + half.positions[run.positions + POSITION_OFFSET])

    def _add(
        self,
        run: Pass,
        half: Half,
        name: str,
        norm_name: str,
        norm: Norm,
        x: Floats,
        compute: Callable[[Floats], Floats],
    ) -> Floats:
        """x + compute(norm(x)), or norm(x + compute(x)) where norms come after."""
        name, norm_name = f"{half.prefix}{name}.residual", f"{half.prefix}{norm_name}"
        if half.ln_f is not None:
            return run.residual(name, x, compute(run.norm(norm_name, norm, x)))
        return run.norm(norm_name, norm, run.residual(name, x, compute(x)))

    def _mlp(self, run: Pass, half: Half, block: Block, h: Floats) -> Floats:
        name = f"{half.prefix}mlp.{self.shape.activation}"
        h = run.activation(name, self.activation, run.matmul(block.fc1, h))  # [M, F]
        return run.matmul(block.fc2, h)


def _attend(run: Pass, half: Half, block: Block, attend: Callable[..., Floats], h: Floats) -> Floats:
    parts = (block.attn.q, block.attn.k, block.attn.v)
    q, k, v = (run.matmul(part, h).reshape(len(h), half.heads, -1) for part in parts)  # each [M, H, E]
    return run.matmul(block.attn.proj, attend(f"{half.prefix}attn", q, k, v).reshape(len(h), -1))


def _attend_source(run: Pass, half: Half, cross: Attention, h: Floats) -> Floats:
    q = run.matmul(cross.q, h).reshape(len(h), half.heads, -1)  # [M, H, E]
    return run.matmul(cross.proj, run.attend_source("cross", q).reshape(len(h), -1))


def load_bart(shape: Shape, config: Mapping[str, Any], tensors: Tensors) -> Bart:
    """A network from tensors `model.shared.weight`, `model.encoder.layers.0` …, `final_logits_bias`."""
    assert shape.encoder is not None
    inside = tensors.at("model.")
    encoder = _load_half(shape, inside, "encoder", 0, shape.encoder.layers, shape.encoder.heads, shape.encoder.hidden)
    decoder = _load_half(shape, inside, "decoder", shape.first_layer, shape.layers, shape.heads, shape.hidden)
    untied = tensors.has("lm_head.weight") and not config.get("tie_word_embeddings", True)
    head = tensors.head(
        tensors.floats("lm_head.weight", shape.vocabulary, shape.width) if untied else decoder.embedding
    )
    if tensors.has("final_logits_bias"):
        head = replace(head, bias=tensors.floats("final_logits_bias", 1, shape.vocabulary)[0])
    scale = shape.width**0.5 if config.get("scale_embedding", False) else 1.0
    return Bart(shape, encoder, decoder, head, ACTIVATIONS[shape.activation], scale)


def _load_half(shape: Shape, tensors: Tensors, side: str, first: int, layers: int, heads: int, hidden: int) -> Half:
    width, inside = shape.width, tensors.at(f"{side}.")
    prefix = "encoder." if side == "encoder" else ""
    names = ("shared", f"{side}.embed_tokens")
    tables = [tensors.floats(f"{x}.weight", shape.vocabulary, width) for x in names if tensors.has(f"{x}.weight")]
    tables = tables or [tensors.floats("shared.weight", shape.vocabulary, width)]
    return Half(
        prefix,
        first,
        heads,
        tables[-1],
        inside.floats("embed_positions.weight", shape.context + POSITION_OFFSET, width),
        _load_norm(inside, "layernorm_embedding", width),
        tuple(_load_block(inside.at(f"layers.{i}."), prefix, width, hidden) for i in range(layers)),
        _load_norm(inside, "layer_norm", width) if shape.family == "mbart" else None,
    )


def _load_norm(tensors: Tensors, name: str, width: int) -> Norm:
    return Norm(tensors.floats(f"{name}.weight", width), tensors.floats(f"{name}.bias", width), EPS)


def _load_block(tensors: Tensors, prefix: str, width: int, hidden: int) -> Block:
    return Block(
        _load_attention(tensors, "self_attn", f"{prefix}attn", width),
        None if prefix else _load_attention(tensors, "encoder_attn", "cross", width),
        _load_norm(tensors, "final_layer_norm", width),
        tensors.linear("fc1", f"{prefix}mlp.fc1", hidden, width, True),
        tensors.linear("fc2", f"{prefix}mlp.fc2", width, hidden, True),
    )


def _load_attention(tensors: Tensors, theirs: str, ours: str, width: int) -> Attention:
    parts = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "proj"}
    made = (tensors.linear(f"{theirs}.{name}", f"{ours}.{part}", width, width, True) for name, part in parts.items())
    return Attention(_load_norm(tensors, f"{theirs}_layer_norm", width), *made)

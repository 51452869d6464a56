"""OPT's architecture: learned positions, LayerNorm, biased matrices, ReLU.

Shapes: M new tokens, D width, H heads, E head_dim, F hidden, V vocabulary, W width of the embedding. Weights are
[outputs, inputs]. The 350M model normalises after each half of a block instead of before, and projects W to D and back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from nearbank.models.execution import Floats, Linear, Pass
from nearbank.models.functions import relu
from nearbank.models.gpt import Norm
from nearbank.models.operations import OUTSIDE
from nearbank.models.shape import Shape
from nearbank.models.tensors import Tensors

POSITION_OFFSET = 2  # rows of the position table before position 0


@dataclass(frozen=True)
class Block:
    ln_1: Norm
    q: Linear  # [D, D]
    k: Linear  # [D, D]
    v: Linear  # [D, D]
    proj: Linear  # [D, D]
    ln_2: Norm
    fc1: Linear  # [F, D]
    fc2: Linear  # [D, F]


@dataclass(frozen=True)
class Opt:
    """A network. ln_f is None where blocks normalise after each half."""

    shape: Shape
    embedding: Floats  # [V, W]
    positions: Floats  # [C + 2, D]
    project_in: Linear | None  # [D, W]
    blocks: tuple[Block, ...]
    ln_f: Norm | None
    project_out: Linear | None  # [W, D]
    head: Linear  # [V, W]
    activation: Callable[[Floats], Floats] = relu

    def forward(self, run: Pass, every: bool = False) -> Floats:
        """Logits [sequences, V] after the last token of each sequence, or [M, V] after every token."""
        x = self._embed(run)  # [M, D]
        for run.layer, block in enumerate(self.blocks):
            x = self._half(run, "attn", "ln_1", block.ln_1, x, partial(self._attend, run, block))
            x = self._half(run, "mlp", "ln_2", block.ln_2, x, partial(self._mlp, run, block))
        run.layer = OUTSIDE
        x = x if every else x[run.last]
        x = x if self.ln_f is None else run.norm("ln_f", self.ln_f, x)
        x = x if self.project_out is None else run.matmul(self.project_out, x)
        return run.matmul(self.head, x)

    def _embed(self, run: Pass) -> Floats:
        places = self.positions[run.positions + POSITION_OFFSET]
        if self.project_in is None:
            return run.embed("wte", lambda tokens: self.embedding[tokens] + places, run.tokens)
        x = run.matmul(self.project_in, run.embed("wte", self.embedding.__getitem__, run.tokens))
        return run.residual("wpe", x, places)

    def _half(
        self, run: Pass, name: str, norm_name: str, norm: Norm, x: Floats, compute: Callable[[Floats], Floats]
    ) -> Floats:
        """x + compute(norm(x)), or norm(x + compute(x)) where norms come after."""
        if self.ln_f is not None:
            return run.residual(f"{name}.residual", x, compute(run.norm(norm_name, norm, x)))
        return run.norm(norm_name, norm, run.residual(f"{name}.residual", x, compute(x)))

    def _attend(self, run: Pass, block: Block, h: Floats) -> Floats:
        split = (len(h), self.shape.heads, self.shape.head_dim)
        q, k, v = (run.matmul(part, h).reshape(split) for part in (block.q, block.k, block.v))  # each [M, H, E]
        return run.matmul(block.proj, run.attend("attn", q, k, v).reshape(len(h), -1))

    def _mlp(self, run: Pass, block: Block, h: Floats) -> Floats:
        h = run.activation(f"mlp.{self.shape.activation}", self.activation, run.matmul(block.fc1, h))  # [M, F]
        return run.matmul(block.fc2, h)


def load_opt(shape: Shape, config: Mapping[str, Any], tensors: Tensors) -> Opt:
    """A network from tensors `model.decoder.embed_tokens.weight`, `model.decoder.layers.0` …; the head is tied."""
    inside, width = tensors.at("model.decoder."), shape.width
    outer = shape.embedding or width
    embedding = inside.floats("embed_tokens.weight", shape.vocabulary, outer)
    projected = shape.embedding is not None
    return Opt(
        shape,
        embedding,
        inside.floats("embed_positions.weight", shape.context + POSITION_OFFSET, width),
        inside.linear("project_in", "project_in", width, outer) if projected else None,
        tuple(_load_block(shape, config, inside.at(f"layers.{i}.")) for i in range(shape.layers)),
        None if shape.family == "opt-post" else _load_norm(inside.at("final_layer_norm."), width),
        inside.linear("project_out", "project_out", outer, width) if projected else None,
        tensors.head(embedding),
    )


def _load_norm(tensors: Tensors, width: int) -> Norm:
    return Norm(tensors.floats("weight", width), tensors.floats("bias", width), 1e-5)


def _load_block(shape: Shape, config: Mapping[str, Any], tensors: Tensors) -> Block:
    width, hidden, bias = shape.width, shape.hidden, bool(config.get("enable_bias", True))
    attn = tensors.at("self_attn.")
    return Block(
        _load_norm(tensors.at("self_attn_layer_norm."), width),
        attn.linear("q_proj", "attn.q", width, width, bias),
        attn.linear("k_proj", "attn.k", width, width, bias),
        attn.linear("v_proj", "attn.v", width, width, bias),
        attn.linear("out_proj", "attn.proj", width, width, bias),
        _load_norm(tensors.at("final_layer_norm."), width),
        tensors.linear("fc1", "mlp.fc1", hidden, width, bias),
        tensors.linear("fc2", "mlp.fc2", width, hidden, bias),
    )

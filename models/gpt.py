"""GPT-2's architecture: learned positions, LayerNorm before each half of a block, tanh GELU.

Shapes: M new tokens (of all sequences), D width, H heads, V vocabulary, C context. Weights are [outputs, inputs].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nearbank.models.execution import Floats, Linear, Pass, Tokens
from nearbank.models.functions import gelu_tanh, layer_norm
from nearbank.models.operations import OUTSIDE
from nearbank.models.shape import Shape
from nearbank.models.tensors import Tensors


@dataclass(frozen=True)
class Norm:
    """LayerNorm: weight [D], bias [D] and what is added to the variance."""

    weight: Floats
    bias: Floats
    eps: float

    def __call__(self, x: Floats) -> Floats:
        return layer_norm(x, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Block:
    ln_1: Norm
    qkv: Linear  # [3D, D]: queries, keys, values
    proj: Linear  # [D, D]
    ln_2: Norm
    fc1: Linear  # [4D, D]
    fc2: Linear  # [D, 4D]


@dataclass(frozen=True)
class Gpt:
    """A network: `forward` adds the tokens of a pass to its caches and returns logits."""

    shape: Shape
    wte: Floats  # [V, D]
    wpe: Floats  # [C, D]
    blocks: tuple[Block, ...]
    ln_f: Norm
    head: Linear  # [V, D]

    def forward(self, run: Pass, every: bool = False) -> Floats:
        """Logits [sequences, V] after the last token of each sequence, or [M, V] after every token."""
        x = run.embed("wte", self._embed, run.tokens, run.positions)  # [M, D]
        for run.layer, block in enumerate(self.blocks):
            x = self._attend(run, block, x)
            x = self._mlp(run, block, x)
        run.layer = OUTSIDE
        x = x if every else x[run.last]
        h = run.norm("ln_f", self.ln_f, x)
        return run.matmul(self.head, h)

    def _embed(self, tokens: Tokens, positions: Tokens) -> Floats:
        return self.wte[tokens] + self.wpe[positions]

    def _attend(self, run: Pass, block: Block, x: Floats) -> Floats:
        heads, dim = self.shape.heads, self.shape.head_dim
        h = run.norm("ln_1", block.ln_1, x)
        qkv = run.matmul(block.qkv, h).reshape(len(x), 3, heads, dim)  # [M, 3, H, D/H]
        mixed = run.attend("attn", qkv[:, 0], qkv[:, 1], qkv[:, 2])  # [M, H, D/H]
        y = run.matmul(block.proj, np.ascontiguousarray(mixed).reshape(len(x), -1))
        return run.residual("attn.residual", x, y)

    def _mlp(self, run: Pass, block: Block, x: Floats) -> Floats:
        h = run.norm("ln_2", block.ln_2, x)
        h = run.activation("mlp.gelu", gelu_tanh, run.matmul(block.fc1, h))  # [M, 4D]
        return run.residual("mlp.residual", x, run.matmul(block.fc2, h))


def load_gpt(shape: Shape, tensors: Tensors, bias: bool = False, eps: float = 1e-5) -> Gpt:
    """A network from tensors `wte`, `wpe`, `h.0.ln_1`, `h.0.attn.qkv` …, each with `.weight` (and `.bias`).

    The head is `lm_head.weight`, or `wte.weight` where there is none. bias: the block matrices have biases.
    """
    wte = tensors.floats("wte.weight", shape.vocabulary, shape.width)
    untied = tensors.has("lm_head.weight")
    return Gpt(
        shape,
        wte,
        tensors.floats("wpe.weight", shape.context, shape.width),
        tuple(_load_block(shape, tensors.at(f"h.{i}."), bias, eps) for i in range(shape.layers)),
        _load_norm(tensors.at("ln_f."), shape.width, eps),
        tensors.head(tensors.floats("lm_head.weight", *wte.shape) if untied else wte),
    )


def _load_norm(tensors: Tensors, width: int, eps: float) -> Norm:
    return Norm(tensors.floats("weight", width), tensors.floats("bias", width), eps)


def _load_block(shape: Shape, tensors: Tensors, bias: bool, eps: float) -> Block:
    width, hidden = shape.width, shape.hidden
    return Block(
        _load_norm(tensors.at("ln_1."), width, eps),
        tensors.linear("attn.qkv", "attn.qkv", 3 * width, width, bias),
        tensors.linear("attn.proj", "attn.proj", width, width, bias),
        _load_norm(tensors.at("ln_2."), width, eps),
        tensors.linear("mlp.fc1", "mlp.fc1", hidden, width, bias),
        tensors.linear("mlp.fc2", "mlp.fc2", width, hidden, bias),
    )

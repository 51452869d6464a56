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

EPS = 1e-5


@dataclass(frozen=True)
class Norm:
    """LayerNorm's weight [D] and bias [D]."""

    weight: Floats
    bias: Floats


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
        h = run.norm("ln_f", layer_norm, x, self.ln_f.weight, self.ln_f.bias, EPS)
        return run.matmul(self.head, h)

    def _embed(self, tokens: Tokens, positions: Tokens) -> Floats:
        return self.wte[tokens] + self.wpe[positions]

    def _attend(self, run: Pass, block: Block, x: Floats) -> Floats:
        heads, dim = self.shape.heads, self.shape.head_dim
        h = run.norm("ln_1", layer_norm, x, block.ln_1.weight, block.ln_1.bias, EPS)
        qkv = run.matmul(block.qkv, h).reshape(len(x), 3, heads, dim)  # [M, 3, H, D/H]
        mixed = run.attend("attn", qkv[:, 0], qkv[:, 1], qkv[:, 2])  # [M, H, D/H]
        y = run.matmul(block.proj, np.ascontiguousarray(mixed).reshape(len(x), -1))
        return run.residual("attn.residual", x, y)

    def _mlp(self, run: Pass, block: Block, x: Floats) -> Floats:
        h = run.norm("ln_2", layer_norm, x, block.ln_2.weight, block.ln_2.bias, EPS)
        h = run.activation("mlp.gelu", gelu_tanh, run.matmul(block.fc1, h))  # [M, 4D]
        return run.residual("mlp.residual", x, run.matmul(block.fc2, h))

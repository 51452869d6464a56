"""The character GPT in torch, for training: a full-precision twin and its ternary student are the same module.

GPT-2's shape, pre-norm: learned positions, biased LayerNorms, block matrices without bias, tanh GELU, head tied to
the token embedding. The runtime in `nearbank.models.gpt` computes the same function without torch.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from nearbank.models.training.straight_through import fake_int8, fake_weights

LAYER_NORM_EPS = 1e-5

Rounding = tuple[str, str | None]  # format of the weights, and the quantiser's variant or None for full precision


class ChannelDropout(nn.Module):
    """Drops a channel for all positions of a sequence: as good a regulariser here, and far cheaper to draw."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # x: [B, T, D]
        if not self.training or self.probability == 0:
            return x
        keep = torch.rand(x.shape[0], 1, x.shape[2], device=x.device) >= self.probability
        return x * (keep / (1 - self.probability)).to(x.dtype)


class BlockLinear(nn.Module):
    """y = x Wᵀ. With a variant set, W is ternary or binary per output row and x is 8-bit per token."""

    def __init__(self, inputs: int, outputs: int, rounding: Rounding) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.stored_as, self.variant = rounding

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # x: [..., inputs] -> [..., outputs]
        if self.variant is None:
            return functional.linear(x, self.weight)
        return functional.linear(fake_int8(x), fake_weights(self.weight, self.stored_as, self.variant))


class Attention(nn.Module):
    """Causal self-attention; one matrix gives q, k and v, in that order."""

    def __init__(self, width: int, heads: int, rounding: Rounding) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = BlockLinear(width, 3 * width, rounding)
        self.proj = BlockLinear(width, width, rounding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # x: [B, T, D]
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each [B, H, T, D/H]
        scores = q @ k.transpose(2, 3) / math.sqrt(width // self.heads)
        ahead = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        probabilities = scores.masked_fill(ahead, -math.inf).softmax(-1)
        mixed = probabilities.to(v.dtype) @ v
        y: torch.Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return y


class Mlp(nn.Module):
    """Two matrices around a tanh GELU, four times as wide inside."""

    def __init__(self, width: int, rounding: Rounding) -> None:
        super().__init__()
        self.fc1 = BlockLinear(width, 4 * width, rounding)
        self.fc2 = BlockLinear(4 * width, width, rounding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))
        return y


class Block(nn.Module):
    def __init__(self, width: int, heads: int, rounding: Rounding, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.attn = Attention(width, heads, rounding)
        self.ln_2 = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.mlp = Mlp(width, rounding)
        self.dropout = ChannelDropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.dropout(self.attn(self.ln_1(x)))
        y: torch.Tensor = x + self.dropout(self.mlp(self.ln_2(x)))
        return y


class CharGpt(nn.Module):
    """Logits float [B, T, vocabulary] of token numbers int64 [B, T], T at most `context`.

    variant: None computes in full precision; a quantiser's variant rounds the block matrices to the format `weights`.
    """

    def __init__(
        self,
        vocabulary: int,
        layers: int,
        width: int,
        heads: int,
        context: int,
        variant: str | None = None,
        dropout: float = 0.0,
        weights: str = "ternary",
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(context, width)
        self.h = nn.ModuleList(Block(width, heads, (weights, variant), dropout) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.dropout = ChannelDropout(dropout)
        self._initialise(layers)

    def _initialise(self, layers: int) -> None:
        """GPT-2's start: normal 0.02, the matrices that write to the residual stream scaled down by depth."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deep = name.endswith(("proj.weight", "fc2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if deep else 0.02)

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.dropout(x)
        for block in self.h:
            x = block(x)
        normed: torch.Tensor = self.ln_f(x)
        return normed

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.hidden(tokens), self.wte.weight)

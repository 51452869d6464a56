"""The character GPT in torch, for training: a full-precision twin and its low-bit student are the same module.

GPT-2's shape, pre-norm: learned positions, biased LayerNorms, block matrices without bias, tanh GELU, head tied to
the token embedding. The runtime in `nearbank.models.gpt` computes the same function without torch.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nearbank.models.training.elastic import activation_rounding
from nearbank.models.training.straight_through import fake_weights

LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Rounding:
    """How a network's numbers are rounded. form: the quantiser's, "paper" or "reference", or STORED.

    weights: "fp32" or a key of `straight_through.PARTS`; inputs, attention: kinds of `activation_rounding`, for the
    inputs of block matrices, and for queries, keys, values and attention probabilities. embeddings: as weights.
    """

    weights: str = "fp32"
    inputs: str = "fp32"
    attention: str = "fp32"
    form: str = "paper"
    embeddings: str = "fp32"

    def activation(self, kind: str, signed: bool = True) -> nn.Module:
        return activation_rounding(kind, signed, self.form)


EXACT = Rounding()


@dataclass(frozen=True)
class Scores:
    """Attention scores [B, H, T, S], 0 where not attended, and the share of the pairs that is."""

    values: torch.Tensor
    attended: float = 1.0


@dataclass(frozen=True)
class States:
    """What a teacher shows: logits [B, T, V], the stream [B, T, D] after each block, the scores of each attention."""

    logits: torch.Tensor
    hidden: list[torch.Tensor]
    scores: list[Scores]


class Learner(nn.Module):
    """A network that can be trained: a function of a task's inputs that shows its states."""

    def states(self, inputs: Any) -> States:
        raise NotImplementedError

    def forward(self, inputs: Any) -> torch.Tensor:
        return self.states(inputs).logits

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


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
    """y = x Wᵀ, both rounded as `rounding` says."""

    def __init__(self, inputs: int, outputs: int, rounding: Rounding) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.rounding = rounding
        self.input = rounding.activation(rounding.inputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # x: [..., inputs] -> [..., outputs]
        weight: torch.Tensor = self.weight
        if self.rounding.weights != "fp32":
            weight = fake_weights(weight, self.rounding.weights, self.rounding.form)
        return functional.linear(self.input(x), weight)


class Mixing(nn.Module):
    """Softmax attention: queries, keys, values and probabilities rounded as `rounding` says."""

    def __init__(self, rounding: Rounding) -> None:
        super().__init__()
        self.q, self.k, self.v = (rounding.activation(rounding.attention) for _ in range(3))
        self.p = rounding.activation(rounding.attention, signed=False)

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool
    ) -> tuple[torch.Tensor, Scores]:  # q: [B, H, T, E], k and v: [B, H, S, E]
        """Context [B, T, H · E], and the scores. causal: T is S, and no query attends a later position."""
        batch, heads, length, dim = q.shape
        scores = self.q(q) @ self.k(k).transpose(2, 3) / math.sqrt(dim)
        ahead = torch.ones(length, k.shape[2], dtype=torch.bool, device=q.device).triu(1) if causal else None
        shown = scores if ahead is None else scores.masked_fill(ahead, -math.inf)
        probabilities = self.p(shown.softmax(-1))
        mixed = probabilities.to(v.dtype) @ self.v(v).to(v.dtype)
        seen = Scores(scores) if ahead is None else Scores(scores.masked_fill(ahead, 0), (length + 1) / (2 * length))
        return mixed.transpose(1, 2).reshape(batch, length, heads * dim), seen


class Attention(nn.Module):
    """Self-attention; one matrix gives q, k and v, in that order."""

    def __init__(self, width: int, heads: int, rounding: Rounding, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = BlockLinear(width, 3 * width, rounding)
        self.proj = BlockLinear(width, width, rounding)
        self.mix = Mixing(rounding)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Scores]:  # x: [B, T, D]
        """The output [B, T, D] and the scores."""
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each [B, H, T, E]
        mixed, scores = self.mix(q, k, v, self.causal)
        y: torch.Tensor = self.proj(mixed)
        return y, scores


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

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Scores]:
        y, scores = self.attn(self.ln_1(x))
        x = x + self.dropout(y)
        return x + self.dropout(self.mlp(self.ln_2(x))), scores


class CharGpt(Learner):
    """Logits float [B, T, vocabulary] of token numbers int64 [B, T], T at most `context`."""

    def __init__(
        self,
        vocabulary: int,
        layers: int,
        width: int,
        heads: int,
        context: int,
        rounding: Rounding = EXACT,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(context, width)
        self.h = nn.ModuleList(Block(width, heads, rounding, dropout) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.dropout = ChannelDropout(dropout)
        initialise(self, layers)

    def states(self, tokens: torch.Tensor) -> States:
        """Logits, and what the blocks make on the way."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.dropout(x)
        hidden, scores = [], []
        for block in self.h:
            x, seen = block(x)
            hidden.append(x)
            scores.append(seen)
        return States(functional.linear(self.ln_f(x), self.wte.weight), hidden, scores)


def initialise(network: nn.Module, layers: int) -> None:
    """GPT-2's start: normal 0.02, the matrices that write to the residual stream scaled down by depth."""
    for name, parameter in network.named_parameters():
        if parameter.dim() == 2:
            deep = name.endswith(("proj.weight", "fc2.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if deep else 0.02)

"""A small encoder and decoder in BART's shape, in torch, for training: learned positions, LayerNorm after each half of
a block and after the embedding, cross-attention, head tied to the one embedding.

Unlike BART's, its matrices have no biases, and GELU is the tanh one, as in `network`.
"""

import torch
from torch import nn
from torch.nn import functional

from nearbank.models.training.network import (
    EXACT,
    LAYER_NORM_EPS,
    Attention,
    BlockLinear,
    Learner,
    Mixing,
    Mlp,
    Rounding,
    Scores,
    States,
    initialise,
)
from nearbank.models.training.straight_through import fake_weights

Pair = tuple[torch.Tensor, torch.Tensor]


class CrossAttention(nn.Module):
    """Queries of the decoder over keys and values of what the encoder made of the source."""

    def __init__(self, width: int, heads: int, rounding: Rounding) -> None:
        super().__init__()
        self.heads = heads
        self.q = BlockLinear(width, width, rounding)
        self.kv = BlockLinear(width, 2 * width, rounding)
        self.proj = BlockLinear(width, width, rounding)
        self.mix = Mixing(rounding)

    def forward(self, x: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, Scores]:
        """x [B, T, D], source [B, S, D] → [B, T, D], and the scores."""
        batch, length, width = x.shape
        dim = width // self.heads
        q = self.q(x).view(batch, length, self.heads, dim).transpose(1, 2)
        k, v = self.kv(source).view(batch, -1, 2, self.heads, dim).permute(2, 0, 3, 1, 4)
        mixed, scores = self.mix(q, k, v, causal=False)
        y: torch.Tensor = self.proj(mixed)
        return y, scores


class Block(nn.Module):
    """BART's: every half adds to the stream, which is normalised after it. The encoder's has no cross-attention."""

    def __init__(self, width: int, heads: int, rounding: Rounding, decodes: bool) -> None:
        super().__init__()
        self.attn = Attention(width, heads, rounding, causal=decodes)
        self.ln_1 = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.cross = CrossAttention(width, heads, rounding) if decodes else None
        self.ln_cross = nn.LayerNorm(width, LAYER_NORM_EPS) if decodes else None
        self.mlp = Mlp(width, rounding)
        self.ln_2 = nn.LayerNorm(width, LAYER_NORM_EPS)

    def forward(self, x: torch.Tensor, source: torch.Tensor | None) -> tuple[torch.Tensor, list[Scores]]:
        y, scores = self.attn(x)
        x, seen = self.ln_1(x + y), [scores]
        if self.cross is not None and self.ln_cross is not None:
            y, scores = self.cross(x, source)
            x, seen = self.ln_cross(x + y), [*seen, scores]
        return self.ln_2(x + self.mlp(x)), seen


class Half(nn.Module):
    """The encoder or the decoder."""

    def __init__(self, layers: int, width: int, heads: int, context: int, rounding: Rounding, decodes: bool) -> None:
        super().__init__()
        self.wpe = nn.Embedding(context, width)
        self.ln_emb = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.h = nn.ModuleList(Block(width, heads, rounding, decodes) for _ in range(layers))

    def forward(self, x: torch.Tensor, source: torch.Tensor | None) -> tuple[list[torch.Tensor], list[Scores]]:
        """Embedded tokens [B, T, D] → the stream after each block, and the scores of each attention."""
        x = self.ln_emb(x + self.wpe(torch.arange(x.shape[1], device=x.device)))
        hidden, scores = [], []
        for block in self.h:
            x, seen = block(x, source)
            hidden.append(x)
            scores += seen
        return hidden, scores


class SpanBart(Learner):
    """Logits [B, T, tokens] of (source [B, S], target moved right [B, T]); as many blocks in each half as `layers`."""

    def __init__(
        self, tokens: int, layers: int, width: int, heads: int, context: int, rounding: Rounding = EXACT
    ) -> None:
        super().__init__()
        self.rounding = rounding
        self.wte = nn.Embedding(tokens, width)
        self.encoder = Half(layers, width, heads, context, rounding, decodes=False)
        self.decoder = Half(layers, width, heads, context, rounding, decodes=True)
        initialise(self, 2 * layers)

    def states(self, inputs: Pair) -> States:
        source, before = inputs
        table = self._table()
        read, read_scores = self.encoder(functional.embedding(source, table), None)
        written, scores = self.decoder(functional.embedding(before, table), read[-1])
        logits = functional.linear(written[-1], self.wte.weight)
        return States(logits, [*read, *written], [*read_scores, *scores])

    def _table(self) -> torch.Tensor:
        """The embeddings [tokens, D] that are looked up; the head uses them unrounded."""
        if self.rounding.embeddings == "fp32":
            return self.wte.weight
        return fake_weights(self.wte.weight, self.rounding.embeddings, self.rounding.form)

"""What an error in K or V costs, for feeding errors back: the Fisher information of a calibration text.

With next tokens drawn from the model's own distribution, the mean of g gᵀ over tokens, g the gradient of −log p by a
cached key or value, is to second order twice the divergence that an error there brings about. It is taken for each
layer and head by itself, [E, E], the cache being the scheme's: where a token sees itself exactly, only what later
tokens make of it counts. One pass backwards over a few windows; in torch, for decoders of GPT-2's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from nearbank.errors import NearbankError
from nearbank.models.execution import Floats
from nearbank.models.gptq import inverse_factor
from nearbank.models.kv import kv_scheme
from nearbank.models.model import Model
from nearbank.models.wkv_fit import WINDOWS_AT_ONCE, Block, Cached, blocks_of, embedded, logits_of

WINDOWS = 192
DAMPING = 0.01  # share of the diagonal's mean that is added to it, as in GPTQ
Doubles = npt.NDArray[np.float64]


@dataclass
class _Watched:
    """A cache's K or V that is not rounded; held: errors of zero, whose gradient is wanted."""

    held: list[torch.Tensor] = field(default_factory=list)

    def rounded(self, x: torch.Tensor, top: int) -> torch.Tensor:
        del top
        self.held.append(torch.zeros_like(x).requires_grad_())
        return x + self.held[-1]


def with_feedback(model: Model, text: str, windows: int = WINDOWS, seed: int = 0) -> Model:
    """The model, whose KV cache is fitted, with errors of rounding fed back as the first `windows` contexts of `text`
    weigh them. seed: of the tokens drawn."""
    fit = model.kv_fit
    if fit is None or not kv_scheme(model.kv).needs_fit:
        raise NearbankError(f"KV cache '{model.kv}' has no channel fit to feed errors back in; fit its channels first")
    keys, values = metrics(model, text, windows, seed)
    fed = replace(
        fit,
        key_feedback=np.stack([feedback_of(*pair) for pair in zip(keys, fit.key_scale, strict=True)]),
        value_feedback=np.stack([feedback_of(*pair) for pair in zip(values, fit.value_scale, strict=True)]),
    )
    return replace(model, kv_fit=fed)


def feedback_of(metric: Doubles, scale: Floats) -> Floats:
    """U [G, E, E] for values divided by scale [G, E], from what errors of values cost: metric [G, E, E]."""
    scaled = metric * scale[:, :, None] * scale[:, None, :]
    return np.array([inverse_factor(one, DAMPING) for one in scaled], np.float32, order="C")


def metrics(model: Model, text: str, windows: int, seed: int) -> Doubles:
    """Of keys and of values, by layer and head: [2, layers, G, E, E]."""
    blocks, stream = blocks_of(model), embedded(model, text, windows)
    draw = torch.Generator().manual_seed(seed)
    shape = model.shape
    total = np.zeros((2, len(blocks), shape.heads, shape.head_dim, shape.head_dim))
    for part in torch.split(stream, WINDOWS_AT_ONCE):
        for kind, gradients in enumerate(_gradients(model, blocks, part, draw)):
            for layer, g in enumerate(gradients):
                total[kind, layer] += torch.einsum("bhte,bhtf->hef", g.double(), g.double()).numpy()
    return total / (stream.shape[0] * stream.shape[1])


def _gradients(
    model: Model, blocks: Sequence[Block], x: torch.Tensor, draw: torch.Generator
) -> list[list[torch.Tensor]]:
    """[keys, values][layer] → gradient [B, H, T, E] of the loss of drawn tokens, summed over windows x [B, T, D]."""
    keys, values, scheme = _Watched(), _Watched(), kv_scheme(model.kv)
    for block in blocks:
        x = block(x, Cached(keys, values, scheme))
    log_p = logits_of(model, x).log_softmax(-1)
    drawn = torch.multinomial(log_p.detach().exp().flatten(0, 1), 1, generator=draw).view(*log_p.shape[:2], 1)
    loss = -log_p.gather(-1, drawn).sum()
    found = torch.autograd.grad(loss, keys.held + values.held)
    return [list(found[: len(blocks)]), list(found[len(blocks) :])]

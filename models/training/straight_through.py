"""Fake quantisers for training: quantised values forward, straight-through gradients backward.

The equations are those of `nearbank.models.quantize` and `nearbank.kernels.activations`, in torch. Gradients pass
unclipped, as in the authors' code.
"""

import torch

# What a layer may do with its weights: a ternary variant, or take them as they are, already rounded.
STORED = "stored"


def ternary_parts(weight: torch.Tensor, variant: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(t, α): t in {-1, 0, 1} as floats [N, K], α = (4/3)·mean|w| per output row [N, 1]."""
    centred = weight - weight.mean(dim=1, keepdim=True) if variant == "paper" else weight
    alpha = centred.abs().mean(dim=1, keepdim=True) * (4 / 3)
    ratio = centred / torch.where(alpha > 0, alpha, torch.ones_like(alpha))
    return torch.round(torch.clamp(ratio, -1, 1)), alpha


def fake_ternary(weight: torch.Tensor, variant: str) -> torch.Tensor:
    """α·t in the forward pass, the identity in the backward pass."""
    if variant == STORED:
        return weight
    with torch.no_grad():
        codes, alpha = ternary_parts(weight, variant)
        offset = codes * alpha - weight
    return weight + offset


def fake_int8(x: torch.Tensor) -> torch.Tensor:
    """x [..., K] rounded to 255 steps of max|x|/127 per row, to nearest even; straight through backward."""
    with torch.no_grad():
        scale = x.abs().amax(dim=-1, keepdim=True).float() / 127
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        offset = torch.round(x / scale) * scale - x
    return x + offset

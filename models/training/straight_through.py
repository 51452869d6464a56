"""Fake quantisers for training: quantised values forward, straight-through gradients backward.

The equations are those of `nearbank.models.quantize` and `nearbank.kernels.activations`, in torch. Gradients of
weights pass unclipped as in the authors' code, but for binary weights in the paper's form: within one α of 0 alone.
"""

import torch

# Instead of a quantiser's variant: the weights are already rounded, only the inputs are to be.
STORED = "stored"


def ternary_parts(weight: torch.Tensor, variant: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(t, α): t in {-1, 0, 1} as floats [N, K], α = (4/3)·mean|w| per output row [N, 1]."""
    centred = weight - weight.mean(dim=1, keepdim=True) if variant == "paper" else weight
    alpha = centred.abs().mean(dim=1, keepdim=True) * (4 / 3)
    ratio = centred / torch.where(alpha > 0, alpha, torch.ones_like(alpha))
    return torch.round(torch.clamp(ratio, -1, 1)), alpha


def binary_parts(weight: torch.Tensor, variant: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(b, α): b in {-1, 1} as floats [N, K], α = mean|w| per output row [N, 1]."""
    centred = weight - weight.mean(dim=1, keepdim=True) if variant == "paper" else weight
    return torch.where(centred >= 0, 1.0, -1.0), centred.abs().mean(dim=1, keepdim=True)


def twn_parts(weight: torch.Tensor, _form: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(t, α) of TWN (arXiv 1605.04711): t = 0 below 0.7·mean|w|, α = mean|w| of the others, per output row."""
    size = weight.abs()
    large = (size > 0.7 * size.mean(dim=1, keepdim=True)).to(weight.dtype)
    alpha = (size * large).sum(1, keepdim=True) / large.sum(1, keepdim=True).clamp_min(1)
    return torch.sign(weight) * large, alpha


def bwn_parts(weight: torch.Tensor, _form: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(b, α) of BWN (arXiv 1603.05279): sign and mean|w| per output row."""
    return binary_parts(weight, "reference")


PARTS = {"ternary": ternary_parts, "binary": binary_parts, "twn": twn_parts, "bwn": bwn_parts}


def fake_weights(weight: torch.Tensor, stored_as: str, variant: str) -> torch.Tensor:
    """α times the codes of the format `stored_as`; straight through backward."""
    if variant == STORED:
        return weight
    with torch.no_grad():
        codes, alpha = PARTS[stored_as](weight, variant)
        offset = codes * alpha - weight
    if stored_as == "binary" and variant == "paper":
        return _pass_within(weight, alpha) + offset
    return weight + offset


def _pass_within(weight: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """The weight itself, through which gradients flow only where |w − μ| < α."""
    near = (weight - weight.mean(dim=1, keepdim=True)).detach().abs() < alpha
    return torch.where(near, weight, weight.detach())


def fake_int8(x: torch.Tensor) -> torch.Tensor:
    """x [..., K] rounded to 255 steps of max|x|/127 per row, to nearest even; straight through backward."""
    with torch.no_grad():
        scale = x.abs().amax(dim=-1, keepdim=True).float() / 127
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        offset = torch.round(x / scale) * scale - x
    return x + offset


def fake_uint8(x: torch.Tensor) -> torch.Tensor:
    """x [..., K] that is nowhere negative, rounded to 256 steps of max x/255 per row; straight through backward."""
    with torch.no_grad():
        scale = x.amax(dim=-1, keepdim=True).float() / 255
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        offset = torch.round(x / scale) * scale - x
    return x + offset

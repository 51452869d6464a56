"""Activations rounded in training, straight through backward: learned α, 8 bits per row, and the naive baselines.

Definitions in NumPy: `nearbank.models.elastic.Elastic` and `nearbank.models.rounding`.
"""

from typing import Any

import torch
from torch import nn

from nearbank.models.elastic import Elastic
from nearbank.models.training.straight_through import fake_int8, fake_uint8

SMALLEST_GAIN = 1e-3
START_ROWS = 4096  # of the first batch: enough to know its size
TWN_SHARE = 0.7  # of the mean magnitude: below it a value becomes 0 (arXiv 1605.04711, eq. 6)


def activation_rounding(kind: str, signed: bool, form: str) -> nn.Module:
    """The module that rounds an activation. kind: "fp32", "int8", "elastic2", "elastic1", "twn" or "bwn"."""
    if kind == "fp32":
        return nn.Identity()
    if kind == "int8":
        return EightBits(signed)
    if kind in ("twn", "bwn"):
        return NaiveActivation(kind, signed)
    # Attention probabilities never have their minimum subtracted: masked positions would be part of it.
    return ElasticActivation(Elastic(int(kind[-1]), signed, form if signed else "paper"))


class EightBits(nn.Module):
    """255 steps of max|x|/127 per row, or of max x/255 where x cannot be negative."""

    def __init__(self, signed: bool) -> None:
        super().__init__()
        self.round = fake_int8 if signed else fake_uint8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.round(x)


class ElasticActivation(nn.Module):
    """Rounds x [..., K] to α times the codes of `kind`.

    α is where the first batch starts it times a learned gain, so that one learning rate fits every α.
    """

    first: torch.Tensor

    def __init__(self, kind: Elastic) -> None:
        super().__init__()
        self.kind = kind
        self.gain = nn.Parameter(torch.ones(()))
        self.register_buffer("first", torch.zeros(()))
        self._has_start = False  # known on the host, so that a step need not ask the device

    @property
    def alpha(self) -> torch.Tensor:
        return self.gain.clamp_min(SMALLEST_GAIN) * self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self._has_start:
            self._start(x)
        rounded: torch.Tensor = _Round.apply(x - _offset(x, self.kind), self.alpha, self.kind)  # type: ignore[no-untyped-call]
        return rounded

    @torch.no_grad()
    def _start(self, x: torch.Tensor) -> None:
        """Unless a loaded state has a start."""
        if self.first == 0:
            rows = x.detach().reshape(-1, x.shape[-1])[:START_ROWS].float()
            self.first.fill_(self.kind.first_alpha(rows.cpu().numpy()))
        self._has_start = True


def _offset(x: torch.Tensor, kind: Elastic) -> torch.Tensor:
    """Taken as a constant: no gradient flows through it."""
    x = x.detach()
    if kind.offset == "mean":
        return x.mean(dim=-1, keepdim=True, dtype=torch.float32).to(x.dtype)
    return x.amin(dim=-1, keepdim=True) if kind.offset == "minimum" else x.new_zeros(())


class _Round(torch.autograd.Function):
    """Straight through inside the clip, LSQ's gradient for α."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, alpha: torch.Tensor, kind: Elastic) -> torch.Tensor:
        ratio = x / alpha
        if kind.bits == 1 and kind.signed:
            codes = torch.where(ratio >= 0, 1.0, -1.0).to(ratio.dtype)
        else:
            codes = ratio.clamp(kind.low, kind.high).round()
        ctx.save_for_backward(ratio, codes)
        ctx.kind = kind
        return codes * alpha

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[torch.Tensor, torch.Tensor, None]:
        (grad,) = upstream
        ratio, codes = ctx.saved_tensors
        kind: Elastic = ctx.kind
        inside = (ratio > kind.low) & (ratio < kind.high)
        binary = kind.bits == 1 and kind.signed
        slope = codes if binary else torch.where(inside, codes - ratio, codes)
        share = (ratio.numel() * kind.high) ** -0.5
        return grad * inside, ((grad * slope).sum() * share).reshape(()), None


class NaiveActivation(nn.Module):
    """TWN's or BWN's weight quantiser on the rows of x [..., K]. Gradients pass as they are.

    Where x cannot be negative its zeros are masked positions: they stay 0 and do not count in means.
    """

    def __init__(self, kind: str, signed: bool) -> None:
        super().__init__()
        self.kind, self.signed = kind, signed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            offset = self._rounded(x) - x
        return x + offset

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        size = x.abs().float()
        count = size.shape[-1] if self.signed else (size > 0).sum(-1, keepdim=True).clamp_min(1)
        mean = size.sum(-1, keepdim=True) / count
        if self.kind == "bwn":
            return torch.where(x >= 0, mean, -mean) if self.signed else (x > 0) * mean
        large = size > TWN_SHARE * mean
        scale = (size * large).sum(-1, keepdim=True) / large.sum(-1, keepdim=True).clamp_min(1)
        return torch.sign(x) * large * scale

"""Elastic activations in torch: a module that learns its α. The definition is `nearbank.models.elastic.Elastic`."""

from typing import Any

import torch
from torch import nn

from nearbank.models.elastic import Elastic

SMALLEST_ALPHA = 1e-5


class ElasticActivation(nn.Module):
    """Rounds x [..., K] to α times the codes of `kind`; α starts at the first batch's size."""

    alpha: torch.Tensor
    started: torch.Tensor

    def __init__(self, kind: Elastic) -> None:
        super().__init__()
        self.kind = kind
        self.alpha = nn.Parameter(torch.ones(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.started:
            self._start(x)
        alpha = self.alpha.clamp_min(SMALLEST_ALPHA)
        rounded: torch.Tensor = _Round.apply(x - _offset(x, self.kind), alpha, self.kind)  # type: ignore[no-untyped-call]
        return rounded

    @torch.no_grad()
    def _start(self, x: torch.Tensor) -> None:
        factor = 2 if self.kind.signed else 4
        self.alpha.copy_(factor * x.abs().float().mean() / self.kind.high**0.5)
        self.started.fill_(True)


def _offset(x: torch.Tensor, kind: Elastic) -> torch.Tensor:
    """Taken as a constant: no gradient flows through it."""
    x = x.detach()
    if kind.offset == "mean":
        return x.mean(dim=-1, keepdim=True)
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

"""The optimisers of a run and their learning-rate schedule.

Muon moves the block matrices (it needs about a third fewer steps than AdamW here), AdamW everything else.
"""

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import torch

from nearbank.models.training.network import Learner
from nearbank.models.training.options import TrainOptions

# Muon's polynomial and its scale, as in torch.optim.Muon (adjust_lr_fn="match_rms_adamw").
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
SMALLEST_NORM = 1e-7
RMS_OF_ADAMW = 0.2


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon with Nesterov momentum, for a learning rate that may lie on the device.

    Matrices of one shape are made orthogonal together, which is a few large products on a GPU instead of many small
    ones.
    """

    def __init__(self, matrices: Iterable[torch.Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            held = sorted((p for p in group["params"] if p.grad is not None), key=lambda p: tuple(p.shape))
            for _, alike in groupby(held, key=lambda p: tuple(p.shape)):
                self._move(list(alike), group)

    def _move(self, matrices: list[torch.Tensor], group: dict[str, Any]) -> None:
        directions = orthogonal(torch.stack([self._direction(p, group["momentum"]) for p in matrices]))
        rate = group["lr"] * (RMS_OF_ADAMW * max(matrices[0].shape) ** 0.5)
        for matrix, direction in zip(matrices, directions, strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction.to(matrix.dtype) * rate)

    def _direction(self, matrix: torch.Tensor, momentum: float) -> torch.Tensor:
        """The gradient, drawn towards its running mean."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        buffer = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(buffer, momentum)


def working_dtype(device: str) -> torch.dtype:
    """What matrix products of training are done in: bfloat16 where the device multiplies it, else float32.

    A processor without such instructions takes several times as long for bfloat16 as for float32.
    """
    native = device == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())
    return torch.bfloat16 if native else torch.float32


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """[G, N, K] → about the nearest matrices with orthonormal rows (or columns), in the working precision."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.transpose(1, 2) if tall else matrices).to(working_dtype(matrices.device.type))
    x = x / x.flatten(1).norm(dim=1).clamp(min=SMALLEST_NORM)[:, None, None]
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


def build_optimisers(network: Learner, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon, AdamW. On a GPU AdamW is one kernel and can be captured in a CUDA graph."""
    matrices = [p for name, p in network.named_parameters() if _is_block_matrix(name, p)]
    others = [p for name, p in network.named_parameters() if not _is_block_matrix(name, p)]
    on_gpu = network.device.type == "cuda"
    rate = torch.tensor(lr, device=network.device) if on_gpu else lr
    adamw = torch.optim.AdamW(others, rate, betas=(0.9, 0.99), weight_decay=0.0, fused=on_gpu, capturable=on_gpu)
    return [Muon(matrices, lr, weight_decay, momentum=0.95), adamw]


def _is_block_matrix(name: str, parameter: torch.Tensor) -> bool:
    return "h" in name.split(".") and parameter.dim() == 2


def schedule(step: int, steps: int, options: TrainOptions) -> float:
    """Share of the peak learning rate at a step: linear warm-up, plateau, linear fall to zero."""
    warm = (step + 1) / options.warmup_steps if options.warmup_steps else 1.0
    fall = (steps - step) * 100 / max(1, steps * options.decay_percent)
    return min(1.0, warm, fall)


def set_learning_rate(optimisers: list[torch.optim.Optimizer], lr: float | torch.Tensor) -> None:
    """One rate for all. A tensor is read at every step."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = lr

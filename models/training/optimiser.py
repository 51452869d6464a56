"""The optimisers of a run and their learning-rate schedule.

Muon moves the block matrices (it needs about a third fewer steps than AdamW here), AdamW everything else.
"""

import torch

from nearbank.models.training.network import Learner
from nearbank.models.training.options import TrainOptions


def build_optimisers(network: Learner, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in network.named_parameters() if _is_block_matrix(name, p)]
    others = [p for name, p in network.named_parameters() if not _is_block_matrix(name, p)]
    muon = torch.optim.Muon(matrices, lr, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr, betas=(0.9, 0.99), weight_decay=0.0)]


def _is_block_matrix(name: str, parameter: torch.Tensor) -> bool:
    return "h" in name.split(".") and parameter.dim() == 2


def schedule(step: int, steps: int, options: TrainOptions) -> float:
    """Share of the peak learning rate at a step: linear warm-up, plateau, linear fall to zero."""
    warm = (step + 1) / options.warmup_steps if options.warmup_steps else 1.0
    fall = (steps - step) * 100 / max(1, steps * options.decay_percent)
    return min(1.0, warm, fall)


def set_learning_rate(optimisers: list[torch.optim.Optimizer], lr: float) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = lr

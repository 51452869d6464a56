"""Losses: the task's own, and the distance of a student's logits from its teacher's; and the validation loss."""

import torch
from torch.nn import functional

from nearbank.models.training.data import validation_batches
from nearbank.models.training.network import CharGpt


def task_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats per token, averaged."""
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def student_loss(student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The paper's pair of losses, averaged: the text itself, and the teacher's probabilities."""
    return (task_loss(student, targets) + distillation_loss(student, teacher)) / 2


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ student) in nats per token, over the whole vocabulary."""
    return functional.kl_div(
        student.float().log_softmax(-1).flatten(0, 1),
        teacher.float().log_softmax(-1).flatten(0, 1),
        reduction="batchmean",
        log_target=True,
    )


@torch.no_grad()
def validation_loss(network: CharGpt, tokens: torch.Tensor, context: int, batch: int = 16) -> float:
    """Nats per character over the whole split in float32; see `validation_batches` for the windows."""
    was_training, device = network.training, network.wte.weight.device
    network.eval()
    total = 0.0
    for inputs, targets in validation_batches(tokens, batch, context):
        logits = network(inputs.to(device))
        total += float(functional.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten(), reduction="sum"))
    network.train(was_training)
    return total / (len(tokens) - 1)

"""Losses: the text's own, and a student's distances from its teacher."""

import torch
from torch.nn import functional

from nearbank.models.training.network import States


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


def hidden_loss(student: States, teacher: States) -> torch.Tensor:
    """Squared distance of the residual streams after each block, over the teacher's mean square; mean over layers.

    The ratio, since the stream of a pre-norm network has no size of its own.
    """
    pairs = zip(student.hidden, teacher.hidden, strict=True)
    distances = [(s.float() - t.float()).square().mean() / t.float().square().mean() for s, t in pairs]
    return torch.stack(distances).mean()


def attention_loss(student: States, teacher: States) -> torch.Tensor:
    """Mean squared difference of the attention scores over pairs that are attended; mean over attentions."""
    pairs = zip(student.scores, teacher.scores, strict=True)
    distances = [(s.values.float() - t.values.float()).square().mean() / t.attended for s, t in pairs]
    return torch.stack(distances).mean()

"""What a network learns: batches of inputs and targets drawn by a seed, and how it does on text it has not seen.

`Continuing`: the next character, for a decoder. `Restoring`: the text itself from a damaged copy, for an encoder and
decoder. Leaves reading and splitting the text to `data`.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional

from nearbank.models.training.data import Corpus, training_batch, validation_batches
from nearbank.models.training.network import Learner
from nearbank.models.training.options import SPAN, TrainOptions

Batch = tuple[Any, torch.Tensor]  # what the network takes, and the tokens [B, T] it should give


class Task(Protocol):
    """A way to learn from a text."""

    def batch(self, generator: torch.Generator) -> Batch:
        """Training windows drawn with `generator`."""

    def validation_loss(self, network: Learner) -> float:
        """Nats per character on the text's last part, in float32."""


@dataclass(frozen=True)
class Continuing:
    """Every character of a window from those before it. `validation_batches` says which windows validate."""

    corpus: Corpus
    size: int
    context: int

    def batch(self, generator: torch.Generator) -> Batch:
        return training_batch(self.corpus, self.size, self.context, generator)

    def validation_loss(self, network: Learner) -> float:
        return validation_loss(network, self.corpus.validation, self.context)


@torch.no_grad()
def validation_loss(network: Learner, tokens: torch.Tensor, context: int, batch: int = 16) -> float:
    """Nats per character over the whole split in float32; see `validation_batches` for the windows."""
    was_training = network.training
    network.eval()
    total = 0.0
    for inputs, targets in validation_batches(tokens, batch, context):
        logits = network(inputs.to(network.device))
        losses = functional.cross_entropy(logits.flatten(0, 1), targets.to(network.device).flatten(), reduction="sum")
        total += float(losses)
    network.train(was_training)
    return total / (len(tokens) - 1)


DAMAGED_PERCENT = 30  # of a window's characters, half of them masked, half shuffled
VALIDATED_TOGETHER = 64  # windows
EXTRA_TOKENS = 2  # behind the vocabulary: what stands for a masked character, and what comes before the first


@dataclass(frozen=True)
class Restoring:
    """A window of text from a copy in which spans of five characters are masked or shuffled.

    The network takes (damaged window, window moved right by one) and gives the window. Validation damages windows side
    by side with its own seed.
    """

    corpus: Corpus
    size: int
    context: int
    seed: int

    def batch(self, generator: torch.Generator) -> Batch:
        _, windows = training_batch(self.corpus, self.size, self.context, generator)
        return self._shown(windows, self.damaged(windows, generator))

    def damaged(self, windows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """windows [B, T] with about `DAMAGED_PERCENT` of their spans masked or shuffled."""
        spans = windows.reshape(len(windows), -1, SPAN)
        fate = torch.rand(spans.shape[:2], generator=generator)[..., None]
        order = torch.rand(spans.shape, generator=generator).argsort(-1)
        share = DAMAGED_PERCENT / 200
        kept = torch.where(fate < 2 * share, spans.gather(-1, order), spans)
        return torch.where(fate < share, len(self.corpus.vocabulary), kept).flatten(1)

    def _shown(self, windows: torch.Tensor, damaged: torch.Tensor) -> Batch:
        start = torch.full_like(windows[:, :1], len(self.corpus.vocabulary) + 1)
        return (damaged, torch.cat([start, windows[:, :-1]], dim=1)), windows

    def validation_loss(self, network: Learner) -> float:
        """Over every character of the windows."""
        return self.losses(network)[0]

    @torch.no_grad()
    def losses(self, network: Learner) -> tuple[float, float]:
        """Nats per character of the validation split: over all, and over masked and changed characters alone."""
        was_training = network.training
        network.eval()
        generator = torch.Generator().manual_seed(self.seed)
        tokens = self.corpus.validation
        sums = torch.zeros(4, dtype=torch.float64)
        whole = tokens[: len(tokens) // self.context * self.context].view(-1, self.context)
        for first in range(0, len(whole), VALIDATED_TOGETHER):
            windows = whole[first : first + VALIDATED_TOGETHER]
            (damaged, before), wanted = self._shown(windows, self.damaged(windows, generator))
            logits = network((damaged.to(network.device), before.to(network.device))).cpu()
            found = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)
            hurt = damaged != windows
            parts = (found.sum(), float(found.numel()), (found * hurt).sum(), float(hurt.sum()))
            sums += torch.tensor([float(part) for part in parts], dtype=torch.float64)
        network.train(was_training)
        return float(sums[0] / sums[1]), float(sums[2] / sums[3])


def task_of(corpus: Corpus, options: TrainOptions) -> Task:
    """What a run's networks learn."""
    if options.task == "restore":
        return Restoring(corpus, options.batch, options.context, options.seed)
    return Continuing(corpus, options.batch, options.context)

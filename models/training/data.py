"""The text a character model learns from: vocabulary, split, seeded training windows, fixed validation windows.

Leaves the network to `network` and the order of steps to `loop`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nearbank.errors import NearbankError

TRAIN_SHARE_PERCENT = 90


@dataclass(frozen=True)
class Corpus:
    """A text as token numbers. `train` and `validation` are int64 [characters]."""

    vocabulary: str
    train: torch.Tensor
    validation: torch.Tensor
    sha256: str


def read_corpus(path: Path, context: int) -> Corpus:
    """Read a UTF-8 text: the first 90 % of its characters train, the rest validates."""
    raw = _read_bytes(path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NearbankError(f"{path}: not UTF-8 text (byte {error.start}); convert it to UTF-8") from None
    vocabulary = "".join(sorted(set(text)))
    cut = len(text) * TRAIN_SHARE_PERCENT // 100
    if len(text) - cut < 2 or cut < context + 1:
        raise NearbankError(
            f"{path}: {len(text)} characters are too few for a context of {context}; "
            f"give at least {(context + 2) * 100 // TRAIN_SHARE_PERCENT + 20}"
        )
    number_of = {character: number for number, character in enumerate(vocabulary)}
    tokens = torch.from_numpy(np.array([number_of[character] for character in text], dtype=np.int64))
    return Corpus(vocabulary, tokens[:cut], tokens[cut:], hashlib.sha256(raw).hexdigest())


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NearbankError(f"{path}: cannot read the text ({error.strerror}); give a UTF-8 text file") from None


def training_batch(
    corpus: Corpus, batch: int, context: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random windows: inputs and the characters that follow them, each int64 [batch, context]."""
    starts = torch.randint(len(corpus.train) - context, (batch,), generator=generator)
    windows = corpus.train[starts[:, None] + torch.arange(context + 1)]
    return windows[:, :-1], windows[:, 1:]


def validation_batches(tokens: torch.Tensor, batch: int, context: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every token but the first is predicted once, in windows side by side; the last window may be shorter."""
    inputs, targets = tokens[:-1], tokens[1:]
    cut = len(inputs) // context * context
    for first in range(0, cut, batch * context):
        rows = slice(first, min(first + batch * context, cut))
        yield inputs[rows].view(-1, context), targets[rows].view(-1, context)
    if cut < len(inputs):
        yield inputs[None, cut:], targets[None, cut:]

"""Choosing the next token from logits: greedy, or sampled with temperature, top-k and top-p from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. top_k keeps the k likeliest tokens, top_p the likeliest that sum to p.

    Two runs with equal settings choose alike.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise NearbankError(f"temperature is {self.temperature}; expected 0 (greedy) to 100")
        if self.top_k is not None and self.top_k < 1:
            raise NearbankError(f"top-k is {self.top_k}; expected 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise NearbankError(f"top-p is {self.top_p}; expected more than 0 and at most 1")
        if self.seed < 0:
            raise NearbankError(f"seed is {self.seed}; expected 0 or more")

    def generator(self, sequence: int = 0) -> np.random.Generator:
        """The source of chance of one sequence."""
        return np.random.default_rng((self.seed, sequence))


def choose(logits: npt.NDArray[np.float32], sampling: Sampling, generator: np.random.Generator) -> int:
    """The next token after logits [V]. Ties go to the lower token number."""
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    order = np.argsort(-logits, kind="stable")
    probabilities = _softmax(logits[order].astype(np.float64) / sampling.temperature)
    kept = probabilities[: _count(probabilities, sampling)]
    mass = np.cumsum(kept)
    drawn = generator.random() * mass[-1]
    return int(order[min(int(np.searchsorted(mass, drawn, side="right")), len(kept) - 1)])


def _softmax(scores: Doubles) -> Doubles:
    weights: Doubles = np.exp(scores - scores.max())
    weights /= weights.sum()
    return weights


def _count(probabilities: Doubles, sampling: Sampling) -> int:
    """How many of the likeliest tokens may be drawn; at least one."""
    count = len(probabilities) if sampling.top_k is None else min(sampling.top_k, len(probabilities))
    if sampling.top_p is not None:
        enough = int(np.searchsorted(np.cumsum(probabilities), sampling.top_p)) + 1
        count = min(count, enough)
    return count

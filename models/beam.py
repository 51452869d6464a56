"""Beam search over next-token scores: pure bookkeeping, no model and no cache.

The outputs are those of transformers' `generate(num_beams=…)`, in whose float32 all scores are kept: candidates are
ranked by their summed log probabilities, finished outputs by that sum divided by length^penalty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nearbank.models.execution import Floats
from nearbank.models.search import Search, allowed

OUT = np.float32(-1e9)  # the score of what is no candidate; large, but not so that sums with it overflow
Output = tuple[int, ...]


@dataclass(frozen=True)
class Finished:
    """An output with its score; `done` is False for places that nothing has filled yet."""

    score: np.float32
    output: Output
    done: bool


@dataclass(frozen=True)
class Beams:
    """Running outputs with their summed log probabilities, best first, and the best finished ones."""

    outputs: tuple[Output, ...]
    scores: tuple[np.float32, ...]
    finished: tuple[Finished, ...]
    improvable: bool = True
    stopped: bool = False

    @property
    def best(self) -> Output:
        """The best output so far, start included."""
        return self.finished[0].output if self.finished[0].done else self.outputs[0]


def begin(start: Output, beams: int) -> Beams:
    """As many beams as wanted, of which only the first counts until they differ."""
    scores = (np.float32(0), *[OUT] * (beams - 1))
    return Beams((start,) * beams, scores, tuple(Finished(OUT, start, False) for _ in range(beams)))


def advance(state: Beams, logits: Floats, begun: int, longest: int, search: Search) -> tuple[Beams, tuple[int, ...]]:
    """The beams after logits [B, V], and which beam each of them continues.

    begun: tokens of the outputs that were given; longest: tokens of an output at most.
    """
    beams = len(state.outputs)
    scores = allowed(log_softmax(logits), state.outputs, begun, longest, search)
    summed = (scores + np.array(state.scores, np.float32)[:, None]).ravel()
    kept = _largest(summed, max(2, 1 + len(search.ends)) * beams)
    parents, tokens = np.divmod(kept, logits.shape[1])
    outputs = [(*state.outputs[p], int(t)) for p, t in zip(parents, tokens, strict=True)]
    ends = np.array([len(o) >= longest or o[-1] in search.ends for o in outputs])
    running = summed[kept] + ends.astype(np.float32) * OUT
    chosen = _largest(running, beams)
    finished = _finished(state, outputs, summed[kept], ends, begun, search)
    length = len(outputs[0])
    best = np.float32(running[chosen[0]])
    improvable = state.improvable and _can_improve(best, finished, length, begun, longest, search)
    full = search.early_stopping is True and all(f.done for f in finished)
    after = Beams(
        tuple(outputs[i] for i in chosen),
        tuple(np.float32(running[i]) for i in chosen),
        finished,
        improvable,
        stopped=not improvable or full or bool(ends.all()),
    )
    return after, tuple(int(parents[i]) for i in chosen)


def _finished(
    state: Beams, outputs: list[Output], sums: Floats, ends: np.ndarray, begun: int, search: Search
) -> tuple[Finished, ...]:
    """The best of what was finished and of the candidates that end now, if they are among the first."""
    beams = len(state.outputs)
    ends = ends & (np.arange(len(outputs)) < beams)
    full = search.early_stopping is True and all(f.done for f in state.finished)
    scores = sums / np.float32((len(outputs[0]) - begun) ** search.length_penalty)
    for closed in (np.full(len(outputs), full), np.full(len(outputs), not state.improvable), ~ends):
        scores = scores + closed.astype(np.float32) * OUT
    new = [Finished(np.float32(s), o, bool(e)) for s, o, e in zip(scores, outputs, ends, strict=True)]
    return tuple(sorted([*state.finished, *new], key=lambda f: -f.score)[:beams])


def _can_improve(
    best: np.float32, finished: tuple[Finished, ...], length: int, begun: int, longest: int, search: Search
) -> bool:
    """Whether the best running output could still beat the worst finished one, by the rule of `early_stopping`."""
    late = search.early_stopping == "never" and search.length_penalty > 0
    hoped = best / np.float32(((longest if late else length) - begun) ** search.length_penalty)
    worst = min(f.score for f in finished)
    return any(bool(hoped > (worst if f.done else OUT)) for f in finished)


def log_softmax(logits: Floats) -> Floats:
    """log softmax of logits [B, V], in float32."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float32)


def _largest(values: Floats, count: int) -> np.ndarray:
    """Indices of the `count` largest, largest first; of equal ones the first."""
    count = min(count, len(values))
    candidates = np.flatnonzero(values >= np.partition(values, -count)[-count])
    order = np.argsort(-values[candidates], kind="stable")[:count]
    return np.asarray(candidates[order])

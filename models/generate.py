"""Generating text: the prompt in one pass, then one token per pass with the KV cache.

`steps` is the loop, for one or more sequences; `generate` collects it for one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns

import numpy as np

from nearbank.errors import NearbankError
from nearbank.models.energy import read_counters, spent_uj
from nearbank.models.execution import Pass, Row, Tokens
from nearbank.models.model import Model
from nearbank.models.operations import OUTSIDE, elementwise
from nearbank.models.sampling import Sampling, choose
from nearbank.models.sketch import check_counts

GREEDY = Sampling()
Progress = Callable[[int, int], None]  # (tokens made, tokens wanted)


@dataclass(frozen=True)
class StepResult:
    """One pass: the token it chose for each sequence, its wall time, and what ran (empty unless recorded)."""

    index: int
    phase: str
    tokens: tuple[int, ...]
    time_ns: int
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Generation:
    """A finished generation of one sequence. `step_ns`: the prompt's pass, then one entry per further token.

    energy_uj: of the processor packages from the first pass to the last, None where the machine has no counters.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    step_ns: tuple[int, ...] = field(repr=False)
    energy_uj: int | None = None

    @property
    def seconds(self) -> float:
        """Wall time of all passes, sampling included."""
        return sum(self.step_ns) / 1e9

    @property
    def tokens_per_s(self) -> float:
        """New tokens per second, the prompt's pass included."""
        return len(self.tokens) / self.seconds

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Tokens per second after the first; None when there is only one."""
        decode = self.step_ns[1:]
        return len(decode) / (sum(decode) / 1e9) if decode else None

    @property
    def first_token_s(self) -> float:
        """Time to the first token, in seconds."""
        return self.step_ns[0] / 1e9


def generate(
    model: Model,
    prompt: str | Sequence[int],
    tokens: int,
    sampling: Sampling = GREEDY,
    progress: Progress | None = None,
) -> Generation:
    """`tokens` new tokens after `prompt` (text or token numbers).

    Raises `NearbankError` for an empty prompt, an unknown character, or more tokens than the context holds.
    """
    numbers = prompt_numbers(model, prompt)
    results = []
    before = read_counters()
    for result in steps(model, [numbers], tokens, sampling):
        results.append(result)
        if progress is not None:
            progress(len(results), tokens)
    return collect(model, len(numbers), results, spent_uj(before, read_counters()))


def collect(
    model: Model, prompt_tokens: int, results: Sequence[StepResult], energy_uj: int | None = None
) -> Generation:
    """The generation of the first sequence from the results of all passes."""
    chosen = tuple(result.tokens[0] for result in results)
    text = model.decode(chosen) if model.tokenizer is not None else ""
    return Generation(text, chosen, prompt_tokens, tuple(result.time_ns for result in results), energy_uj)


def prompt_numbers(model: Model, prompt: str | Sequence[int]) -> Tokens:
    """The prompt as token numbers, checked against the vocabulary."""
    if isinstance(prompt, str):
        return model.encode(prompt)
    numbers = np.asarray(prompt, dtype=np.int64)
    outside = numbers[(numbers < 0) | (numbers >= model.shape.vocabulary)]
    if outside.size:
        raise NearbankError(f"token {outside[0]}: {model.name} has tokens 0 to {model.shape.vocabulary - 1}")
    return numbers


def steps(
    model: Model, prompts: Sequence[Tokens], tokens: int, sampling: Sampling = GREEDY, record: bool = False
) -> Iterator[StepResult]:
    """The passes of generating `tokens` tokens after each prompt, all sequences together.

    Sequence s draws from its own source of chance, (seed, s), so it does not depend on its neighbours.
    """
    if not prompts:
        raise NearbankError("no prompts; expected one or more")
    for prompt in prompts:
        check_counts(model.shape, len(prompt), tokens)
    return _steps(model, prompts, tokens, sampling, record)


def _steps(
    model: Model, prompts: Sequence[Tokens], tokens: int, sampling: Sampling, record: bool
) -> Iterator[StepResult]:
    caches = [model.cache(len(prompt) + tokens) for prompt in prompts]
    generators = [sampling.generator(s) for s in range(len(prompts))]
    new = list(prompts)
    for index in range(tokens):
        rows: list[Row] | None = [] if record else None
        start = perf_counter_ns()
        run = Pass(np.concatenate(new), [len(part) for part in new], caches, rows)
        logits = model.network.forward(run)
        chosen = tuple(_sample(logits[s], sampling, generator, s, rows) for s, generator in enumerate(generators))
        time_ns = perf_counter_ns() - start
        new = [np.array([token], dtype=np.int64) for token in chosen]
        yield StepResult(index, "decode" if index else "prefill", chosen, time_ns, tuple(rows or ()))


def _sample(
    logits: np.ndarray, sampling: Sampling, generator: np.random.Generator, sequence: int, rows: list[Row] | None
) -> int:
    start = perf_counter_ns()
    token = choose(logits, sampling, generator)
    if rows is not None:
        operation = elementwise("sample", "sample", 1, len(logits), sequence)
        rows.append((OUTSIDE, operation, perf_counter_ns() - start))
    return token

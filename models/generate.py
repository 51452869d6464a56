"""Generating text: the prompt in one pass, then one token per pass with the KV cache.

`steps` is the loop, for one or more sequences; `generate` collects it for one prompt. Where the model has an encoder,
the prompt is the source that it reads, and the decoder begins with the start token of the model's `Search`.
`nearbank.models.beam_steps` is the loop with beams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns

import numpy as np

from nearbank.errors import NearbankError
from nearbank.models.decoder import Decoder, decoder_of
from nearbank.models.energy import Energy, read_energy, spent
from nearbank.models.execution import Row, Tokens
from nearbank.models.model import Model
from nearbank.models.operations import OUTSIDE, elementwise
from nearbank.models.sampling import Sampling, choose
from nearbank.models.search import Search, allowed
from nearbank.models.sketch import check_counts

GREEDY = Sampling()
Progress = Callable[[int, int], None]  # (tokens made, tokens wanted)


@dataclass(frozen=True)
class StepResult:
    """One pass: the token it chose for each sequence, its wall time, and what ran (empty unless recorded).

    output: the best output, start excluded, after the last pass of a search with beams; else None.
    """

    index: int
    phase: str
    tokens: tuple[int, ...]
    time_ns: int
    rows: tuple[Row, ...] = ()
    output: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Generation:
    """A finished generation of one sequence. `step_ns`: the prompt's pass, then one entry per further token.

    energy: from the first pass to the last, where the machine has counters.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    step_ns: tuple[int, ...] = field(repr=False)
    energy: Energy = field(default_factory=Energy)

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
    search: Search | None = None,
) -> Generation:
    """`tokens` new tokens after `prompt` (text or token numbers), or fewer where an encoder-decoder ends by itself.

    search: beams and rules; the checkpoint's own for an encoder-decoder, none for a decoder, unless given.
    Raises `NearbankError` for an empty prompt, an unknown character, or more tokens than the context holds.
    """
    numbers = prompt_numbers(model, prompt)
    results = []
    before = read_energy(model.backend)
    for result in chosen_steps(model, numbers, tokens, sampling, search):
        results.append(result)
        if progress is not None:
            progress(len(results), tokens)
    return collect(model, len(numbers), results, spent(before, read_energy(model.backend)))


def chosen_steps(
    model: Model, prompt: Tokens, tokens: int, sampling: Sampling, search: Search | None, record: bool = False
) -> Iterator[StepResult]:
    """`steps` for one prompt, or the loop with beams where the search has some."""
    rules = search or model.search
    if rules is None or rules.beams == 1:
        return steps(model, [prompt], tokens, sampling, record, rules)
    from nearbank.models.beam_steps import beam_steps

    if sampling.temperature > 0:
        raise NearbankError(f"{rules.beams} beams with temperature {sampling.temperature}; beams are searched without")
    return beam_steps(model, prompt, tokens, rules, record)


def collect(model: Model, prompt_tokens: int, results: Sequence[StepResult], energy: Energy) -> Generation:
    """The generation of the first sequence from the results of all passes."""
    chosen = results[-1].output or tuple(result.tokens[0] for result in results)
    text = model.decode(chosen) if model.tokenizer is not None else ""
    return Generation(text, chosen, prompt_tokens, tuple(result.time_ns for result in results), energy)


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
    model: Model,
    prompts: Sequence[Tokens],
    tokens: int,
    sampling: Sampling = GREEDY,
    record: bool = False,
    search: Search | None = None,
) -> Iterator[StepResult]:
    """The passes of generating `tokens` tokens after each prompt, all sequences together.

    Sequence s draws from its own source of chance, (seed, s), so it does not depend on its neighbours. With a search
    (an encoder-decoder has its own) the passes end when every sequence has ended; those that end early go on till then.
    """
    rules = search or model.search
    if not prompts:
        raise NearbankError("no prompts; expected one or more")
    for prompt in prompts:
        check_counts(model.shape, len(prompt), tokens)
    if rules is not None:
        rules.check_tokens(model.shape.vocabulary)
    return _steps(model, prompts, tokens, sampling, record, rules)


def begun_with(model: Model, prompts: Sequence[Tokens], search: Search | None) -> list[Tokens]:
    """What the decoder begins with: the prompts, or the start token where they are an encoder's."""
    if model.shape.encoder is None:
        return list(prompts)
    start = search.start if search else 0
    return [np.array([start], dtype=np.int64) for _ in prompts]


def _steps(
    model: Model, prompts: Sequence[Tokens], tokens: int, sampling: Sampling, record: bool, search: Search | None
) -> Iterator[StepResult]:
    begun = begun_with(model, prompts, search)
    decoder = decoder_of(model, prompts, begun, tokens, record)
    choosers = [_Chooser(s, sampling, search, part, tokens) for s, part in enumerate(begun)]
    chosen: tuple[int, ...] = ()
    for index in range(tokens):
        rows: list[Row] | None = [] if record else None
        start = perf_counter_ns()
        if index == 0:
            decoder.prefill(rows)
        else:
            decoder.step(chosen, rows)
        chosen = tuple(chooser.choose(decoder, rows) for chooser in choosers)
        time_ns = perf_counter_ns() - start
        yield StepResult(index, "decode" if index else "prefill", chosen, time_ns, tuple(rows or ()))
        if search is not None and all(chooser.ended for chooser in choosers):
            return


class _Chooser:
    """Chooses the tokens of one sequence."""

    def __init__(self, sequence: int, sampling: Sampling, search: Search | None, begun: Tokens, tokens: int) -> None:
        self._sequence, self._sampling, self._search = sequence, sampling, search
        self._generator = sampling.generator(sequence)
        self._output = [int(token) for token in begun]
        self._begun, self._longest = len(begun), len(begun) + tokens

    def choose(self, decoder: Decoder, rows: list[Row] | None) -> int:
        """The token after the last pass, noted as an operation where rows are wanted."""
        if self._search is None and self._sampling.temperature == 0:
            start = perf_counter_ns()
            token = decoder.likeliest(self._sequence)
        else:
            scores = decoder.scores(self._sequence)
            if self._search is not None:
                scores = allowed(scores, [self._output], self._begun, self._longest, self._search)
            start = perf_counter_ns()
            token = choose(scores[0], self._sampling, self._generator)
        if rows is not None:
            operation = elementwise("sample", "sample", 1, decoder.vocabulary, self._sequence)
            rows.append((OUTSIDE, operation, perf_counter_ns() - start))
        self._output.append(token)
        return token

    @property
    def ended(self) -> bool:
        """Whether an end token was chosen."""
        ends = self._search.ends if self._search is not None else ()
        return any(token in ends for token in self._output[self._begun :])

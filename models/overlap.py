"""What a precision costs a sequence-to-sequence model: its outputs next to the user's, by ROUGE and BLEU.

`compare_pairs` is to encoder-decoders what `nearbank.models.quality.compare` is to decoders. The scores are those of
the packages rouge-score and sacrebleu (the extra "quality"), which lay down how words are cut and counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.models.generate import generate
from nearbank.models.kv import kv_scheme
from nearbank.models.load import load_model
from nearbank.models.model import Model
from nearbank.models.quality import kv_bytes_per_token, read_text, weight_bytes

Progress = Callable[[int, int], None]  # (pairs done, pairs of one model)
ROUGE = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class Pair:
    """A text to read and the text that is wanted."""

    source: str
    target: str


@dataclass(frozen=True)
class Scores:
    """Outputs against targets, 0 to 100: mean F-measures of ROUGE (words stemmed), BLEU over the whole corpus."""

    rouge1: float
    rouge2: float
    rougeL: float  # noqa: N815 — its name in the literature
    bleu: float


@dataclass(frozen=True)
class PairQuality:
    """One model's scores on a list of pairs, the tokens it wrote, and what it stores.

    kv_bytes_per_token: of the decoder's own cache, all layers; a source takes as much for each of its tokens.
    """

    model: str
    weights: str
    inputs: str
    kv: str
    pairs: int
    tokens: int
    scores: Scores
    weight_bytes: int
    kv_bytes_per_token: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """All fields in one level, for a data frame or JSON."""
        own = asdict(self)
        return {**own, **own.pop("scores")}


def read_pairs(path: Path, most: int | None = None) -> list[Pair]:
    """Pairs of a JSON-lines file, `{"source": …, "target": …}` on each line, at most so many.

    Raises `NearbankError` naming the first line that is not such an object.
    """
    lines = [(i, line) for i, line in enumerate(read_text(path).splitlines(), start=1) if line.strip()]
    if not lines:
        raise NearbankError(f'{path}: no pairs; expected a line {{"source": …, "target": …}} for each')
    return [_pair(f"{path}: line {number}", line) for number, line in lines[:most]]


def _pair(where: str, line: str) -> Pair:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise NearbankError(f"{where}: not JSON ({error}); expected one object per line") from None
    source, target = ((found.get(key) if isinstance(found, dict) else None) for key in ("source", "target"))
    if not (isinstance(source, str) and source.strip() and isinstance(target, str) and target.strip()):
        raise NearbankError(f'{where}: expected "source" and "target", two texts that are not empty')
    return Pair(source, target)


def score(outputs: Sequence[str], targets: Sequence[str]) -> Scores:
    """Scores of outputs against targets, one target for each. Raises `NearbankError` without the extra "quality"."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu import corpus_bleu
    except ImportError as error:
        raise NearbankError(f"ROUGE and BLEU need {error.name}; pip install 'nearbank[quality]'") from error
    scorer = RougeScorer(ROUGE, use_stemmer=True)
    found = [scorer.score(target, output) for output, target in zip(outputs, targets, strict=True)]
    one, two, longest = (100 * sum(pair[name].fmeasure for pair in found) / len(found) for name in ROUGE)
    return Scores(one, two, longest, corpus_bleu(list(outputs), [list(targets)]).score)


def measure_pairs(
    model: Model, pairs: Sequence[Pair], tokens: int = 128, progress: Progress | None = None
) -> PairQuality:
    """Write an output of at most `tokens` tokens for each source, by the checkpoint's own search, and score them."""
    if model.shape.encoder is None:
        raise NearbankError(f"{model.name} has no encoder; pairs are for encoder-decoders, a decoder scores a text")
    start, made, outputs = perf_counter(), 0, []
    for number, pair in enumerate(pairs, start=1):
        try:
            output = generate(model, pair.source, min(tokens, model.shape.context))
        except NearbankError as error:
            raise NearbankError(f"pair {number}: {error}") from error
        outputs.append(output.text)
        made += len(output.tokens)
        if progress is not None:
            progress(number, len(pairs))
    return PairQuality(
        model.name,
        model.weights,
        model.inputs,
        model.kv,
        len(pairs),
        made,
        score(outputs, [pair.target for pair in pairs]),
        weight_bytes(model),
        kv_bytes_per_token(model),
        perf_counter() - start,
    )


def compare_pairs(
    source: str | Path,
    pairs: Sequence[Pair],
    weights: Sequence[str | None] = (None,),
    kv: Sequence[str | None] = (None,),
    inputs: str | None = None,
    backend: str = "auto",
    tokens: int = 128,
    progress: Progress | None = None,
) -> Iterator[PairQuality]:
    """`measure_pairs` for every pair of a weight format and a KV cache (None: fp32 weights, bf16 cache).

    Names, and that the scorers are there, are checked before the first model is loaded.
    """
    for name in kv:
        if kv_scheme(name or "bf16").needs_fit:
            raise NearbankError(f"KV cache '{name}' is fitted to a running text; pairs have none, choose another")
    for weight in weights:
        format_named(weight or "fp32")
    score(["a"], ["a"])
    for weight in weights:
        for name in kv:
            model = load_model(source, backend, name, weights=weight, inputs=inputs)
            yield measure_pairs(model, pairs, tokens, progress)

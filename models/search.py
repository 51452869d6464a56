"""How a model's output is searched: beams, what ends it, and which tokens are forced or forbidden on the way.

`Search` is what a checkpoint's `generation_config.json` says, or the user. `allowed` applies the rules to scores;
`nearbank.models.beam` is the search itself. Meanings are those of transformers' `generate`, whose results tests hold
ours against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nearbank.errors import NearbankError
from nearbank.models.execution import Floats

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True)
class Search:
    """beams 1 is greedy (or sampling). Lengths count tokens of the output, the first (start) token included.

    early_stopping: True ends when there are as many finished outputs as beams; False when the best running one is no
    longer better than the worst of them at its length; "never" when none can become better. ends: tokens that finish
    an output; forced_first, forced_last: what comes after the start token, and last of all at the greatest length.
    """

    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    no_repeat_ngram: int = 0
    min_length: int = 0
    start: int = 0
    ends: tuple[int, ...] = ()
    forced_first: int | None = None
    forced_last: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise NearbankError(f"beams is {self.beams}; expected 1 or more")
        if self.early_stopping not in (True, False, "never"):
            raise NearbankError(f"early stopping is {self.early_stopping!r}; expected true, false or 'never'")
        if self.no_repeat_ngram < 0 or self.min_length < 0:
            raise NearbankError(f"no-repeat n-gram {self.no_repeat_ngram}, min length {self.min_length}; not negative")
        if not np.isfinite(self.length_penalty):
            raise NearbankError(f"length penalty is {self.length_penalty}; expected a number")

    def check_tokens(self, vocabulary: int) -> None:
        """Raise `NearbankError` for a token that the vocabulary does not have."""
        named = (self.start, *self.ends, *self.forced_last, *((self.forced_first,) if self.forced_first else ()))
        for token in named:
            if not 0 <= token < vocabulary:
                raise NearbankError(f"token {token} of the generation settings; the model has 0 to {vocabulary - 1}")


def allowed(scores: Floats, outputs: Sequence[Sequence[int]], begun: int, longest: int, search: Search) -> Floats:
    """scores [B, V] with −inf for tokens that may not follow each of the outputs [B][length].

    begun: tokens of the outputs that were given, not generated; longest: tokens of an output at most.
    """
    length = len(outputs[0])
    kept = scores.copy()
    if search.no_repeat_ngram:
        for row, output in zip(kept, outputs, strict=True):
            row[_repeating(output, search.no_repeat_ngram)] = -np.inf
    if length < search.min_length:
        kept[:, list(search.ends)] = -np.inf
    if length == 1 == begun and search.forced_first is not None:
        return _only(kept, [search.forced_first])
    if length == longest - 1 and search.forced_last:
        return _only(kept, list(search.forced_last))
    return kept


def _repeating(output: Sequence[int], size: int) -> list[int]:
    """Tokens that would complete an n-gram which the output has already."""
    if len(output) + 1 < size:
        return []
    begin = tuple(output[len(output) - size + 1 :])
    ends = range(size - 1, len(output))
    return [output[i] for i in ends if tuple(output[i - size + 1 : i]) == begin]


def _only(scores: Floats, tokens: list[int]) -> Floats:
    forced = np.full_like(scores, -np.inf)
    forced[:, tokens] = 0
    return forced


def search_from(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Search:
    """The search of a checkpoint: its generation_config.json (`settings`), what that leaves out by config.json."""
    own = {key: value for key, value in settings.items() if value is not None}
    merged = {**{key: value for key, value in config.items() if value is not None}, **own}
    ends = _tokens(merged.get("eos_token_id"))
    start = merged.get("decoder_start_token_id", merged.get("bos_token_id"))
    if not isinstance(start, int):
        raise NearbankError(f"config.json: 'decoder_start_token_id' is {start!r}; an encoder-decoder needs one")
    try:
        return Search(
            beams=int(merged.get("num_beams", 1)),
            length_penalty=float(merged.get("length_penalty", 1.0)),
            early_stopping=merged.get("early_stopping", False),
            no_repeat_ngram=int(merged.get("no_repeat_ngram_size", 0)),
            min_length=int(merged.get("min_length", 0)),
            start=start,
            ends=ends,
            forced_first=merged.get("forced_bos_token_id"),
            forced_last=_tokens(merged.get("forced_eos_token_id")),
        )
    except (TypeError, ValueError) as error:
        raise NearbankError(f"generation_config.json: {error}") from error


def _tokens(value: Any) -> tuple[int, ...]:
    """One token, several, or none."""
    if value is None:
        return ()
    found = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(type(token) is int for token in found):
        raise NearbankError(f"token {value!r} in the generation settings; expected whole numbers")
    return found

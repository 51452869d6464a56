"""Text to token numbers and back, one token per character."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError


@dataclass(frozen=True)
class CharTokenizer:
    """Token i stands for the character vocabulary[i]."""

    vocabulary: str

    def __post_init__(self) -> None:
        repeated = [c for c in self.vocabulary if self.vocabulary.count(c) > 1]
        if repeated or not self.vocabulary:
            raise NearbankError(
                f"tokenizer: the vocabulary {'repeats ' + repr(repeated[0]) if repeated else 'is empty'}; "
                "expected each character once"
            )

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Token numbers of `text`. Raises `NearbankError` naming the first unknown character and its position."""
        numbers = self._number_of
        try:
            return np.array([numbers[c] for c in text], dtype=np.int64)
        except KeyError as unknown:
            character = unknown.args[0]
            raise NearbankError(
                f"character {character!r} at position {text.index(character)} is not in the model's vocabulary; "
                f"known: {self.vocabulary!r}"
            ) from None

    def decode(self, tokens: Iterable[int]) -> str:
        """The text that the token numbers stand for."""
        return "".join(self.vocabulary[token] for token in tokens)

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {character: number for number, character in enumerate(self.vocabulary)}

"""What generating asks of whatever runs a model: prompts in, then a token for each sequence; scores out.

`HostDecoder` runs the passes of a network as they are written, its products and attention on the model's backend, for
any architecture and any number of sequences. `nearbank.models.device_steps` keeps one sequence on a GPU from its
prompt to its last token. `decoder_of` takes the second where it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from nearbank.errors import NearbankError
from nearbank.models.execution import Cache, Floats, Pass, Row, Tokens
from nearbank.models.model import Model


class Decoder(Protocol):
    """The passes of a generation. rows: collects what ran, with measured times; None does not record."""

    vocabulary: int  # V

    def prefill(self, rows: list[Row] | None) -> None:
        """The first pass: the prompts, and the sources where an encoder reads some."""

    def step(self, tokens: Sequence[int], rows: list[Row] | None) -> None:
        """A further pass: one token for each sequence."""

    def scores(self, sequence: int) -> Floats:
        """Logits [1, V] after the last token of a sequence."""

    def likeliest(self, sequence: int) -> int:
        """The token of the largest logit; the lowest of several."""


def decoder_of(
    model: Model, prompts: Sequence[Tokens], begun: Sequence[Tokens], tokens: int, record: bool = False
) -> Decoder:
    """What will run `tokens` passes after each prompt. begun: what it begins with, the prompts unless these are read.

    One sequence stays on the GPU where the backend is "cupy" and `nearbank.models.device` decodes the model.
    """
    if model.backend == "cupy" and len(prompts) == 1 and model.shape.encoder is None:
        from nearbank.models.device_steps import device_steps

        try:
            return device_steps(model, prompts[0], tokens, record)
        except NearbankError:  # it decodes some networks and caches only, and says which when asked by itself
            pass
    return HostDecoder(model, prompts, begun, tokens)


class HostDecoder:
    """Passes of the network with one cache for each sequence."""

    def __init__(self, model: Model, prompts: Sequence[Tokens], begun: Sequence[Tokens], tokens: int) -> None:
        self._model, self._prompts, self._begun = model, prompts, begun
        self.vocabulary = model.shape.vocabulary
        self._caches = [model.cache(len(part) + tokens) for part in begun]
        self._sources: list[Cache] = []
        self._logits: Floats = np.empty((0, self.vocabulary), np.float32)

    def prefill(self, rows: list[Row] | None) -> None:
        if self._model.shape.encoder is not None:
            self._sources = self._model.read(self._prompts, rows)
        self._run(self._begun, rows)

    def step(self, tokens: Sequence[int], rows: list[Row] | None) -> None:
        self._run([np.array([token], dtype=np.int64) for token in tokens], rows)

    def scores(self, sequence: int) -> Floats:
        return self._logits[sequence : sequence + 1]

    def likeliest(self, sequence: int) -> int:
        return int(np.argmax(self._logits[sequence]))

    def _run(self, new: Sequence[Tokens], rows: list[Row] | None) -> None:
        run = Pass(np.concatenate(new), [len(part) for part in new], self._caches, rows, sources=self._sources)
        self._logits = self._model.network.forward(run)

"""Pairs of a weight format and a KV cache, each proved by execution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from nearbank.formats import format_named
from nearbank.mapping.asic_arithmetic import arithmetic_named
from nearbank.models import Model, Sampling, generate, load_model
from nearbank.models.kv import kv_scheme
from nearbank.models.kv_fit import fit_channels
from nearbank.proof.bridge import BACKEND, rounded_model
from nearbank.proof.prove import Approximation, Proof, approximation_error, prove

FIRST_TOKEN = [0]
DRAWN_TOKENS = 128  # of the text that channels are fitted to
Stage = Callable[[str, int, int], None]  # what is being done, how much is done, of how much


@dataclass(frozen=True)
class Grid:
    """A model by name or path, weight formats (None: as the model has them) and KV caches, and a machine."""

    source: str
    weights: tuple[str | None, ...]
    kv: tuple[str, ...]
    machine: str


@dataclass(frozen=True)
class Row:
    """One pair's proof, and what the ASIC's approximations change, if that was asked for."""

    proof: Proof
    approximation: Approximation | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.proof.as_dict(), "approximation": self.approximation and self.approximation.as_dict()}


def prove_grid(grid: Grid, prompt: str, tokens: int, asic: str, positions: int, stage: Stage) -> Iterator[Row]:
    """A row for every pair. Names are checked before the first is run."""
    arithmetic = arithmetic_named(asic)
    for name in grid.weights:
        format_named(name or "bf16")
    for name in grid.kv:
        kv_scheme(name)
    for model in _models(grid):
        what = f"{model.weights} weights, {model.kv} cache"
        proof = prove(model, grid.machine, prompt, tokens, arithmetic, _named(stage, what))
        error = approximation_error(model, grid.machine, prompt, positions) if positions else None
        yield Row(proof, error)


def _models(grid: Grid) -> Iterator[Model]:
    for weights in grid.weights:
        for kv in grid.kv:
            yield _fitted(rounded_model(load_model(grid.source, BACKEND, kv), weights))


def _fitted(model: Model) -> Model:
    """The model with its channels fitted, where its cache wants that, on a text that it draws itself."""
    if not model.kv_needs_fit:
        return model
    exact = replace(model, kv="fp32")
    count = min(DRAWN_TOKENS, model.shape.context - 1)
    drawn = generate(exact, FIRST_TOKEN, count, Sampling(temperature=1.0, seed=1)).tokens
    return fit_channels(model, model.decode(drawn), model.kv)


def _named(stage: Stage, what: str) -> Callable[[int, int], None]:
    return lambda done, total: stage(what, done, total)

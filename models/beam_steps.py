"""The passes of a generation with beams: which cache each beam has, and when one is copied.

Beams run as sequences of one pass, in the order of their caches, not of their scores. A beam that goes on alone keeps
its cache; where several continue one, all but the first get a copy, in the caches of beams that were dropped. The
source's K and V are there once for all beams. The first pass runs one sequence: until then the beams are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter_ns

import numpy as np

from nearbank.errors import NearbankError
from nearbank.models.beam import Beams, advance, begin
from nearbank.models.execution import Cache, Pass, Row, Tokens
from nearbank.models.generate import StepResult, begun_with
from nearbank.models.model import Model
from nearbank.models.operations import OUTSIDE, elementwise, fork
from nearbank.models.search import Search
from nearbank.models.sketch import check_counts


def beam_steps(model: Model, prompt: Tokens, tokens: int, search: Search, record: bool = False) -> Iterator[StepResult]:
    """The passes of searching at most `tokens` tokens after a prompt; the last result has the best output."""
    check_counts(model.shape, len(prompt), tokens)
    search.check_tokens(model.shape.vocabulary)
    if 2 * search.beams > model.shape.vocabulary:
        raise NearbankError(f"{search.beams} beams; {model.name} has {model.shape.vocabulary} tokens to choose among")
    return _beam_steps(model, prompt, tokens, search, record)


def _beam_steps(model: Model, prompt: Tokens, tokens: int, search: Search, record: bool) -> Iterator[StepResult]:
    new = begun_with(model, [prompt], search)[0]
    begun, longest = len(new), len(new) + tokens
    caches = [model.cache(longest) for _ in range(search.beams)]
    state = begin(tuple(int(token) for token in new), search.beams)
    places, sources = [0] * search.beams, list[Cache]()
    for index in range(tokens):
        rows: list[Row] | None = [] if record else None
        start = perf_counter_ns()
        if index == 0 and model.shape.encoder is not None:
            sources = model.read([prompt], rows) * search.beams
        running = search.beams if index else 1
        lengths = [len(new) // running] * running
        run = Pass(new, lengths, caches[:running], rows, sources=sources[:running])
        logits = model.network.forward(run)[places]  # [beams, V], from the order of caches to that of beams
        state, parents = _chosen(state, logits, begun, longest, search, running, rows)
        if not state.stopped:
            places = _placed([places[parent] for parent in parents], caches, model, rows)
            new = np.empty(search.beams, np.int64)
            new[places] = [output[-1] for output in state.outputs]
        time_ns = perf_counter_ns() - start
        last = state.stopped or index == tokens - 1
        output = state.best[begun:] if last else None
        chosen = tuple(output[-1] for output in state.outputs)
        yield StepResult(index, "decode" if index else "prefill", chosen, time_ns, tuple(rows or ()), output)
        if last:
            return


def _chosen(
    state: Beams, logits: np.ndarray, begun: int, longest: int, search: Search, running: int, rows: list[Row] | None
) -> tuple[Beams, tuple[int, ...]]:
    start = perf_counter_ns()
    after = advance(state, logits, begun, longest, search)
    if rows is not None:
        operation = elementwise("sample", "sample", running, logits.shape[1])
        rows.append((OUTSIDE, operation, perf_counter_ns() - start))
    return after


def _placed(wanted: Sequence[int], caches: Sequence[Cache], model: Model, rows: list[Row] | None) -> list[int]:
    """The cache of each beam, that of `wanted` or a copy of it."""
    free = sorted(set(range(len(caches))) - set(wanted))
    places: list[int] = []
    for place in wanted:
        if place in places:
            target = free.pop(0)
            _fork(caches, place, target, model, rows)
            place = target
        places.append(place)
    return places


def _fork(caches: Sequence[Cache], origin: int, target: int, model: Model, rows: list[Row] | None) -> None:
    """Copy a cache, all layers at once: the time stands with the first."""
    start = perf_counter_ns()
    caches[target].copy_from(caches[origin])
    time_ns: int | None = perf_counter_ns() - start
    if rows is None:
        return
    shape, cache = model.shape, caches[origin]
    for layer in range(shape.layers):
        sizes = (cache.length(layer), shape.kv_heads, shape.head_dim)
        operation = fork("attn.fork", *sizes, cache.format.name, target, origin)
        rows.append((shape.first_layer + layer, operation, time_ns))
        time_ns = None

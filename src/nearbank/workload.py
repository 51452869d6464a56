"""What is to be replayed: a recorded trace, or a shape by name; both as a model's description and its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from nearbank import __version__
from nearbank.errors import NearbankError
from nearbank.trace import ModelDescription, Step, TraceHeader, TraceWriter, open_trace, recast

if TYPE_CHECKING:
    from nearbank.models.shape import Shape


@dataclass(frozen=True)
class Workload:
    """A model's description, the run's counts and formats, and `open_steps`, which yields the steps from the start.

    prompt_tokens: what the decoder begins with; source_tokens: what an encoder read, None without one.
    beams: sequences of each prompt. batch: prompts, each of that length and with so many new tokens. room: positions
    that the KV cache must hold, where the counts do not tell.
    """

    model: ModelDescription
    prompt_tokens: int
    tokens: int
    weights: str
    kv: str
    open_steps: Callable[[], Iterator[Step]]
    trace: Path | None = None
    source_tokens: int | None = None
    beams: int = 1
    room: int | None = None
    batch: int = 1

    @property
    def all_tokens(self) -> int:
        """New tokens of all prompts."""
        return self.batch * self.tokens

    def steps(self, weights: str | None = None, kv: str | None = None) -> Iterator[Step]:
        """The steps, with the block matrices or the KV cache in other formats where given."""
        if weights is None and kv is None:
            yield from self.open_steps()
            return
        for step in self.open_steps():
            yield Step(step.index, step.phase, recast(step.blocks, weights, kv))

    @property
    def max_context(self) -> int:
        """Positions the KV cache must hold at the end; the last token is never fed back."""
        return self.room or self.prompt_tokens + self.tokens - 1


def trace_workload(path: Path) -> Workload:
    """The run that a trace file records."""
    trace = open_trace(path)
    h = trace.header
    counts = (h.prompt_tokens, h.new_tokens, h.weights, h.kv)
    return Workload(h.model, *counts, trace.steps, path, h.source_tokens, h.beams)


def is_shape(name: str) -> bool:
    """True if `name` is a model that is known by its shape alone, or a config.json."""
    from nearbank.models.zoo import SHAPES

    return name in SHAPES or Path(name).name == "config.json"


def sketch_workload(
    name: str,
    prompt_tokens: int,
    tokens: int,
    weights: str = "bf16",
    kv: str = "bf16",
    beams: int = 1,
    batch: int = 1,
) -> Workload:
    """`tokens` tokens after a prompt (an encoder's source), at the shape of that name, or of a config.json."""
    from nearbank.models.zoo import find_shape

    return shape_workload(find_shape(name), prompt_tokens, tokens, weights, kv, batch=batch, beams=beams)


def shape_workload(
    shape: Shape,
    prompt_tokens: int,
    tokens: int,
    weights: str = "bf16",
    kv: str = "bf16",
    *,
    batch: int = 1,
    beams: int = 1,
    played: slice = slice(None),
) -> Workload:
    """`tokens` tokens after a prompt for `batch` sequences at once, or those steps of that run that `played` picks.

    Steps that are picked are whole and at the context that they have in the run, and the KV cache has room for all of
    it. Raises `NearbankError` for counts below 1, beyond the model's context, or where no step is picked.
    """
    from nearbank.models.sketch import check_counts, describe, sketch

    check_counts(shape, prompt_tokens, tokens)
    for name, value in (("batch", batch), ("beams", beams)):
        if value < 1:
            raise NearbankError(f"{name} is {value}; expected 1 or more")
    count = len(range(tokens)[played])
    if count < 1:
        raise NearbankError(f"no step of {tokens} is played; expected at least one")

    def steps() -> Iterator[Step]:
        every = sketch(shape, prompt_tokens, tokens, weights=weights, kv=kv, batch=batch, beams=beams)
        return islice(every, played.start, played.stop, played.step)

    begun, source = (1, prompt_tokens) if shape.encoder else (prompt_tokens, None)
    room = begun + tokens - 1
    return Workload(describe(shape), begun, count, weights, kv, steps, None, source, beams, room, batch)


def prompt_length(text: str) -> int:
    """The number in `text`; a shape has no words, only a number of prompt tokens."""
    if not text.isdecimal() or int(text) < 1:
        raise NearbankError(f"--prompt {text!r}: a shape takes a number of tokens, 1 or more, such as --prompt 1")
    return int(text)


def write_sketch(load: Workload, path: Path, advance: Callable[[int], None]) -> int:
    """Write a sketched workload as a trace; returns the number of rows."""
    header = TraceHeader(
        model=load.model,
        origin="sketched",
        prompt_tokens=load.prompt_tokens,
        new_tokens=load.tokens,
        source_tokens=load.source_tokens,
        beams=load.beams,
        weights=load.weights,
        kv=load.kv,
        nearbank_version=__version__,
    )
    rows = 0
    with TraceWriter(path, header) as writer:
        for done, step in enumerate(load.steps(), start=1):
            writer.write_step(step)
            rows += sum(block.count * len(block.operations) for block in step.blocks)
            advance(done)
    return rows

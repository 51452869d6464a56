"""A trace from a shape alone: what a generation would run, with no weights and no arithmetic.

One function per family says which operations a layer has; a test holds each against the recorded run of a real
network of that family, operation for operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType

from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.models.operations import OUTSIDE, append, attended, attention, elementwise, inputs_for, matmul
from nearbank.models.shape import Shape
from nearbank.trace import Block, Matrix, ModelDescription, Operation, Step

Operations = tuple[Operation, ...]


@dataclass(frozen=True)
class Formats:
    """Names of the formats of a run: block matrices and their activations, the LM head and its, the KV cache."""

    weights: str = "bf16"
    inputs: str = "bf16"
    head: str = "bf16"
    head_inputs: str = "bf16"
    kv: str = "bf16"

    def __post_init__(self) -> None:
        for name in (self.weights, self.inputs, self.head, self.head_inputs, self.kv):
            format_named(name)

    def matmul(self, name: str, m: int, n: int, k: int) -> Operation:
        """A block's matrix product."""
        return matmul(name, m, n, k, self.weights, self.inputs)


Layer = Callable[[Shape, Formats, int, Operations], Operations]


def _gpt_layer(shape: Shape, formats: Formats, m: int, attend: Operations) -> Operations:
    width, hidden = shape.width, shape.hidden
    return (
        elementwise("norm", "ln_1", m, width),
        formats.matmul("attn.qkv", m, shape.q_width + 2 * shape.kv_width, width),
        *attend,
        formats.matmul("attn.proj", m, width, shape.q_width),
        elementwise("residual", "attn.residual", m, width),
        elementwise("norm", "ln_2", m, width),
        formats.matmul("mlp.fc1", m, hidden, width),
        elementwise("activation", "mlp.gelu", m, hidden),
        formats.matmul("mlp.fc2", m, width, hidden),
        elementwise("residual", "mlp.residual", m, width),
    )


LAYERS: Mapping[str, Layer] = MappingProxyType({"gpt": _gpt_layer})


def sketch(
    shape: Shape,
    prompt_tokens: int,
    new_tokens: int,
    *,
    weights: str = "bf16",
    inputs: str | None = None,
    kv: str = "bf16",
    head: str = "bf16",
    head_inputs: str | None = None,
    batch: int = 1,
) -> Iterator[Step]:
    """The steps of generating `new_tokens` after a prompt, for `batch` sequences at once.

    Step 0 is the prompt and yields the first token; each further step decodes one. `inputs` are int8 for integer
    weights and as the weights otherwise, unless given. Raises `NearbankError` when the model's context is too short.
    """
    check_counts(shape, prompt_tokens, new_tokens)
    if batch < 1:
        raise NearbankError(f"batch is {batch}; expected 1 or more")
    formats = Formats(weights, inputs or inputs_for(weights), head, head_inputs or inputs_for(head), kv)
    return _steps(shape, prompt_tokens, new_tokens, batch, formats)


def _steps(shape: Shape, prompt: int, new: int, batch: int, formats: Formats) -> Iterator[Step]:
    yield Step(0, "prefill", _blocks(shape, prompt, prompt, batch, formats))
    for i in range(1, new):
        yield Step(i, "decode", _blocks(shape, 1, prompt + i, batch, formats))


def check_counts(shape: Shape, prompt_tokens: int, new_tokens: int) -> None:
    """Raise `NearbankError` unless the prompt and the new tokens fit the model's context."""
    if prompt_tokens < 1:
        raise NearbankError("the prompt is empty; expected at least one token")
    if new_tokens < 1:
        raise NearbankError(f"tokens to generate: {new_tokens}; expected 1 or more")
    total, longest = prompt_tokens + new_tokens - 1, shape.context  # the last token is never fed back
    if prompt_tokens > longest:
        raise NearbankError(
            f"the prompt has {prompt_tokens} tokens, but {shape.name} has a context of {longest}; shorten the prompt"
        )
    if total > longest:
        raise NearbankError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones need {total} positions, but {shape.name} has a "
            f"context of {longest}; ask for at most {longest - prompt_tokens + 1} tokens or shorten the prompt"
        )


def _blocks(shape: Shape, m: int, end: int, batch: int, formats: Formats) -> tuple[Block, ...]:
    """One pass of `batch` sequences, m new tokens each, after which each holds `end` tokens."""
    rows = m * batch
    before = (elementwise("embed", "wte", rows, shape.width),)
    after = (
        elementwise("norm", "ln_f", batch, shape.width),
        matmul("lm_head", batch, shape.vocabulary, shape.width, formats.head, formats.head_inputs),
        *(elementwise("sample", "sample", 1, shape.vocabulary, s) for s in range(batch)),
    )
    return (Block(OUTSIDE, 1, before), *_layers(shape, m, end, batch, formats), Block(OUTSIDE, 1, after))


def _layers(shape: Shape, m: int, end: int, batch: int, formats: Formats) -> Iterator[Block]:
    """Neighbouring layers that attend alike are one block."""
    layer = LAYERS[shape.family]
    for seen, group in groupby(range(shape.layers), lambda i: attended(m, end, shape.window(i))):
        members = list(group)
        attend = tuple(o for s in range(batch) for o in _attention(shape, m, end, seen, formats.kv, s))
        yield Block(members[0], len(members), layer(shape, formats, m * batch, attend))


def _attention(shape: Shape, m: int, end: int, seen: tuple[int, int], kv: str, sequence: int) -> Operations:
    added = append("attn.kv", m, shape.kv_heads, shape.head_dim, end, kv, sequence)
    heads, kv_heads, head_dim = shape.heads, shape.kv_heads, shape.head_dim
    return (added, *attention("attn", m, heads, kv_heads, head_dim, *seen, kv, sequence))


def describe(shape: Shape) -> ModelDescription:
    """What a trace's header says of the model: its sizes and every weight matrix that it multiplies by."""
    blocks = _blocks(shape, 1, 1, 1, Formats())
    found = {
        operation.name: Matrix(name=operation.name, n=operation.n, k=operation.k, per_layer=block.first != OUTSIDE)
        for block in blocks
        for operation in block.operations
        if operation.op == "matmul" and operation.n and operation.k
    }
    return ModelDescription(
        name=shape.name,
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        hidden=shape.hidden,
        vocabulary=shape.vocabulary,
        context=shape.context,
        matrices=tuple(found.values()),
    )

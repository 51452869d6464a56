"""A trace from a shape alone: what a generation would run, with no weights and no arithmetic.

One function per family says which operations a layer has; a test holds each against the recorded run of a real
network of that family, operation for operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from types import MappingProxyType

from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.models.llama import TRAITS
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


def _opt_layer(shape: Shape, formats: Formats, m: int, attend: Operations) -> Operations:
    """Norms come before each half; those of "opt-post" (OPT 350M) after it."""
    width, hidden = shape.width, shape.hidden
    norms = tuple(elementwise("norm", name, m, width) for name in ("ln_1", "ln_2"))
    before, after = ((), ((norms[0],), (norms[1],))) if shape.family == "opt-post" else (norms, ((), ()))
    return (
        *before[:1],
        *(formats.matmul(f"attn.{x}", m, width, width) for x in "qkv"),
        *attend,
        formats.matmul("attn.proj", m, width, width),
        elementwise("residual", "attn.residual", m, width),
        *after[0],
        *before[1:],
        formats.matmul("mlp.fc1", m, hidden, width),
        elementwise("activation", f"mlp.{shape.activation}", m, hidden),
        formats.matmul("mlp.fc2", m, width, hidden),
        elementwise("residual", "mlp.residual", m, width),
        *after[1],
    )


def _llama_layer(shape: Shape, formats: Formats, m: int, attend: Operations) -> Operations:
    traits, width = TRAITS[shape.family], shape.width
    norm = partial(elementwise, "norm")
    head_norms = (("attn.q_norm", shape.heads), ("attn.k_norm", shape.kv_heads)) if traits.qk_norm else ()
    return (
        norm("ln_1", m, width),
        *_llama_qkv(shape, formats, m),
        *(norm(name, m * heads, shape.head_dim) for name, heads in head_norms),
        elementwise("activation", "attn.rope", m, shape.q_width + shape.kv_width),
        *attend,
        *((norm("attn.sub_norm", m, shape.q_width),) if traits.sub_norms else ()),
        formats.matmul("attn.proj", m, width, shape.q_width),
        *((norm("attn.post_norm", m, width),) if traits.post_norms else ()),
        elementwise("residual", "attn.residual", m, width),
        norm("ln_2", m, width),
        *_llama_mlp(shape, formats, m),
        *((norm("mlp.post_norm", m, width),) if traits.post_norms else ()),
        elementwise("residual", "mlp.residual", m, width),
    )


def _llama_qkv(shape: Shape, formats: Formats, m: int) -> Operations:
    if TRAITS[shape.family].fused:
        return (formats.matmul("attn.qkv", m, shape.q_width + 2 * shape.kv_width, shape.width),)
    sizes = {"q": shape.q_width, "k": shape.kv_width, "v": shape.kv_width}
    return tuple(formats.matmul(f"attn.{x}", m, n, shape.width) for x, n in sizes.items())


def _llama_mlp(shape: Shape, formats: Formats, m: int) -> Operations:
    traits, hidden = TRAITS[shape.family], shape.hidden
    sizes = {"gate_up": 2 * hidden} if traits.fused else {"gate": hidden, "up": hidden}
    return (
        *(formats.matmul(f"mlp.{x}", m, n, shape.width) for x, n in sizes.items()),
        elementwise("activation", f"mlp.{shape.activation}", m, hidden),
        elementwise("activation", "mlp.product", m, hidden),
        *((elementwise("norm", "mlp.sub_norm", m, hidden),) if traits.sub_norms else ()),
        formats.matmul("mlp.down", m, shape.width, hidden),
    )


LAYERS: Mapping[str, Layer] = MappingProxyType(
    {"gpt": _gpt_layer, "opt": _opt_layer, "opt-post": _opt_layer, **dict.fromkeys(TRAITS, _llama_layer)}
)


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
    before = _before(shape, rows, formats)
    after = (
        *_after(shape, batch, formats),
        matmul("lm_head", batch, shape.vocabulary, shape.embedding or shape.width, formats.head, formats.head_inputs),
        *(elementwise("sample", "sample", 1, shape.vocabulary, s) for s in range(batch)),
    )
    return (Block(OUTSIDE, 1, before), *_layers(shape, m, end, batch, formats), Block(OUTSIDE, 1, after))


def _before(shape: Shape, m: int, formats: Formats) -> Operations:
    """Tokens to the residual stream."""
    if shape.embedding is None:
        return (elementwise("embed", "wte", m, shape.width),)
    return (
        elementwise("embed", "wte", m, shape.embedding),
        formats.matmul("project_in", m, shape.width, shape.embedding),
        elementwise("residual", "wpe", m, shape.width),
    )


def _after(shape: Shape, m: int, formats: Formats) -> Operations:
    """The residual stream to what the head multiplies."""
    norm = () if shape.family == "opt-post" else (elementwise("norm", "ln_f", m, shape.width),)
    if shape.embedding is None:
        return norm
    return (*norm, formats.matmul("project_out", m, shape.embedding, shape.width))


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

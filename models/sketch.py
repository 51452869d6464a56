"""A trace from a shape alone: what a generation would run, with no weights and no arithmetic.

One function per family says which operations a layer has; a test holds each against the recorded run of a real
network of that family, operation for operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from types import MappingProxyType

from nearbank.cache_formats import cache_format
from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.models.llama import TRAITS
from nearbank.models.operations import OUTSIDE, append, attended, attention, elementwise, inputs_for, matmul
from nearbank.models.shape import EncoderShape, Shape
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
        for name in (self.weights, self.inputs, self.head, self.head_inputs):
            format_named(name)
        cache_format(self.kv)

    @property
    def source_kv(self) -> str:
        """The cache of a source: nothing in it is ever newer than the rest, so every token is rounded."""
        return cache_format(self.kv).format.name

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


def _bart_half(shape: Shape, name: str, m: int, inside: Operations) -> Operations:
    """A half of a block with its norm: before it in mBART, after it in BART."""
    prefix, _, part = name.rpartition(".")
    dot = f"{prefix}." if prefix else ""
    norm = elementwise("norm", dot + {"attn": "ln_1", "cross": "ln_cross", "mlp": "ln_2"}[part], m, shape.width)
    residual = elementwise("residual", f"{name}.residual", m, shape.width)
    return (norm, *inside, residual) if shape.family == "mbart" else (*inside, residual, norm)


def _bart_mlp(shape: Shape, formats: Formats, prefix: str, hidden: int, m: int) -> Operations:
    inside = (
        formats.matmul(f"{prefix}mlp.fc1", m, hidden, shape.width),
        elementwise("activation", f"{prefix}mlp.{shape.activation}", m, hidden),
        formats.matmul(f"{prefix}mlp.fc2", m, shape.width, hidden),
    )
    return _bart_half(shape, f"{prefix}mlp", m, inside)


def _bart_attention(shape: Shape, formats: Formats, name: str, parts: str, m: int, attend: Operations) -> Operations:
    """parts: which of q, k, v are computed from the m tokens themselves."""
    width = shape.width
    inside = (
        *(formats.matmul(f"{name}.{x}", m, width, width) for x in parts),
        *attend,
        formats.matmul(f"{name}.proj", m, width, width),
    )
    return _bart_half(shape, name, m, inside)


def _bart_layer(shape: Shape, formats: Formats, m: int, attend: Operations) -> Operations:
    """A layer of the decoder; what attends the source comes after what attends the cache."""
    own = tuple(o for o in attend if o.name.startswith("attn."))
    return (
        *_bart_attention(shape, formats, "attn", "qkv", m, own),
        *_bart_attention(shape, formats, "cross", "q", m, tuple(o for o in attend if o not in own)),
        *_bart_mlp(shape, formats, "", shape.hidden, m),
    )


def _encoder_layer(shape: Shape, encoder: EncoderShape, formats: Formats, m: int, attend: Operations) -> Operations:
    return (
        *_bart_attention(shape, formats, "encoder.attn", "qkv", m, attend),
        *_bart_mlp(shape, formats, "encoder.", encoder.hidden, m),
    )


LAYERS: Mapping[str, Layer] = MappingProxyType(
    {
        "gpt": _gpt_layer,
        "opt": _opt_layer,
        "opt-post": _opt_layer,
        "bart": _bart_layer,
        "mbart": _bart_layer,
        **dict.fromkeys(TRAITS, _llama_layer),
    }
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
    beams: int = 1,
) -> Iterator[Step]:
    """The steps of generating `new_tokens` after a prompt, for `batch` sequences at once.

    Step 0 is the prompt and yields the first token; each further step decodes one. Where the model has an encoder, the
    prompt is its source and the decoder begins with one token. `inputs` are int8 for integer weights and as the
    weights otherwise, unless given. beams: of each prompt, from step 1 on; which of them are copied when depends on the
    data, so there are no rows for it. Raises `NearbankError` when the model's context is too short.
    """
    check_counts(shape, prompt_tokens, new_tokens)
    for name, value in (("batch", batch), ("beams", beams)):
        if value < 1:
            raise NearbankError(f"{name} is {value}; expected 1 or more")
    formats = Formats(weights, inputs or inputs_for(weights), head, head_inputs or inputs_for(head), kv)
    return _steps(shape, prompt_tokens, new_tokens, _Sequences(batch, beams), formats)


@dataclass(frozen=True)
class _Sequences:
    """Prompts, and sequences of each. What a prompt's beams share lies with the first of them."""

    prompts: int
    beams: int = 1
    source: int = 0  # tokens that an encoder read

    @property
    def count(self) -> int:
        return self.prompts * self.beams

    def holder(self, sequence: int) -> int:
        return sequence // self.beams * self.beams


def _steps(shape: Shape, prompt: int, new: int, sequences: _Sequences, formats: Formats) -> Iterator[Step]:
    source = prompt if shape.encoder else 0
    begun = 1 if shape.encoder else prompt
    first = replace(sequences, beams=1, source=source)
    read = _read(shape, shape.encoder, prompt, first, formats) if shape.encoder else ()
    yield Step(0, "prefill", (*read, *_blocks(shape, begun, begun, first, formats)))
    for i in range(1, new):
        yield Step(i, "decode", _blocks(shape, 1, begun + i, replace(sequences, source=source), formats))


def check_counts(shape: Shape, prompt_tokens: int, new_tokens: int) -> None:
    """Raise `NearbankError` unless the prompt and the new tokens fit the model's context."""
    if prompt_tokens < 1:
        raise NearbankError("the prompt is empty; expected at least one token")
    if new_tokens < 1:
        raise NearbankError(f"tokens to generate: {new_tokens}; expected 1 or more")
    longest, begun = shape.context, 1 if shape.encoder else prompt_tokens
    total = begun + new_tokens - 1  # the last token is never fed back
    if prompt_tokens > longest:
        raise NearbankError(
            f"the prompt has {prompt_tokens} tokens, but {shape.name} has a context of {longest}; shorten the prompt"
        )
    if total > longest:
        raise NearbankError(
            f"{begun} prompt tokens and {new_tokens} new ones need {total} positions, but {shape.name} has a "
            f"context of {longest}; ask for at most {longest - begun + 1} tokens or shorten the prompt"
        )


def _read(shape: Shape, encoder: EncoderShape, tokens: int, sequences: _Sequences, formats: Formats) -> Iterator[Block]:
    """The encoder's pass over a source for each prompt, and K and V that the decoder's layers make of it."""
    m, width, kv = tokens * sequences.prompts, shape.width, formats.source_kv
    sizes = (tokens, encoder.heads, encoder.heads, width // encoder.heads, tokens, tokens * tokens, kv)
    attend = tuple(
        operation
        for s in range(sequences.prompts)
        for operation in (
            append("encoder.attn.kv", tokens, encoder.heads, width // encoder.heads, tokens, kv, s),
            *attention("encoder.attn", *sizes, s),
        )
    )
    kept = (
        *(formats.matmul(f"cross.{x}", m, shape.kv_width, width) for x in "kv"),
        *(append("cross.kv", tokens, shape.kv_heads, shape.head_dim, tokens, kv, s) for s in range(sequences.prompts)),
    )
    norm = elementwise("norm", "encoder.ln_emb", m, width)
    yield Block(OUTSIDE, 1, (elementwise("embed", "encoder.wte", m, width), norm))
    yield Block(0, encoder.layers, _encoder_layer(shape, encoder, formats, m, attend))
    if shape.family == "mbart":
        yield Block(OUTSIDE, 1, (elementwise("norm", "encoder.ln_f", m, width),))
    yield Block(encoder.layers, shape.layers, kept)


def _blocks(shape: Shape, m: int, end: int, sequences: _Sequences, formats: Formats) -> tuple[Block, ...]:
    """One pass of the decoder, m new tokens for each sequence, after which each holds `end` tokens."""
    count = sequences.count
    before = _before(shape, m * count, formats)
    after = (
        *_after(shape, count, formats),
        matmul("lm_head", count, shape.vocabulary, shape.embedding or shape.width, formats.head, formats.head_inputs),
        *_choices(shape, sequences),
    )
    return (Block(OUTSIDE, 1, before), *_layers(shape, m, end, sequences, formats), Block(OUTSIDE, 1, after))


def _choices(shape: Shape, sequences: _Sequences) -> Operations:
    """A token for each sequence; the beams of a prompt are chosen together."""
    prompts = range(0, sequences.count, sequences.beams)
    return tuple(elementwise("sample", "sample", sequences.beams, shape.vocabulary, s) for s in prompts)


def _before(shape: Shape, m: int, formats: Formats) -> Operations:
    """Tokens to the residual stream."""
    if shape.encoder is not None:
        return (elementwise("embed", "wte", m, shape.width), elementwise("norm", "ln_emb", m, shape.width))
    if shape.embedding is None:
        return (elementwise("embed", "wte", m, shape.width),)
    return (
        elementwise("embed", "wte", m, shape.embedding),
        formats.matmul("project_in", m, shape.width, shape.embedding),
        elementwise("residual", "wpe", m, shape.width),
    )


def _after(shape: Shape, m: int, formats: Formats) -> Operations:
    """The residual stream to what the head multiplies."""
    norm = () if shape.family in ("opt-post", "bart") else (elementwise("norm", "ln_f", m, shape.width),)
    if shape.embedding is None:
        return norm
    return (*norm, formats.matmul("project_out", m, shape.embedding, shape.width))


def _layers(shape: Shape, m: int, end: int, sequences: _Sequences, formats: Formats) -> Iterator[Block]:
    """Neighbouring layers that attend alike are one block."""
    layer = LAYERS[shape.family]
    source = tuple(
        o for s in range(sequences.count) for o in _source_attention(shape, m, sequences, formats.source_kv, s)
    )
    for seen, group in groupby(range(shape.layers), lambda i: attended(m, end, shape.window(i))):
        members = list(group)
        attend = tuple(o for s in range(sequences.count) for o in _attention(shape, m, end, seen, formats.kv, s))
        operations = layer(shape, formats, m * sequences.count, (*attend, *source))
        yield Block(shape.first_layer + members[0], len(members), operations)


def _attention(shape: Shape, m: int, end: int, seen: tuple[int, int], kv: str, sequence: int) -> Operations:
    added = append("attn.kv", m, shape.kv_heads, shape.head_dim, end, kv, sequence)
    heads, kv_heads, head_dim = shape.heads, shape.kv_heads, shape.head_dim
    return (added, *attention("attn", m, heads, kv_heads, head_dim, *seen, kv, sequence))


def _source_attention(shape: Shape, m: int, sequences: _Sequences, kv: str, sequence: int) -> Operations:
    """Of the source's K and V, which lie with the first beam of the prompt."""
    source, holder = sequences.source, sequences.holder(sequence)
    if not source:
        return ()
    sharing = () if holder == sequence else (holder, source)
    sizes = (m, shape.heads, shape.kv_heads, shape.head_dim, source, m * source, kv, sequence)
    return attention("cross", *sizes, *sharing)


def describe(shape: Shape) -> ModelDescription:
    """What a trace's header says of the model: its sizes and every weight matrix that it multiplies by."""
    (step,) = _steps(shape, 1, 1, _Sequences(1), Formats())
    layers = shape.first_layer + shape.layers
    found = {
        operation.name: _matrix(operation, block, layers)
        for block in step.blocks
        for operation in block.operations
        if operation.op == "matmul"
    }
    return ModelDescription(
        name=shape.name,
        layers=layers,
        encoder_layers=shape.first_layer,
        width=shape.width,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        hidden=shape.hidden,
        vocabulary=shape.vocabulary,
        context=shape.context,
        matrices=tuple(found.values()),
    )


def _matrix(operation: Operation, block: Block, layers: int) -> Matrix:
    """A block's matrix; in an encoder-decoder none is in every layer."""
    within = None if block.first == OUTSIDE or block.count == layers else range(block.first, block.first + block.count)
    return Matrix(
        name=operation.name,
        n=operation.n or 0,
        k=operation.k or 0,
        per_layer=block.first != OUTSIDE,
        layers=None if within is None else tuple(within),
    )

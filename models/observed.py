"""Operations that another framework ran, turned into steps of a trace.

`nearbank.models.kineto` reads them from a profile, `nearbank.models.meta` catches them from a model that runs on no
data. Which layer an operation belongs to follows from the order: each attention has the same number of matrix
products before and after it. What no rule knows is counted and reported, never dropped silently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from types import MappingProxyType

from nearbank.errors import NearbankError
from nearbank.models import operations
from nearbank.models.operations import OUTSIDE
from nearbank.trace import Matrix, ModelDescription, Operation

Shape = tuple[int, ...]
Timed = tuple[Operation, int | None]
Row = tuple[int, Operation, int | None]  # layer, operation, time_ns
POOLED = "pool.context"  # tokens added up in groups


@dataclass(frozen=True)
class Seen:
    """One call: its name without prefixes, the shapes of its tensors, the format of its first float, its time."""

    name: str
    shapes: tuple[Shape, ...]
    format: str = "fp32"
    time_ns: int | None = None


@dataclass
class Reader:
    """Turns calls into operations, one after the other; what it must remember is where in an attention it is."""

    kv_heads: int | None = None  # when the calls show keys already repeated for every head
    sequences: int = 1
    after_softmax: bool = False
    blocks: int = 1  # of tokens that one call attends side by side, each with keys of its own
    unknown: Counter[str] = field(default_factory=Counter)

    def read(self, seen: Seen) -> list[Timed]:
        """The operations of one call; none for views and bookkeeping, and for what is not known (see `unknown`)."""
        rule = RULES.get(seen.name)
        found = rule(self, seen) if rule else None
        if found is None and seen.name not in FREE:
            self.unknown[seen.name] += 1
        return found or []


def _matmul(m: int, n: int, k: int, seen: Seen) -> list[Timed]:
    return [(operations.matmul("matmul", m, n, k, seen.format, seen.format), seen.time_ns)]


def _linear(_: Reader, seen: Seen) -> list[Timed]:
    """x […, k] with a weight [n, k]."""
    x, weight = seen.shapes[:2]
    return _matmul(prod(x[:-1]), weight[0], weight[1], seen)


def _addmm(reader: Reader, seen: Seen) -> list[Timed] | None:
    """bias, then as matmul."""
    return _product(reader, replace(seen, shapes=seen.shapes[1:]))


def _product(reader: Reader, seen: Seen) -> list[Timed] | None:
    """a […, m, k] with b [k, n]: a weight; with b […, k, n]: a half of attention."""
    a, b = seen.shapes[:2]
    if len(a) < 2 or len(b) < 2:
        return None
    if len(b) == 2:
        return _matmul(prod(a[:-1]), b[1], b[0], seen)
    return _attention_half(reader, a, b, seen)


def _batched(reader: Reader, seen: Seen) -> list[Timed] | None:
    """A half of attention that einsum wrote: a [B, .., H, m, k], axes between batch and heads being blocks."""
    a, b = seen.shapes
    if len(a) < 4:
        return _attention_half(reader, a, b, seen)
    reader.blocks = prod(a[1:-3])
    found = _attention_half(reader, a, b, seen)
    if found is not None and len(found) == 1:
        reader.blocks = 1
    return found


def _pooled(_: Reader, seen: Seen) -> list[Timed]:
    """a [B, D, N] and shares b [B, N, G]: N tokens added up in G groups, a context product of one head."""
    a, b = seen.shapes
    groups, width, tokens = b[-1], a[-2], a[-1]
    product = operations.attention("pool", groups, 1, 1, width, tokens, groups * tokens, seen.format)[2]
    return [(product, seen.time_ns)]


def _attention_half(reader: Reader, a: Shape, b: Shape, seen: Seen) -> list[Timed] | None:
    """Before the softmax queries [.., T, D] times keys [.., D, S]; after it weights [.., T, S] times values."""
    heads = prod(a[:-2]) // reader.sequences // reader.blocks
    if heads < 1 or (a[-1] == 1 and not reader.after_softmax):  # an outer product: tables of positions are made so
        return None
    kv_heads = reader.kv_heads or max(1, prod(b[:-2]) // reader.sequences // reader.blocks)
    tokens, context = reader.blocks * a[-2], a[-1] if reader.after_softmax else b[-1]
    head_dim = b[-1] if reader.after_softmax else a[-1]
    score, _, product = _attention_of(reader, tokens, heads, kv_heads, head_dim, context, seen)
    if reader.after_softmax:
        reader.after_softmax = False
        return [(product, seen.time_ns)]
    added = _append(reader, tokens, kv_heads, head_dim, context, seen)
    return [(added, None), (score, seen.time_ns)]


def _softmax(reader: Reader, seen: Seen) -> list[Timed] | None:
    shape = seen.shapes[0]  # [B, H, T, S] or [B · H, T, S]
    if len(shape) < 3:
        return None
    reader.after_softmax = True
    tokens, context = reader.blocks * shape[-2], shape[-1]
    heads = prod(shape[:-2]) // reader.sequences // reader.blocks
    row = Operation("softmax", "attn.softmax", tokens, heads=heads, context=context, pairs=tokens * context)
    return [(row, seen.time_ns)]


def _fused_attention(reader: Reader, seen: Seen) -> list[Timed]:
    """q [B, H, T, D], k [B, G, S, D]: three operations of which only the last has the common time."""
    q, k = seen.shapes[:2]
    heads, kv_heads = q[-3], reader.kv_heads or k[-3]
    rows = _attention_of(reader, q[-2], heads, kv_heads, q[-1], k[-2], seen)
    added = _append(reader, q[-2], kv_heads, q[-1], k[-2], seen)
    return [(added, None), (rows[0], None), (rows[1], None), (rows[2], seen.time_ns)]


def _attention_of(
    _: Reader, tokens: int, heads: int, kv_heads: int, head_dim: int, context: int, seen: Seen
) -> tuple[Operation, Operation, Operation]:
    """All pairs, also those a mask hides: frameworks compute them."""
    return operations.attention("attn", tokens, heads, kv_heads, head_dim, context, tokens * context, seen.format)


def _append(_: Reader, tokens: int, kv_heads: int, head_dim: int, context: int, seen: Seen) -> Operation:
    return operations.append("attn.kv", min(tokens, context), kv_heads, head_dim, context, seen.format)


def _embedding(_: Reader, seen: Seen) -> list[Timed] | None:
    """weight [V, D] and tokens [B, T]."""
    table, tokens = seen.shapes[:2]
    return [(operations.elementwise("embed", "wte", prod(tokens), table[-1]), seen.time_ns)]


def _elementwise(op: str, name: str) -> Callable[[Reader, Seen], list[Timed] | None]:
    def rule(_: Reader, seen: Seen) -> list[Timed] | None:
        shape = seen.shapes[0] if seen.shapes else ()
        if len(shape) < 2:
            return None
        return [(operations.elementwise(op, name, prod(shape[:-1]), shape[-1]), seen.time_ns)]

    return rule


def _sum(_: Reader, seen: Seen) -> list[Timed] | None:
    """Two equal tensors [.., D] added: a residual. A mask or a constant added is bookkeeping."""
    if len(seen.shapes) < 2 or seen.shapes[0] != seen.shapes[1] or len(seen.shapes[0]) not in (2, 3):
        return []
    return _elementwise("residual", "residual")(_, seen)


Rule = Callable[[Reader, Seen], list[Timed] | None]
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "linear": _linear,
        "addmm": _addmm,
        "baddbmm": _addmm,
        "mm": _product,
        "bmm": _product,
        "matmul": _product,
        "batched": _batched,
        "pooled": _pooled,
        "softmax": _softmax,
        "_softmax": _softmax,
        "scaled_dot_product_attention": _fused_attention,
        "embedding": _embedding,
        "layer_norm": _elementwise("norm", "norm"),
        "rms_norm": _elementwise("norm", "norm"),
        "gelu": _elementwise("activation", "activation"),
        "silu": _elementwise("activation", "activation"),
        "relu": _elementwise("activation", "activation"),
        "tanh": _elementwise("activation", "activation"),
        "add": _sum,
        "argmax": _elementwise("sample", "sample"),
        "multinomial": _elementwise("sample", "sample"),
    }
)
# Views, copies, allocation and bookkeeping: they do no arithmetic that a memory or its ASIC would be charged for
_FREE = """
view reshape transpose permute contiguous expand expand_as slice select unsqueeze squeeze size dim to _to_copy empty
empty_like empty_strided zeros zeros_like ones ones_like full full_like arange clone copy_ cat stack chunk split
split_with_sizes narrow unflatten flatten t item _local_scalar_dense is_nonzero dropout detach alias as_strided resize_
fill_ masked_fill masked_fill_ masked_scatter where type type_as float half bfloat16 long bool device dtype shape stride
is_contiguous numel unbind new_ones new_zeros new_full le lt ge gt eq ne any all bitwise_and logical_and logical_not
cumsum tril triu index_select index gather repeat repeat_interleave __getitem__ __get__ __set__ requires_grad
is_floating_point result_type lift_fresh detach_ zero_ movedim _unsafe_view linspace diff roll is_cuda data_ptr
get_device element_size ndim grad storage_offset set_ _reshape_alias unsafe_split record_stream pad constant_pad_nd
resolve_conj resolve_neg scalar_tensor
"""
FREE = frozenset(_FREE.split())


@dataclass(frozen=True)
class Observed:
    """One pass: its rows with layers, and the tokens that went in."""

    rows: tuple[Row, ...]
    tokens: int


def passes(calls: Iterable[Seen], reader: Reader) -> Iterator[Observed]:
    """Operations cut into passes: a pass begins at the token embedding."""
    current: list[Timed] = []
    for seen in calls:
        for operation, time_ns in reader.read(seen):
            if operation.op == "embed" and any(o.op != "embed" for o, _ in current):
                yield from _finished(current)
                current = []
            current.append((operation, time_ns))
    yield from _finished(current)


def _finished(timed: list[Timed]) -> Iterator[Observed]:
    if any(operation.op == "score" for operation, _ in timed):
        tokens = next((o.m or 0 for o, _ in timed if o.op == "embed"), 0)
        yield Observed(tuple(with_layers(timed)), tokens)


def with_layers(timed: list[Timed], attentions: int = 1, head: bool = True) -> Iterator[Row]:
    """Each operation with its layer and a name by its place in the layer.

    attentions: in each layer; head: whether the last product of all is an LM head.
    """
    layers = _layers([operation for operation, _ in timed], attentions, head)
    counts: Counter[tuple[int, str]] = Counter()
    heads = [i for i, (o, _) in enumerate(timed) if o.op == "matmul" and layers[i] == OUTSIDE]
    for i, (operation, time_ns) in enumerate(timed):
        place = counts[layers[i], operation.op]
        counts[layers[i], operation.op] += 1
        name = "lm_head" if head and heads and i == heads[-1] else _name(operation, place)
        yield layers[i], replace(operation, name=name), time_ns


def _name(operation: Operation, place: int) -> str:
    numbered = operation.op in ("matmul", "norm", "activation", "residual", "embed")
    return f"{operation.name}.{place}" if numbered else operation.name


def _layers(found: list[Operation], attentions: int, head: bool) -> list[int]:
    """The layer of each operation: an equal number of matrix products before and after each (first) attention."""
    scores = [i for i, o in enumerate(found) if o.op == "score"][::attentions]
    products = [i for i, o in enumerate(found) if o.op == "matmul"]
    before = [sum(i < score for i in products) for score in scores]
    after = len(products) - (before[-1] if before else 0) - head  # of the last attention, without the LM head
    if not scores:
        raise NearbankError("cannot tell the layers apart: no attention among the operations")
    each = before[1] - before[0] if len(scores) > 1 else before[0] + after
    after = after if head else min(after, each - before[0])  # what follows an encoder's layers (a pooler) is outside
    if after < 0 or each < after or any(b - a != each for a, b in pairwise(before)):
        raise NearbankError(
            f"cannot tell the layers apart: {len(scores)} attentions with {before} matrix products before each; "
            "expected a decoder whose layers are alike"
        )
    layers = [OUTSIDE] * len(found)
    starts = [_with_what_leads(found, products[count - (each - after)]) for count in before]
    end = _past_residuals(found, products[before[-1] + after - 1] if after else scores[-1])
    for layer, (start, stop) in enumerate(zip(starts, [*starts[1:], end], strict=True)):
        layers[start:stop] = [layer] * (stop - start)
    return layers


def _with_what_leads(found: list[Operation], start: int) -> int:
    """Norms and sums over tokens right before a layer's first matrix product are the layer's."""
    while start > 0 and (found[start - 1].op == "norm" or found[start - 1].name == POOLED):
        start -= 1
    return start


def _past_residuals(found: list[Operation], last: int) -> int:
    """Behind the attention and the residual sums that follow a layer's last matrix product."""
    end = last + 1
    while end < len(found) and found[end].op in ("residual", "softmax", "context"):
        end += 1
    return end


def describe_observed(name: str, first: Observed, context: int) -> ModelDescription:
    """The model's sizes as its operations show them. hidden: the widest product inside a layer."""
    encoder = {layer for layer, o, _ in first.rows if o.name.startswith("encoder.")} - {OUTSIDE}
    products = {o.name: (o, layer != OUTSIDE) for layer, o, _ in first.rows if o.op == "matmul"}
    places = {name: tuple(sorted({layer for layer, o, _ in first.rows if o.name == name})) for name in products}
    found = [
        Matrix(name=name, n=o.n or 0, k=o.k or 0, per_layer=inside, layers=places[name] if encoder and inside else None)
        for name, (o, inside) in products.items()
    ]
    score = next(o for _, o, _ in first.rows if o.op == "score" and not o.name.startswith("encoder."))
    head = next((o for _, o, _ in first.rows if o.name == "lm_head"), None)
    if head is None:
        raise NearbankError(f"{name}: no LM head among the matrix products")
    inside = [matrix.n for matrix in found if matrix.per_layer]
    return ModelDescription(
        name=name,
        layers=1 + max(layer for layer, _, _ in first.rows),
        encoder_layers=len(encoder),
        width=head.k or 0,
        heads=score.heads or 0,
        kv_heads=score.kv_heads or 0,
        head_dim=score.k or 0,
        hidden=max(inside),
        vocabulary=head.n or 0,
        context=context,
        matrices=tuple(found),
    )

"""Operations as values, made once each: what `record` notes and `sketch` foresees."""

from __future__ import annotations

from functools import lru_cache, partial

from nearbank.formats import format_named
from nearbank.trace import Operation

OUTSIDE = -1  # the layer of what runs outside the layers


@lru_cache(maxsize=1 << 16)
def elementwise(op: str, name: str, m: int, n: int, sequence: int = 0) -> Operation:
    """An embedding, norm, activation, residual or sampling step on m rows of n values."""
    return Operation(op, name, m=m, n=n, sequence=sequence)


@lru_cache(maxsize=1 << 16)
def matmul(name: str, m: int, n: int, k: int, weights: str, inputs: str) -> Operation:
    """[m, k] activations times a weight matrix [n, k]."""
    return Operation("matmul", name, m=m, n=n, k=k, weights=weights, inputs=inputs)


@lru_cache(maxsize=1 << 16)
def append(name: str, m: int, kv_heads: int, head_dim: int, end: int, kv: str, sequence: int = 0) -> Operation:
    """K and V of m tokens, kv_heads · head_dim values each, written to a cache that then holds `end` tokens."""
    n = kv_heads * head_dim
    return Operation("append", name, m=m, n=n, kv_heads=kv_heads, context=end, kv=kv, sequence=sequence)


@lru_cache(maxsize=1 << 16)
def fork(name: str, m: int, kv_heads: int, head_dim: int, kv: str, sequence: int, holder: int) -> Operation:
    """K and V of m tokens copied from the cache of sequence `holder` to that of `sequence`."""
    n = kv_heads * head_dim
    return Operation("fork", name, m=m, n=n, kv_heads=kv_heads, kv=kv, sequence=sequence, holder=holder)


@lru_cache(maxsize=1 << 16)
def attention(
    name: str,
    m: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    context: int,
    pairs: int,
    kv: str,
    sequence: int = 0,
    holder: int | None = None,
    shared: int | None = None,
) -> tuple[Operation, Operation, Operation]:
    """Scores, softmax and context product of m queries; `context`, `pairs` and what is shared as in `Operation`."""
    sizes = partial(Operation, m=m, heads=heads, context=context, pairs=pairs, sequence=sequence)
    reads = partial(sizes, kv_heads=kv_heads, kv=kv, holder=holder, shared=shared)
    return (
        reads("score", f"{name}.score", k=head_dim),
        sizes("softmax", f"{name}.softmax"),
        reads("context", f"{name}.context", n=head_dim),
    )


def attended(m: int, end: int, window: int | None = None) -> tuple[int, int]:
    """(context, pairs) of the last m of `end` tokens, each attending itself and what came before, within `window`.

    context: positions the last token attends; pairs: the sum over the m tokens.
    """
    first = end - m + 1
    if window is None or end <= window:
        return end, m * (first + end) // 2
    growing = max(0, window - first)  # tokens that still see less than the window
    return window, growing * (first + first + growing - 1) // 2 + (m - growing) * window


def inputs_for(weights: str) -> str:
    """What a matmul's activations are by default: int8 per token for integer weights, else as the weights."""
    return weights if format_named(weights).is_float else "int8"

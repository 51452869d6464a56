"""Which neighbouring operations of a block are lowered together, and what follows what in a step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from nearbank.trace import Operation, Step

ATTENTION = ("score", "softmax", "context")
# Element-wise work that can begin with part of a matrix product's outputs.
_FOLLOWS = ("activation", "residual", "sample")


def fused(operations: tuple[Operation, ...]) -> Iterator[tuple[Operation, ...]]:
    """Neighbouring operations that are lowered together: attention, and a matrix product with what follows it."""
    i = 0
    while i < len(operations):
        size = _fused_size(operations, i)
        yield operations[i : i + size]
        i += size


def _fused_size(operations: tuple[Operation, ...], i: int) -> int:
    first, rest = operations[i], operations[i + 1 :]
    if first.op in ("append", "score"):
        kinds = tuple(o.op for o in rest[:3])
        size = next((n for n in (3, 2) if kinds[:n] == ATTENTION[-n:]), 0)
        return 1 + size
    following = rest[0] if rest else None
    fuses = following is not None and following.op in _FOLLOWS and following.n == first.n
    if first.op != "matmul" or following is None or not fuses:
        return 1
    feeds = len(rest) > 1 and rest[1].op == "matmul" and rest[1].k == first.n and following.op == "activation"
    return 2 + (_fused_size(operations, i + 2) if feeds else 0)


def stages(operations: tuple[Operation, ...]) -> Iterator[tuple[Operation, Operation | None, Operation | None]]:
    """(matrix product, what follows it, the product that needs that) of operations lowered together."""
    products = [i for i, o in enumerate(operations) if o.op == "matmul"]
    for i, end in zip(products, [*products[1:], None], strict=True):
        followed = operations[i + 1] if i + 1 < len(operations) else None
        yield operations[i], followed, operations[end] if end is not None else None


def norms_stream(step: Step) -> bool:
    """True when every norm's input is added up just before, by a residual or the embedding."""
    pairs = [pair for b in step.blocks for pair in pairwise((*b.operations, *b.operations[: b.count > 1]))]
    pairs += [(a.operations[-1], b.operations[0]) for a, b in pairwise(step.blocks)]
    norms = [(before, o) for before, o in pairs if o.op == "norm"]
    return bool(norms) and all(before.op in ("residual", "embed") and before.n == o.n for before, o in norms)

"""One operation of a model run, and how operations repeat over layers and steps.

A trace is a list of rows, one per operation. Rows that differ only in their layer are held once, as a `Block`, so
that a whole generation of a large model is a few objects a step.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

from nearbank.cache_formats import cache_format

Phase = str
PHASES = ("prefill", "decode")
FLOATS = ("fp32", "fp16", "bf16")

# Which fields each operation has. m counts tokens; the rest is explained in docs/trace.md.
FIELDS = MappingProxyType(
    {
        "embed": ("m", "n"),
        "norm": ("m", "n"),
        "matmul": ("m", "n", "k", "weights", "inputs"),
        "append": ("m", "n", "kv_heads", "context", "kv"),
        "fork": ("m", "n", "kv_heads", "kv", "holder"),
        "score": ("m", "k", "heads", "kv_heads", "context", "pairs", "kv"),
        "softmax": ("m", "heads", "context", "pairs"),
        "context": ("m", "n", "heads", "kv_heads", "context", "pairs", "kv"),
        "activation": ("m", "n"),
        "residual": ("m", "n"),
        "sample": ("m", "n"),
    }
)
# Fields that an operation may have, all of them or none.
SHARING = ("holder", "shared")
OPTIONAL = MappingProxyType({"score": SHARING, "context": SHARING})
NUMBERS = ("m", "n", "k", "heads", "kv_heads", "context", "pairs", "shared")
SOURCE_NAMES = ("encoder.", "cross.")
FORMAT_FIELDS = ("weights", "inputs", "kv")


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. A field that the operation does not have is None.

    `m` tokens at once; `n` outputs (or elements, or the vocabulary) and `k` inputs per token; `context` positions
    attended by the last of the m tokens, and `pairs` (query, position) pairs per head, which says how causal or
    windowed the attention is; `weights`, `inputs` and `kv` are names of formats. `shared`: so many of the first
    positions attended lie in the cache of sequence `holder`, once for all that share them.
    """

    op: str
    name: str
    m: int | None = None
    n: int | None = None
    k: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    context: int | None = None
    pairs: int | None = None
    weights: str | None = None
    inputs: str | None = None
    kv: str | None = None
    sequence: int = 0
    holder: int | None = None
    shared: int | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the operation; 0 for what multiplies no matrices."""
        rule = _MACS.get(self.op)
        return 0 if rule is None else rule(self)


def _product(*factors: int | None) -> int:
    result = 1
    for factor in factors:
        result *= factor or 0
    return result


_MACS: Mapping[str, Callable[[Operation], int]] = MappingProxyType(
    {
        "matmul": lambda o: _product(o.m, o.n, o.k),
        "score": lambda o: _product(o.pairs, o.heads, o.k),
        "context": lambda o: _product(o.pairs, o.heads, o.n),
    }
)


@dataclass(frozen=True, slots=True)
class Block:
    """`operations` once for each of `count` layers from `first` on; first = -1 and count = 1 outside the layers."""

    first: int
    count: int
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass: the prompt (step 0) or one generated token."""

    index: int
    phase: Phase
    blocks: tuple[Block, ...]

    def rows(self) -> Iterator[tuple[int, Operation]]:
        """(layer, operation) in the order they ran."""
        for block in self.blocks:
            for layer in range(block.first, block.first + block.count):
                for operation in block.operations:
                    yield layer, operation

    @property
    def macs(self) -> int:
        return sum(block.count * sum(o.macs for o in block.operations) for block in self.blocks)

    @property
    def tokens(self) -> int:
        """Tokens that went through the model in this step, over all sequences."""
        embeds = [o for block in self.blocks for o in block.operations if o.op == "embed"]
        return sum(o.m or 0 for o in embeds)


HEAD = "lm_head"  # the one matrix that low-bit models keep in 16 bits


@lru_cache(maxsize=1 << 16)
def recast(blocks: tuple[Block, ...], weights: str | None, kv: str | None) -> tuple[Block, ...]:
    """The same operations with other formats: `weights` for every matrix but the LM head, `kv` for the cache.

    None keeps a format. Integer weights take int8 activations, floating ones take activations of their own format.
    """
    return tuple(replace(b, operations=tuple(_recast(o, weights, kv) for o in b.operations)) for b in blocks)


def _recast(operation: Operation, weights: str | None, kv: str | None) -> Operation:
    if operation.kv is not None and kv is not None:
        source = operation.name.startswith(SOURCE_NAMES)  # in which no token is newer than the rest
        return replace(operation, kv=cache_format(kv).format.name if source else kv)
    if operation.op != "matmul" or operation.name == HEAD or weights is None:
        return operation
    inputs = weights if weights in FLOATS else "int8"
    return replace(operation, weights=weights, inputs=inputs)


def fold_layers(rows: list[tuple[int, Operation]]) -> tuple[Block, ...]:
    """Blocks for rows in running order: neighbouring layers with equal operations become one block."""
    blocks: list[Block] = []
    for layer, operations in _by_layer(rows):
        last = blocks[-1] if blocks else None
        if last and last.first >= 0 and layer == last.first + last.count and last.operations == operations:
            blocks[-1] = Block(last.first, last.count + 1, operations)
        else:
            blocks.append(Block(layer, 1, operations))
    return tuple(blocks)


def _by_layer(rows: list[tuple[int, Operation]]) -> Iterator[tuple[int, tuple[Operation, ...]]]:
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i][0] != rows[start][0]:
            yield rows[start][0], tuple(operation for _, operation in rows[start:i])
            start = i

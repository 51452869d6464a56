"""Lowering one block of a layer: its operations become the nodes inside the loops over tokens and layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from math import ceil

from nearbank.errors import NearbankError
from nearbank.mapping import asic
from nearbank.mapping.append import append_keys
from nearbank.mapping.asic import Work
from nearbank.mapping.attention import attend
from nearbank.mapping.fusing import ATTENTION, fused, stages
from nearbank.mapping.grouped_attention import flush
from nearbank.mapping.matmul import Feed, Follow, Part, Rows, matmul, part_unit
from nearbank.mapping.placement import Placement
from nearbank.mapping.reach import Attention, Reach
from nearbank.mapping.sweep import Address
from nearbank.mapping.target import Target
from nearbank.mapping.together import Together
from nearbank.mapping.token_runs import Position, TokenRuns
from nearbank.sim.program import Builder, Index, Kept, Loop, Mark, Node, Start
from nearbank.trace import Block, ModelDescription, Operation

Nodes = tuple[Node, ...]
Emit = Callable[[Builder, Address, Rows], None]
PutOff = Callable[[Rows, Builder], None]

_WORK: dict[str, Callable[[int], Work]] = {
    "embed": asic.add_work,
    "norm": asic.norm_work,
    "activation": asic.gelu_work,
    "residual": asic.add_work,
    "sample": asic.add_work,
}
# The same where the statistics of every norm are gathered while its input is added up, token by token.
_STREAMED_WORK = _WORK | {
    "embed": lambda n: asic.add_work(n).streamed + asic.statistics_work(n),
    "norm": asic.finish_norm_work,
    "residual": lambda n: asic.add_work(n).streamed + asic.statistics_work(n),
}


@dataclass(frozen=True)
class Way:
    """What a stream's body is made for: its channels, by the first of them, and the vectors that go together.

    `streamed`: the statistics of every norm are gathered while its input is added up. `like` is the first channel that
    does the same but for K, which the channels of a team append in turn.
    """

    channel: int
    like: int
    streamed: bool
    together: Together = Together()  # noqa: RUF009  (frozen)

    def work(self, op: str) -> Callable[[int], Work]:
        """The ASIC's work for an operation on all vectors."""
        return self.together.of_all((_STREAMED_WORK if self.streamed else _WORK)[op])


@dataclass(frozen=True)
class Blocks:
    """Lowers the blocks of a placed model; parts that repeat are made once."""

    model: ModelDescription
    target: Target
    placement: Placement
    runs: TokenRuns
    _parts: dict[object, Nodes] = field(default_factory=dict, compare=False, repr=False)
    _kept: Kept = field(default_factory=dict, compare=False, repr=False)

    def nodes(self, way: Way, block: Block, position: Position) -> Nodes:
        """The nodes of one layer for the tokens of a run."""
        nodes: list[Node] = []
        values: PutOff | None = None
        groups: list[tuple[Operation, ...]] = [*fused(block.operations), ()]
        for operations, following in pairwise(groups):
            if operations[0].op in ("append", *ATTENTION):
                nodes += self._attention(way, block.first, operations, position, values)
                values = None
                continue
            part = self._first_part(operations, following) if way.together.count == 1 else None
            emit = partial(self._plain, way, operations, part)
            nodes += self._part((way.like, block.first, operations, way.streamed, way.together, part), emit)
            if part:
                values = partial(self._rest, way, operations[0], part.end)
        return tuple(nodes)

    def _first_part(self, operations: tuple[Operation, ...], following: tuple[Operation, ...]) -> Part | None:
        """The outputs of a bank that hold q and k, where v is better computed beside the softmax."""
        cache, ops = self.placement.cache, tuple(o.op for o in following)
        if not cache.slow_softmax or cache.scales or ops != ("append", *ATTENTION) or len(operations) > 1:
            return None
        matrix, product = self.placement.matrix(operations[0].name), operations[0]
        values = self.model.kv_heads * self.model.head_dim
        queries = self.model.heads * self.model.head_dim
        if matrix.n != queries + 2 * values or matrix.integer_inputs or matrix.split > 1:
            return None
        needed, unit = (matrix.n - values) / (self.target.banks * self.target.channels), part_unit(matrix)
        end = ceil(needed / unit) * unit
        return Part(0, end) if end < self.target.outputs_of(self.target.channels - 1, product.n or 0) else None

    def _rest(self, way: Way, product: Operation, first: int, rows: Rows, b: Builder) -> None:
        """The outputs of a product from `first` on."""
        end = self.target.outputs_of(0, product.n or 0)
        self._matmul(way.like, product, b, rows, part=Part(first, end))

    def _part(self, key: tuple[object, ...], emit: Emit) -> Nodes:
        """The nodes that `emit` writes inside the loops over tokens and layers; made once per key."""
        found = self._parts.get(key)
        if found is None:
            first = key[1] if isinstance(key[1], int) and key[1] > 0 else 0
            found = self._parts[key] = self._inside(emit, first)
        return found

    def _inside(self, emit: Emit, first_layer: int) -> Nodes:
        b = Builder(kept=self._kept)
        with b.loop(1) as token, b.loop(1) as layer:
            emit(b, token, partial(_row_in_layer, (layer + first_layer) * self._stride))
        (outer,) = b.body()
        assert isinstance(outer, Loop)
        (inner,) = outer.body
        assert isinstance(inner, Loop)
        return inner.body

    @property
    def _stride(self) -> int:
        return self.placement.cache.keys.stride

    def _plain(
        self,
        way: Way,
        operations: tuple[Operation, ...],
        part: Part | None,
        b: Builder,
        token: Address,
        rows: Rows,
    ) -> None:
        """A matrix product with what follows it, up to the next matrix that needs that; or one job of the ASIC."""
        first = operations[0]
        if first.op != "matmul":
            _element_wise(b, first, self.target, way)
            return
        feed = None
        for product, followed, next_product in stages(operations):
            needed = self._needed(next_product) if way.together.count == 1 else None
            follow = Follow(followed.op, way.work(followed.op), needed) if followed else None
            queued = self._matmul(way.like, product, b, rows, follow, feed, part, way.together.count)
            if followed:
                b.add(Mark(followed.op))
            feed = Feed(follow, queued) if follow and follow.needed is not None else None

    def _needed(self, following: Operation | None) -> int | None:
        """How many values the next matrix multiplies first; None when it takes all at once."""
        if following is None:
            return None
        matrix = self.placement.matrix(following.name)
        at_once = matrix.chunk_count == 1 or matrix.integer_inputs
        return None if at_once else matrix.needs(matrix.chunks[0].width)

    def _matmul(
        self,
        channel: int,
        operation: Operation,
        b: Builder,
        rows: Rows,
        follow: Follow | None = None,
        feed: Feed | None = None,
        part: Part | None = None,
        vectors: int = 1,
    ) -> int:
        matrix = self.placement.matrix(operation.name)
        if (matrix.n, matrix.k) != (operation.n, operation.k):
            raise NearbankError(
                f"{operation.name} is [{operation.n}, {operation.k}] in the trace but [{matrix.n}, {matrix.k}] "
                "in the placed model"
            )
        if matrix.integer_inputs:
            work = asic.quantise_work(matrix.k).times(vectors)
            b.add(Start("asic", "quantise", self.target.asic.time_ps(work)))
        outside = matrix.region.stride == 0
        return matmul(b, matrix, self.target, channel, _same_row if outside else rows, follow, feed, part, vectors)

    def _attention(
        self,
        way: Way,
        layer: int,
        operations: tuple[Operation, ...],
        position: Position,
        values: PutOff | None,
    ) -> Iterator[Node]:
        """K and V appended and attended, as far as the trace has them; `values` is a product put off until then."""
        appends, cache = operations[0].op == "append", self.placement.cache
        keys: Nodes = ()
        in_place = appends and operations[-1].op in ATTENTION and self._written_in_place
        if appends and not in_place:
            yield from self._flushed(way, layer, position.token)
            emit = partial(self._keys, way, position.run)
            keys = self._part(("K", layer, way.channel, position.run, way.together), emit)
        if not cache.newest_exact:
            yield from keys
        if operations[-1].op in ATTENTION:
            span = self.runs.reach(operations, position)
            token = self.runs.same_addresses(position.token) if appends else None
            new = position.run if in_place else None
            channel = way.channel if in_place else way.like
            emit = partial(self._attend, way, channel, span, token, new, values)
            yield from self._part(("attend", layer, channel, span, token, new, values is None, way.together), emit)
        if cache.newest_exact:
            yield from keys

    @property
    def _written_in_place(self) -> bool:
        cache = self.placement.cache
        fits = cache.record_columns <= self.target.columns
        return self.target.choices.in_place and cache.method == "plain" and not cache.scales and fits

    def _flushed(self, way: Way, layer: int, token: int) -> Nodes:
        """The group that was full before `token`, rounded; nothing in caches without groups."""
        groups = self.placement.cache.groups
        if not groups or not token or token % groups.tokens:
            return ()
        group = token // groups.tokens - 1
        return self._part(("flush", layer, way.channel, group, way.together), partial(self._flush, way, group))

    def _flush(self, way: Way, group: int, b: Builder, counter: Address, rows: Rows) -> None:
        with way.together.each(b, counter, rows) as (_, own):
            flush(b, Attention(self.placement.cache, self.target, way.channel, own), group)

    def _keys(self, way: Way, token: int, b: Builder, counter: Address, rows: Rows) -> None:
        with way.together.each(b, counter, rows) as (place, own):
            append_keys(b, Attention(self.placement.cache, self.target, way.channel, own), token, place)

    def _attend(
        self,
        way: Way,
        channel: int,
        span: Reach,
        token: int | None,
        new: int | None,
        values: PutOff | None,
        b: Builder,
        counter: Address,
        rows: Rows,
    ) -> None:
        with way.together.each(b, counter, rows) as (place, own):
            written = None if new is None else (new, place)
            at = Attention(self.placement.cache, self.target, channel, own, new=written)
            attend(b, at, span, token, partial(values, rows) if values else None)


def _row_in_layer(offset: Index, row: int) -> Index:
    return offset + row


def _same_row(row: int) -> Address:
    return row


def _element_wise(b: Builder, operation: Operation, target: Target, way: Way) -> None:
    if operation.op not in _WORK:
        raise NearbankError(
            f"operation {operation.op!r} stands alone in the trace; this mapping lowers it in attention"
        )
    b.add(Mark(operation.op))
    b.add(Start("asic", operation.op, target.asic.time_ps(way.work(operation.op)(operation.n or 0))))

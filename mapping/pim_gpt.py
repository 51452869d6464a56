"""The mapping of PIM-GPT: a model placed in a machine, and every step of its trace lowered to a program.

    placed = plan(model, machine, MappingOptions(weights="ternary", kv="bf16", max_context=1024))
    program = placed.lower(step)

Tokens of a prompt go through the model one by one, as in PIM-GPT, unless `Choices.reuse` lets several share every open
row; so do tokens of several sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from math import ceil
from operator import attrgetter

from nearbank.errors import NearbankError
from nearbank.mapping import asic
from nearbank.mapping.append import append_keys
from nearbank.mapping.asic import Work
from nearbank.mapping.attention import attend
from nearbank.mapping.cache_placement import CachePlacement, group_bytes, heads_at_work, score_bytes, vector_bytes
from nearbank.mapping.choices import Choices
from nearbank.mapping.grouped_attention import flush
from nearbank.mapping.matmul import Feed, Follow, Part, Rows, held_scale_bytes, matmul, part_unit
from nearbank.mapping.placement import Placement, place
from nearbank.mapping.reach import Attention, Reach
from nearbank.mapping.sweep import Address
from nearbank.mapping.target import Target, target_of
from nearbank.mapping.together import Together, Turn, one_sequence, sequence_groups, token_turns
from nearbank.sim.machine import Machine
from nearbank.sim.program import Builder, Index, Loop, Mark, Node, Program, Start, Stream, Wait
from nearbank.trace import Block, ModelDescription, Operation, Step

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
# What of an operation a program depends on, beside the positions it attends.
_SHAPE = attrgetter("op", "name", "m", "n", "k", "heads", "kv_heads", "weights", "inputs", "kv")
# Element-wise work that can begin with part of a matrix product's outputs.
_FOLLOWS = ("activation", "residual", "sample")
_ATTENTION = ("score", "softmax", "context")


@dataclass(frozen=True)
class MappingOptions:
    """What a mapping may choose. None: bf16 weights, a bf16 cache, the model's own context.

    `weights` is the format of every matrix but the LM head, which has `head`; `inputs` that of the activations of
    integer weights, int8 if left out and always for an integer head; `kv` that of the cache, reserved for
    `max_context` tokens. `v_block` bounds the tokens of one dimension in a row of V: smaller blocks put more dimensions
    in a row, so that a token's V opens fewer rows. `batch` sequences have a cache each. `choices` are
    those that `nearbank.mapping.search` makes; by default the published mapping's.
    """

    weights: str | None = None
    kv: str | None = None
    max_context: int | None = None
    head: str = "bf16"
    inputs: str | None = None
    v_block: int | None = None
    batch: int = 1
    choices: Choices = Choices()  # noqa: RUF009  (frozen)


@dataclass(frozen=True)
class _Position:
    """`count` tokens from `token` on that share a program. It is that of token `run`, begun some rounds later."""

    token: int
    count: int
    run: int


@dataclass(frozen=True)
class _Lowering:
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
class Plan:
    """A placed model. `lower` turns a step of its trace into a program; parts that repeat are made once."""

    model: ModelDescription
    target: Target
    options: MappingOptions
    placement: Placement
    machine: Machine
    _parts: dict[object, Nodes] = field(default_factory=dict, compare=False, repr=False)
    _groups: list[tuple[int, ...]] = field(default_factory=list, compare=False, repr=False)
    _last: list[tuple[object, Program]] = field(default_factory=list, compare=False, repr=False)

    def lower(self, step: Step) -> Program:
        """The program of one step: commands, jobs of the ASIC, and what waits for what."""
        step, sequences = one_sequence(step)
        tokens, end = _tokens(step)
        self._check(step, end, sequences)
        positions = list(self._positions(end - tokens, end))
        return self._of_run(step, sequences, positions[0]) if tokens == 1 else self._program(step, sequences, positions)

    def _of_run(self, step: Step, sequences: int, position: _Position) -> Program:
        """The program of one token: that of the first token of its run, begun later."""
        cache, operations = self.placement.cache, [b.operations for b in step.blocks]
        if not cache.newest_exact and not cache.groups:
            position = replace(position, run=position.token // self._run * self._run)
        shapes = tuple((b.first, b.count, tuple(map(_SHAPE, b.operations))) for b in step.blocks)
        reaches = tuple(self._reach(o, position) for o in operations if any(each.op == "score" for each in o))
        key = sequences, shapes, position.run, reaches
        if not self._last or self._last[0][0] != key:
            self._last[:] = [(key, self._program(step, sequences, [position]))]
        return _begun_later(self._last[0][1], f"{step.phase} {step.index}", position.token - position.run)

    def _program(self, step: Step, sequences: int, positions: list[_Position]) -> Program:
        tokens = sum(p.count for p in positions)
        inside = [b for b in step.blocks if _size(b) == tokens]
        after = [b for b in step.blocks if _size(b) != tokens]
        streamed = _norms_stream(step)
        ways = [(c, _Lowering(c[0], self._like(c[0]), streamed)) for c in self.channel_groups]
        streams = tuple(Stream(c, self._body(way, inside, after, positions, sequences)) for c, way in ways)
        return Program(f"{step.phase} {step.index}", streams)

    @property
    def channel_groups(self) -> tuple[tuple[int, ...], ...]:
        """Channels that do the same, by what they hold."""
        if not self._groups:
            groups: dict[tuple[int, ...], list[int]] = {}
            for channel in range(self.target.channels):
                groups.setdefault(self._share(channel), []).append(channel)
            self._groups.extend(tuple(g) for g in groups.values())
        return tuple(self._groups)

    def _share(self, channel: int) -> tuple[int, ...]:
        """What a channel holds of every matrix and of the cache: equal shares, equal programs."""
        cache = self.placement.cache
        outputs = (m.outputs_of(channel, self.target) for m in self.placement.matrices)
        return (*outputs, cache.slots_of(channel, self.target.channels), channel % cache.team)

    def _like(self, channel: int) -> int:
        """The first channel that does the same but for K; scales of a quantised cache are appended in turn, too."""
        if self.placement.cache.scales:
            return channel
        firsts = [group[0] for group in self.channel_groups]
        return next(first for first in firsts if self._share(first)[:-1] == self._share(channel)[:-1])

    def _positions(self, begin: int, end: int) -> Iterator[_Position]:
        """Tokens [begin, end) in runs with the same addresses but for the bank of K."""
        while begin < end:
            count = 1 if self._stands_alone(begin) else min(end, (begin // self._run + 1) * self._run) - begin
            yield _Position(begin, count, begin)
            begin += count

    @property
    def _run(self) -> int:
        """So many tokens have the same addresses, but for the bank of K."""
        cache = self.placement.cache
        bursts = cache.scales is not None and not cache.groups  # scales of each token
        return self.target.column_bytes // cache.scale_bytes if bursts else self.target.banks

    def _stands_alone(self, token: int) -> bool:
        """True where the tokens after this one attend more rows of the past, or a group was full before it."""
        cache = self.placement.cache
        if cache.newest_exact:
            return token % self.target.banks == 0
        return cache.groups is not None and token > 0 and token % cache.groups.tokens == 0

    def _body(
        self, way: _Lowering, inside: list[Block], after: list[Block], positions: list[_Position], sequences: int
    ) -> Nodes:
        def loops(blocks: list[Block], position: _Position, tokens: int) -> Iterator[Node]:
            for count, group in self._turns(tokens, sequences):
                ways = [replace(way, together=together) for together in group]
                yield Loop(count, tuple(Loop(b.count, self._block(w, b, position)) for w in ways for b in blocks))

        nodes = [node for p in positions for node in loops(inside, p, p.count)]
        nodes += [node for b in after for node in loops([b], positions[-1], _size(b))]
        return (*nodes, Wait("asic"))

    def _turns(self, tokens: int, sequences: int) -> list[Turn]:
        """How a run of tokens goes through the model: tokens of one sequence together, or sequences."""
        reuse = self.target.choices.reuse
        if sequences == 1:
            return token_turns(tokens, reuse)
        return [(tokens, sequence_groups(sequences, reuse, self.placement.sequence_rows))]

    def _block(self, way: _Lowering, block: Block, position: _Position) -> Nodes:
        nodes: list[Node] = []
        values: PutOff | None = None
        groups: list[tuple[Operation, ...]] = [*_fused(block.operations), ()]
        for operations, following in pairwise(groups):
            if operations[0].op in ("append", *_ATTENTION):
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
        if not cache.slow_softmax or cache.scales or ops != ("append", *_ATTENTION) or len(operations) > 1:
            return None
        matrix, product = self.placement.matrix(operations[0].name), operations[0]
        if (
            matrix.n != (self.model.heads + 2 * self.model.kv_heads) * self.model.head_dim
            or matrix.integer_inputs
            or matrix.split > 1
        ):
            return None
        needed = (matrix.n - self.model.kv_heads * self.model.head_dim) / (self.target.banks * self.target.channels)
        unit = part_unit(matrix)
        end = ceil(needed / unit) * unit
        return Part(0, end) if end < self.target.outputs_of(self.target.channels - 1, product.n or 0) else None

    def _rest(self, way: _Lowering, product: Operation, first: int, rows: Rows, b: Builder) -> None:
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
        b = Builder()
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
        way: _Lowering,
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
        for product, followed, next_product in _stages(operations):
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
        at_once = matrix.chunk_count == 1 or matrix.integer_inputs or matrix.split > 1
        return None if at_once else matrix.chunks[0].width

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
        way: _Lowering,
        layer: int,
        operations: tuple[Operation, ...],
        position: _Position,
        values: PutOff | None,
    ) -> Iterator[Node]:
        """K and V appended and attended, as far as the trace has them; `values` is a product put off until then."""
        appends, cache = operations[0].op == "append", self.placement.cache
        keys: Nodes = ()
        if appends:
            yield from self._flushed(way, layer, position.token)
            emit = partial(self._keys, way, position.run)
            keys = self._part(("K", layer, way.channel, position.run, way.together), emit)
        if not cache.newest_exact:
            yield from keys
        if operations[-1].op in _ATTENTION:
            span = self._reach(operations, position)
            token = self._same_addresses(position.token) if appends else None
            emit = partial(self._attend, way, span, token, values)
            yield from self._part(("attend", layer, way.like, span, token, values is None, way.together), emit)
        if cache.newest_exact:
            yield from keys

    def _reach(self, operations: tuple[Operation, ...], position: _Position) -> Reach:
        return Reach.of(self.placement.cache, *_attended(operations, position), self.target.banks)

    def _flushed(self, way: _Lowering, layer: int, token: int) -> Nodes:
        """The group that was full before `token`, rounded; nothing in caches without groups."""
        groups = self.placement.cache.groups
        if not groups or not token or token % groups.tokens:
            return ()
        group = token // groups.tokens - 1
        return self._part(("flush", layer, way.channel, group, way.together), partial(self._flush, way, group))

    def _flush(self, way: _Lowering, group: int, b: Builder, counter: Address, rows: Rows) -> None:
        with way.together.each(b, counter, rows) as (_, own):
            flush(b, Attention(self.placement.cache, self.target, way.channel, own), group)

    def _same_addresses(self, token: int) -> int:
        """The first token whose V and scales have the same addresses."""
        if self.placement.cache.groups:
            return token // self.target.banks * self.target.banks
        return next(
            p.token
            for p in self._positions(token // self.target.banks * self.target.banks, token + 1)
            if p.token + p.count > token
        )

    def _keys(self, way: _Lowering, token: int, b: Builder, counter: Address, rows: Rows) -> None:
        with way.together.each(b, counter, rows) as (place, own):
            append_keys(b, Attention(self.placement.cache, self.target, way.channel, own), token, place)

    def _attend(
        self,
        way: _Lowering,
        span: Reach,
        token: int | None,
        values: PutOff | None,
        b: Builder,
        counter: Address,
        rows: Rows,
    ) -> None:
        with way.together.each(b, counter, rows) as (_, own):
            at = Attention(self.placement.cache, self.target, way.like, own)
            attend(b, at, span, token, partial(values, rows) if values else None)

    def _check(self, step: Step, end: int, sequences: int) -> None:
        cache = self.placement.cache
        if end > cache.max_context:
            raise NearbankError(
                f"step {step.index} has a context of {end} tokens, but space is reserved for {cache.max_context}; "
                f"plan the mapping with max_context={end} or more"
            )
        if sequences > self.options.batch:
            raise NearbankError(
                f"step {step.index} has {sequences} sequences, but there are caches for {self.options.batch}; "
                f"plan the mapping with batch={sequences}"
            )


def _begun_later(program: Program, name: str, rounds: int) -> Program:
    """The program of one token with its loop over tokens, the first node, begun some rounds later."""
    streams = []
    for stream in program.streams:
        tokens, *rest = stream.body
        assert isinstance(tokens, Loop)
        streams.append(Stream(stream.channels, (replace(tokens, first=rounds), *rest)))
    return Program(name, tuple(streams))


def _row_in_layer(offset: Index, row: int) -> Index:
    return offset + row


def _same_row(row: int) -> Address:
    return row


def _size(block: Block) -> int:
    """Tokens of a block's operations."""
    return max(o.m or 1 for o in block.operations)


def _tokens(step: Step) -> tuple[int, int]:
    """(tokens of the step, positions in the cache after it)."""
    tokens = max(_size(b) for b in step.blocks)
    ends = [o.context for b in step.blocks for o in b.operations if o.op in ("append", *_ATTENTION) and o.context]
    return tokens, max(ends, default=tokens)


def _fused(operations: tuple[Operation, ...]) -> Iterator[tuple[Operation, ...]]:
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
        size = next((n for n in (3, 2) if kinds[:n] == _ATTENTION[-n:]), 0)
        return 1 + size
    following = rest[0] if rest else None
    fuses = following is not None and following.op in _FOLLOWS and following.n == first.n
    if first.op != "matmul" or following is None or not fuses:
        return 1
    feeds = len(rest) > 1 and rest[1].op == "matmul" and rest[1].k == first.n and following.op == "activation"
    return 2 + (_fused_size(operations, i + 2) if feeds else 0)


def _stages(operations: tuple[Operation, ...]) -> Iterator[tuple[Operation, Operation | None, Operation | None]]:
    """(matrix product, what follows it, the product that needs that) of operations lowered together."""
    products = [i for i, o in enumerate(operations) if o.op == "matmul"]
    for i, end in zip(products, [*products[1:], None], strict=True):
        followed = operations[i + 1] if i + 1 < len(operations) else None
        yield operations[i], followed, operations[end] if end is not None else None


def _norms_stream(step: Step) -> bool:
    """True when every norm's input is added up just before, by a residual or the embedding."""
    pairs = [pair for b in step.blocks for pair in pairwise((*b.operations, *b.operations[: b.count > 1]))]
    pairs += [(a.operations[-1], b.operations[0]) for a, b in pairwise(step.blocks)]
    norms = [(before, o) for before, o in pairs if o.op == "norm"]
    return bool(norms) and all(before.op in ("residual", "embed") and before.n == o.n for before, o in norms)


def _attended(operations: tuple[Operation, ...], position: _Position) -> tuple[int, int]:
    """(first, last) position that the tokens of a run attend: all before them, or a window."""
    score = next(o for o in operations if o.op == "score")
    ends = [o.context for o in operations if o.op == "append"]
    last = position.token + position.count - 1
    window = score.context if ends and ends[0] and score.context and score.context < ends[0] else None
    return (0 if window is None else max(position.token + 1 - window, 0)), last


def _element_wise(b: Builder, operation: Operation, target: Target, way: _Lowering) -> None:
    if operation.op not in _WORK:
        raise NearbankError(
            f"operation {operation.op!r} stands alone in the trace; this mapping lowers it in attention"
        )
    b.add(Mark(operation.op))
    b.add(Start("asic", operation.op, target.asic.time_ps(way.work(operation.op)(operation.n or 0))))


def plan(model: ModelDescription, machine: Machine, options: MappingOptions | None = None) -> Plan:
    """Place a model; `NearbankError` when the machine lacks a format or a part, or is too small."""
    options = options or MappingOptions()
    target = target_of(machine, options.choices)
    context = model.context if options.max_context is None else options.max_context
    for name, value in (("max_context", context), ("batch", options.batch), ("reuse", options.choices.reuse)):
        if value < 1:
            raise NearbankError(f"{name} is {value}; expected 1 or more")
    placement = place(
        model,
        target,
        weights=options.weights or "bf16",
        head=options.head,
        kv=options.kv or "bf16",
        inputs=options.inputs,
        max_context=context,
        v_block=options.v_block,
        sequences=options.batch,
    )
    _check_sram(model, target, placement)
    return Plan(model, target, options, placement, machine)


def _check_sram(model: ModelDescription, target: Target, placement: Placement) -> None:
    """Vectors of one token, and the scores of the heads that are in work at once, must fit the ASIC's memory."""
    cache = placement.cache
    heads = model.heads if cache.joined else heads_at_work(model, target, cache.team)
    scales = max((held_scale_bytes(m, target) for m in placement.matrices), default=0)
    grouped = cache.groups.visit * group_bytes(model, heads) if cache.groups else 0
    flushed = _flush_bytes(cache, target.channels) if cache.groups else 0
    reuse = target.choices.reuse
    need = max(score_bytes(heads, cache.max_context, cache.input_bytes) + grouped, flushed, scales) + vector_bytes(
        model, reuse
    )
    vectors = f"vectors of {reuse} tokens" if reuse > 1 else "vectors of one token"
    what = f"{heads} heads' scores at {cache.max_context} tokens and the {vectors}"
    target.asic.check_sram(need, what, "use a shorter context" + (" or reuse rows less" if reuse > 1 else ""))


def _flush_bytes(cache: CachePlacement, channels: int) -> int:
    """Exact K or V of a full group (KIVI), of all heads of a slot."""
    assert cache.groups is not None
    return cache.groups.tokens * cache.head_dim * cache.heads_in_slot(0, channels) * cache.input_bytes

"""The mapping of PIM-GPT: a model placed in a machine, and every step of its trace lowered to a program.

    placed = plan(model, machine, MappingOptions(weights="ternary", kv="bf16", max_context=1024))
    program = placed.lower(step)

Tokens of a prompt go through the model one by one, as in PIM-GPT, unless `Choices.reuse` lets several share every open
row; so do tokens of several sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter

from nearbank.errors import NearbankError
from nearbank.mapping.blocks import Blocks, Nodes, Way
from nearbank.mapping.choices import Choices
from nearbank.mapping.fusing import ATTENTION, norms_stream
from nearbank.mapping.placement import Placement, place
from nearbank.mapping.sram import check_sram
from nearbank.mapping.target import Target, target_of
from nearbank.mapping.together import Turn, one_sequence, sequence_groups, token_turns
from nearbank.mapping.token_runs import Position, TokenRuns
from nearbank.sim.machine import Machine
from nearbank.sim.program import Loop, Node, Program, Stream, Wait
from nearbank.sim.retention import kept_by_use
from nearbank.sim.throttle import with_units
from nearbank.trace import Block, ModelDescription, Step

# What of an operation a program depends on, beside the positions it attends.
_SHAPE = attrgetter("op", "name", "m", "n", "k", "heads", "kv_heads", "weights", "inputs", "kv")


@dataclass(frozen=True)
class MappingOptions:
    """What a mapping may choose. None: bf16 weights, a bf16 cache, the model's own context.

    `weights` is the format of every matrix but the LM head, which has `head`; `inputs` that of the activations of
    integer weights, int8 if left out and always for an integer head; `kv` that of the cache, reserved for
    `max_context` tokens. `dequant` says who applies the scales of weights, "bank" or "asic": by default the banks those
    of groups where their units have scales, and the ASIC all others. `v_block` bounds the tokens of one dimension in a
    row of V: smaller blocks put more dimensions in a row, so that a token's V opens fewer rows. `batch` sequences have
    a cache each. `choices` are those that `nearbank.mapping.search` makes; by default the published mapping's.
    """

    weights: str | None = None
    kv: str | None = None
    max_context: int | None = None
    head: str = "bf16"
    inputs: str | None = None
    dequant: str | None = None
    v_block: int | None = None
    batch: int = 1
    choices: Choices = Choices()  # noqa: RUF009  (frozen)


@dataclass(frozen=True)
class Plan:
    """A model placed in `machine`, on which its programs are to be played: with a power budget it has used units alone.

    `lower` turns a step of its trace into a program; parts that repeat are made once.
    """

    model: ModelDescription
    target: Target
    options: MappingOptions
    placement: Placement
    machine: Machine
    _last: list[tuple[object, Program]] = field(default_factory=list, compare=False, repr=False)

    def lower(self, step: Step) -> Program:
        """The program of one step: commands, jobs of the ASIC, and what waits for what."""
        step, sequences = one_sequence(step)
        tokens, end = _tokens(step)
        self._check(step, end, sequences)
        positions = list(self._runs.positions(end - tokens, end))
        return self._of_run(step, sequences, positions[0]) if tokens == 1 else self._program(step, sequences, positions)

    def _of_run(self, step: Step, sequences: int, position: Position) -> Program:
        """The program of one token: that of the first token of its run, begun later."""
        cache, operations = self.placement.cache, [b.operations for b in step.blocks]
        if not cache.newest_exact and not cache.groups:
            size = self._runs.size
            position = replace(position, run=position.token // size * size)
        shapes = tuple((b.first, b.count, tuple(map(_SHAPE, b.operations))) for b in step.blocks)
        reaches = tuple(self._runs.reach(o, position) for o in operations if any(each.op == "score" for each in o))
        key = sequences, shapes, position.run, reaches
        if not self._last or self._last[0][0] != key:
            self._last[:] = [(key, self._program(step, sequences, [position]))]
        return _begun_later(self._last[0][1], f"{step.phase} {step.index}", position.token - position.run)

    def _program(self, step: Step, sequences: int, positions: list[Position]) -> Program:
        tokens = sum(p.count for p in positions)
        inside = [b for b in step.blocks if _size(b) == tokens]
        after = [b for b in step.blocks if _size(b) != tokens]
        streamed = norms_stream(step)
        ways = [(c, Way(c[0], self._like(c[0]), streamed)) for c in self.channel_groups]
        streams = tuple(Stream(c, self._body(way, inside, after, positions, sequences)) for c, way in ways)
        return Program(f"{step.phase} {step.index}", streams)

    @cached_property
    def channel_groups(self) -> tuple[tuple[int, ...], ...]:
        """Channels that do the same, by what they hold."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for channel in range(self.target.channels):
            groups.setdefault(self._share(channel), []).append(channel)
        return tuple(tuple(group) for group in groups.values())

    @cached_property
    def _runs(self) -> TokenRuns:
        return TokenRuns(self.placement.cache, self.target.banks, self.target.column_bytes)

    @cached_property
    def _blocks(self) -> Blocks:
        return Blocks(self.model, self.target, self.placement, self._runs)

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

    def _body(
        self, way: Way, inside: list[Block], after: list[Block], positions: list[Position], sequences: int
    ) -> Nodes:
        def loops(blocks: list[Block], position: Position, tokens: int) -> Iterator[Node]:
            for count, group in self._turns(tokens, sequences):
                ways = [replace(way, together=together) for together in group]
                yield Loop(
                    count, tuple(Loop(b.count, self._blocks.nodes(w, b, position)) for w in ways for b in blocks)
                )

        nodes = [node for p in positions for node in loops(inside, p, p.count)]
        nodes += [node for b in after for node in loops([b], positions[-1], _size(b))]
        return (*nodes, Wait("asic"))

    def _turns(self, tokens: int, sequences: int) -> list[Turn]:
        """How a run of tokens goes through the model: tokens of one sequence together, or sequences."""
        reuse = self.target.choices.reuse
        if sequences == 1:
            return token_turns(tokens, reuse)
        return [(tokens, sequence_groups(sequences, reuse, self.placement.sequence_rows))]

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


def _size(block: Block) -> int:
    """Tokens of a block's operations."""
    return max(o.m or 1 for o in block.operations)


def _tokens(step: Step) -> tuple[int, int]:
    """(tokens of the step, positions in the cache after it)."""
    tokens = max(_size(b) for b in step.blocks)
    ends = [o.context for b in step.blocks for o in b.operations if o.op in ("append", *ATTENTION) and o.context]
    return tokens, max(ends, default=tokens)


def plan(model: ModelDescription, machine: Machine, options: MappingOptions | None = None) -> Plan:
    """Place a model; `NearbankError` when the machine lacks a format or a part, or is too small."""
    options = options or MappingOptions()
    machine = kept_by_use(machine) if options.choices.by_use else machine
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
        dequant=options.dequant,
    )
    check_sram(model, target, placement)
    return Plan(model, target, options, placement, with_units(machine, _units(placement)))


def _units(placement: Placement) -> set[str]:
    """The MAC units that products with a placement's matrices and caches use."""
    cache, window = placement.cache, placement.cache.window
    cached = {cache.use.mac_format} | ({window.use.mac_format} if window else set())
    return cached | {matrix.use.mac_format for matrix in placement.matrices}

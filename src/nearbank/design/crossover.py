"""From how many sequences on a GPU is quicker: time per token of a batch that shares every open row, beside rooflines.

A decode step of n sequences reads the weights once. A GPU's time per token falls until arithmetic binds; banks save the
opening of rows alone, as they multiply every vector by itself. GPUs are modelled at their best: peak bandwidth or peak
arithmetic, whichever takes longer, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from nearbank.baselines.processor import load_processor
from nearbank.baselines.roofline import roofline_row
from nearbank.errors import NearbankError
from nearbank.mapping import MappingOptions
from nearbank.mapping.reuse import best_reuse
from nearbank.models.zoo import find_shape
from nearbank.sim.engine import Player
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.variant import what_if
from nearbank.workload import Workload, shape_workload

MODEL, CONTEXT = "gpt3-xl", 128
COUNTS = (1, 2, 4, 8, 16, 32, 64)
PROCESSORS = ("t4", "a100", "h100")


@dataclass(frozen=True)
class Design:
    """A machine with its formats: of the block matrices and of the LM head."""

    name: str
    machine: Machine
    weights: str
    head: str


@dataclass(frozen=True)
class Point:
    """A decode step of `sequences`: nanoseconds per token, and how many vectors shared an open row."""

    sequences: int
    ns_per_token: float
    reuse: int


@dataclass(frozen=True)
class Crossing:
    """The first count of sequences at which a processor is as quick as a design; None: not up to the largest."""

    design: str
    processor: str
    weights: str
    sequences: int | None


def designs() -> tuple[Design, ...]:
    """PIM-GPT, the low-bit bank, and one with room for many vectors."""
    lowbit = load_machine("pim-gpt-lowbit")
    room = {"global_buffer.size": "64 KiB", "asic.sram": "1 MiB", "mac_unit.accumulators": 32}
    roomy = what_if(lowbit, "room for 32 vectors", room)
    return (
        Design("pim-gpt bf16", load_machine("pim-gpt"), "bf16", "bf16"),
        Design("lowbit int8", lowbit, "int8-tensor", "int8-tensor"),
        Design("lowbit ternary", lowbit, "ternary-tensor", "int8-tensor"),
        Design("lowbit ternary, 32 vectors", roomy, "ternary-tensor", "int8-tensor"),
    )


@cache
def _load(sequences: int, weights: str) -> Workload:
    """One decode step whose tokens attend `CONTEXT` positions."""
    shape = find_shape(MODEL)
    return shape_workload(shape, CONTEXT - 1, 2, weights, batch=sequences, played=slice(1, 2))


def pim_point(design: Design, sequences: int) -> Point:
    """The step played on a machine, with the reuse that is quickest; `NearbankError` where the caches do not fit."""
    load = _load(sequences, design.weights)
    options = MappingOptions(weights=design.weights, head=design.head, max_context=CONTEXT, batch=sequences)
    placed = best_reuse(load.model, design.machine, options, load.steps, sequences)
    player = Player(design.machine)
    for step in load.steps():
        player.play(placed.lower(step))
    return Point(sequences, player.result().time_ps / 1e3 / sequences, placed.options.choices.reuse)


def pim_line(design: Design, counts: Sequence[int] = COUNTS) -> list[Point]:
    """A point for every count of sequences whose caches fit the machine."""
    found = []
    for count in counts:
        try:
            found.append(pim_point(design, count))
        except NearbankError:
            break
    return found


def roofline_ns(processor: str, sequences: int, weights: str) -> float:
    """Modelled nanoseconds per token, the LM head in bf16 as in the trace."""
    return roofline_row(load_processor(processor), _load(sequences, weights)).ns_per_token


def crossing(design: Design, points: Sequence[Point], processor: str, weights: str) -> Crossing:
    """Where the processor, with its block matrices in `weights`, becomes as quick as the design."""

    def quicker(point: Point) -> bool:
        return roofline_ns(processor, point.sequences, weights) <= point.ns_per_token

    first = next((i for i, point in enumerate(points) if quicker(point)), None)
    if first is None:
        return Crossing(design.name, processor, weights, None)
    low = points[first - 1].sequences if first else 0
    exact = _first(low, points[first].sequences, lambda n: quicker(pim_point(design, n)))
    return Crossing(design.name, processor, weights, exact)


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first count for which it holds, between `low`, where it does not, and `high`, where it does."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high

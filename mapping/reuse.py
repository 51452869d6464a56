"""How many vectors should share an open row: more open fewer rows, but narrow the chunks of a single vector as well.

A narrower chunk gives more partial sums, which cost time in every decode step of one sequence. So what is quickest
depends on the run, and is found by simulating some of its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from nearbank.errors import NearbankError
from nearbank.mapping.plan import MappingOptions, Plan, plan
from nearbank.sim.engine import Player
from nearbank.sim.machine import Machine
from nearbank.trace import ModelDescription, Step

MOST = 256  # vectors at once that are tried


def best_reuse(
    model: ModelDescription,
    machine: Machine,
    options: MappingOptions,
    steps: Callable[[], Iterable[Step]],
    together: int,
) -> Plan:
    """A plan with the `reuse` that makes the run quickest, among 1, 2, 4 … and the most that fit.

    `together`: tokens of the prompt or sequences of the batch, whichever are more. What counts is the prompt's step and
    a decode step in the middle, as often as there are such; 1 is among the candidates, so the result is never slower
    than products one by one on those.
    """
    first = plan(model, machine, options)
    if together == 1:
        return first
    sampled = _sampled(list(steps()))
    plans = _fitting(model, machine, options, min(together, MOST))
    return min(plans, key=lambda placed: _time_ps(placed, sampled), default=first)


def _sampled(steps: Sequence[Step]) -> list[tuple[Step, int]]:
    """The first step, and one in the middle of the others for all of them."""
    rest = steps[1:]
    return [(steps[0], 1)] + ([(rest[len(rest) // 2], len(rest))] if rest else [])


def _fitting(model: ModelDescription, machine: Machine, options: MappingOptions, most: int) -> Iterator[Plan]:
    """Plans for 1, 2, 4, … vectors at once, then for the most that fit."""
    low, high = 0, 1
    while high <= most and (placed := _plan(model, machine, options, high)):
        yield placed
        low, high = high, 2 * high
    best, high = None, min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        placed = _plan(model, machine, options, middle)
        best, low, high = (placed, middle, high) if placed else (best, low, middle)
    if best:
        yield best


def _plan(model: ModelDescription, machine: Machine, options: MappingOptions, reuse: int) -> Plan | None:
    try:
        return plan(model, machine, replace(options, choices=replace(options.choices, reuse=reuse)))
    except NearbankError:
        return None


def _time_ps(placed: Plan, steps: Sequence[tuple[Step, int]]) -> int:
    return sum(count * _played_ps(placed, step) for step, count in steps)


def _played_ps(placed: Plan, step: Step) -> int:
    player = Player(placed.machine)
    player.play(placed.lower(step))
    return player.result().time_ps

"""Whether a run opens every row that holds data often enough to need no refresh commands."""

from __future__ import annotations

from collections.abc import Sequence

from nearbank.mapping.plan import Plan
from nearbank.sim.engine import Player
from nearbank.sim.retention import Uses
from nearbank.trace import Step


def uses_of(placed: Plan) -> Uses:
    """The rows of a placed model before its run: weights and their scales are there, K and V are not."""
    regions = [r for m in placed.placement.matrices for r in (m.region, m.scales) if r]
    return Uses(placed.machine, [r.rows_of(layer) for r in regions for layer in range(r.copies)])


def longest_closed_ps(placed: Plan, steps: Sequence[Step]) -> int:
    """How long a row that holds data stays closed at most, in picoseconds; every decoding step counts as the last one.

    Raises `NearbankError` where that is too long.
    """
    decoding = [step for step in steps if step.phase == "decode"]
    token_ps = _time_ps(placed, decoding[-1]) if decoding else 0
    uses = uses_of(placed)
    for step in steps:
        uses.play(placed.lower(step), token_ps if step.phase == "decode" else _time_ps(placed, step))
    uses.check()
    return uses.longest_ps


def _time_ps(placed: Plan, step: Step) -> int:
    player = Player(placed.machine)
    player.play(placed.lower(step))
    return player.result().time_ps

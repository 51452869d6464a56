"""What one decoded token must take at least, in closed form: to see why a simulated time is where it is.

Three bounds, each adding one thing to the one before: the MAC units working without a pause; rows opened and closed,
one change per full row; refresh. None knows of inputs sent, results read, padding, or the ASIC.
"""

from __future__ import annotations

from dataclasses import dataclass

from nearbank.formats import format_named
from nearbank.mapping.pim_gpt import Plan
from nearbank.mapping.target import Target
from nearbank.sim.machine import Machine
from nearbank.sim.standard import delay_cycles
from nearbank.trace.operation import HEAD
from nearbank.units import TIME


@dataclass(frozen=True, slots=True)
class Bounds:
    """Nanoseconds per decoded token. `ideal_ns`: MAC units always busy; `row_aware_ns`: with tRCD + tRP for every row
    and the share of time that refresh takes."""

    ideal_ns: float
    row_aware_ns: float

    def explain(self, measured_ns: float) -> str:
        """One line that puts a simulated time between the bounds."""
        return (
            f"{measured_ns / 1e3:.1f} us per token: {measured_ns / self.ideal_ns:.2f} x the ideal bound of "
            f"{self.ideal_ns / 1e3:.1f} us (MAC units never idle), {measured_ns / self.row_aware_ns:.2f} x the "
            f"row-aware bound of {self.row_aware_ns / 1e3:.1f} us (every row opened and closed, refresh)"
        )


def bounds(plan: Plan, machine: Machine, context: float, *, head: bool = True) -> Bounds:
    """Bounds for a token that attends `context` positions on average; `head` counts the LM head."""
    steps, columns = _work(plan, context, head)
    cycles = {name: machine.cycles(name) for name in machine.timing}
    step = delay_cycles("tCCDS|tCCD", cycles) * machine.tck_ps / 1e3
    change = delay_cycles("tRP + tRCDRDMAC|tRCDRD|tRCD", cycles) * machine.tck_ps / 1e3
    busy = steps * step
    rows = columns / plan.target.columns * change
    return Bounds(busy, (busy + rows) / (1 - _refresh_share(machine)))


def _work(plan: Plan, context: float, head: bool) -> tuple[float, float]:
    """(MAC steps, columns) of each bank for one token, spread evenly and without padding."""
    steps = columns = 0.0
    for matrix in plan.placement.matrices:
        if matrix.name == HEAD and not head:
            continue
        times = matrix.region.copies
        found = matrix.n * matrix.k * times / matrix.use.values
        columns += found
        steps += found * matrix.use.steps
    cache, model = plan.placement.cache, plan.model
    kv = 2 * model.layers * model.kv_heads * model.head_dim * context / cache.use.values
    # Grouped queries read a row once and multiply its columns once per query.
    columns += kv
    steps += kv * cache.use.steps * cache.queries
    banks = _banks(plan.target)
    return steps / banks, columns / banks


def _banks(target: Target) -> int:
    return target.banks * target.channels


def _refresh_share(machine: Machine) -> float:
    if machine.refresh.policy == "none":
        return 0.0
    times = {name: TIME.parse(machine.timing[name].value) for name in ("tRFC", "tREFI")}
    return times["tRFC"] / times["tREFI"]


def stored_bits(plan: Plan) -> float:
    """Average bits per weight as placed, scales included."""
    total = bits = 0
    for matrix in plan.placement.matrices:
        fmt = format_named(matrix.use.format)
        bits += 8 * fmt.bytes_for(matrix.n, matrix.k) * matrix.region.copies
        total += matrix.n * matrix.k * matrix.region.copies
    return bits / total

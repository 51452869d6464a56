"""What one decoded token must take at least, in closed form: to see why a simulated time is where it is.

Three bounds, each adding one thing to the one before: the MAC units working without a pause; rows opened and closed,
one change per full row; refresh. None knows of inputs sent, results read, padding, or the ASIC.
"""

from __future__ import annotations

from dataclasses import dataclass

from nearbank.mapping.matrix_placement import MatrixPlacement
from nearbank.mapping.plan import Plan
from nearbank.mapping.target import Target
from nearbank.sim.machine import Machine
from nearbank.sim.standard import delay_cycles
from nearbank.trace.operation import HEAD
from nearbank.units import TIME


@dataclass(frozen=True, slots=True)
class Bounds:
    """Nanoseconds per decoded token. `ideal_ns`: MAC units always busy; `row_aware_ns`: with tRCD + tRP for every row
    and the share of time that refresh takes; `placed_ns`: with what the placement of the weights makes sure: tRTP,
    rows not full, sums read within rows, vectors that take longer to send than a row to change, uneven channels."""

    ideal_ns: float
    row_aware_ns: float
    placed_ns: float

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
    kept = 1 - refresh_share(machine)
    cycle_ns = machine.tck_ps / 1e3
    placed = _placed_cycles(plan, head) * cycle_ns + _cache_ns(plan, context, step, change)
    return Bounds(busy, (busy + rows) / kept, max(placed, busy + rows) / kept)


def _placed_cycles(plan: Plan, head: bool) -> float:
    """Cycles that the busiest channel cannot spend less on the weights of a token, as they are placed."""
    return sum(
        m.region.copies * matrix_cycles(m, plan.target) for m in plan.placement.matrices if head or m.name != HEAD
    )


def matrix_cycles(matrix: MatrixPlacement, target: Target) -> float:
    """Cycles of one product at least: MAC steps, row changes, sums read within rows, what of a vector is not hidden.

    A vector is sent between two chunks' MAC commands, beside the change of rows at best. A row change of c cycles, from
    a row's last MAC to the next one's first, adds c - 1 to the MACs' own. Banks that scale read columns of scales.
    """
    outputs, idle, total = matrix.outputs_of(0, target), target.row_change - 1, 0.0
    for chunks in matrix.chunks:
        steps = chunks.steps(matrix.use)
        scales, later = (chunks.bank.columns, target.scaling) if chunks.bank else (0, 0)
        each = chunks.packing.cycles_per_output(steps, idle + scales, target.readout + later, target.accumulators)
        sent = target.vector_bursts(chunks.packing.columns * matrix.use.multiplied(steps), matrix.input_bits)
        total += chunks.count * (outputs * each + max(sent - idle, 0))
    return total


def _cache_ns(plan: Plan, context: float, step_ns: float, change_ns: float) -> float:
    """Scores and context products, spread evenly: as in the bounds that know of rows."""
    steps, columns = _cache_work(plan, context)
    banks = _banks(plan.target)
    return steps / banks * step_ns + columns / banks / plan.target.columns * change_ns


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
    cached = _cache_work(plan, context)
    banks = _banks(plan.target)
    return (steps + cached[0]) / banks, (columns + cached[1]) / banks


def _cache_work(plan: Plan, context: float) -> tuple[float, float]:
    """(MAC steps, columns) of all banks for scores and context products of one token."""
    cache, model = plan.placement.cache, plan.model
    columns = 2 * model.layers * model.kv_heads * model.head_dim * context / cache.use.values
    # Grouped queries read a row once and multiply its columns once per query.
    return columns * cache.use.steps * cache.queries, columns


def _banks(target: Target) -> int:
    return target.banks * target.channels


def refresh_share(machine: Machine) -> float:
    """The part of all time in which a machine refreshes."""
    if machine.refresh.policy in ("none", "by_use"):
        return 0.0
    times = {name: TIME.parse(machine.timing[name].value) for name in ("tRFC", "tREFI")}
    return times["tRFC"] / times["tREFI"]

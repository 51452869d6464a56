"""The least time of a token under any mapping of this kind, in closed form: what the automatic mapper cannot go below.

Of this kind: one token at a time; every result is a sum in a bank's accumulators, which is read before another sum
takes its place; a row holds outputs of one chunk of one matrix; K of a token lies in one bank and V of a dimension in
one, so that an element of V is a write of its own; products wait for the results that they need. In how many chunks of
which widths matrices are cut, how they lie in rows, how many channels share outputs or heads, and in which order
commands come is free.

- *columns*: MAC commands of all weights, K and V, of the channel with most;
- *rows*: each is opened, and closed after its last column: `tRTP + tRP + tRCD` between the MACs of two rows;
- *sums*: pieces of outputs in a row, beyond what accumulators hold until it closes, keep the units waiting (`tMACRD`);
- *vectors*: what of a product's first vector is sent after its first row could have been opened;
- *writes*: one command for every element of V and every column of K;
- *dependencies*: results on their way to the ASIC, its passes that need all of them, the vector's first burst back;
- *refresh*: its share of the time in which the banks work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from nearbank.formats import format_named
from nearbank.mapping import asic
from nearbank.mapping.bounds import refresh_share
from nearbank.mapping.cache_placement import team_sizes
from nearbank.mapping.matrix_placement import MatrixPlacement, splits
from nearbank.mapping.plan import Plan
from nearbank.mapping.target import Target
from nearbank.sim.machine import Machine
from nearbank.sim.standard import delay_cycles
from nearbank.trace.operation import HEAD
from nearbank.units import ceil_div

# Products of a layer that wait for the one before: qkv, scores, proj and fc1; fc2 is fed piece by piece.
WAITING_PRODUCTS = 4
NORMS = 2  # of them behind a norm


@dataclass(frozen=True, slots=True)
class Least:
    """Nanoseconds per decoded token, and what they are made of."""

    total_ns: float
    parts_ns: dict[str, float]

    def above(self, time_ns: float) -> float:
        """How far a time lies above it, in percent."""
        return 100 * (time_ns / self.total_ns - 1)

    def most_gain(self, time_ns: float) -> float:
        """What any mapping can gain at most over a time, in percent of it."""
        return 100 * (1 - self.total_ns / time_ns)

    def lines(self, found_ns: float, published_ns: float) -> list[str]:
        """In words: how far the time that was found is above it, and what could be gained over the published one."""
        parts = ", ".join(f"{name} {100 * ns / self.total_ns:.1f} %" for name, ns in self.parts_ns.items())
        return [
            f"{self.above(found_ns):.1f} % above the least of any mapping of this kind "
            f"({self.total_ns / 1e3:.1f} us: {parts})",
            f"over the published mapping none can gain more than {self.most_gain(published_ns):.1f} %",
        ]


@dataclass(frozen=True, slots=True)
class Count:
    """Cycles of the busiest channel: MAC commands, changes of rows, sums waited for, vectors that nothing hides."""

    columns: float = 0.0
    rows: float = 0.0
    sums: float = 0.0
    vectors: float = 0.0

    def __add__(self, other: Count) -> Count:
        pairs = ((getattr(self, name), getattr(other, name)) for name in Count.__slots__)
        return Count(*(a + b for a, b in pairs))

    def times(self, factor: float) -> Count:
        return Count(*(getattr(self, name) * factor for name in Count.__slots__))

    @property
    def cycles(self) -> float:
        return self.columns + self.rows + self.sums + self.vectors


def least(plan: Plan, machine: Machine, context: float) -> Least:
    """The least for a token that attends `context` positions on average."""
    layers, cycle_ns, share = plan.model.layers, machine.tck_ps / 1e3, refresh_share(machine)
    total = _attention(plan, context).times(layers)
    for matrix in plan.placement.matrices:
        total += matrix_least(matrix, plan.target).times(matrix.region.copies)
    cycles = {name: getattr(total, name) for name in Count.__slots__} | {"writes": layers * _writes(plan)}
    parts_ns = {name: count * cycle_ns for name, count in cycles.items()}
    parts_ns["refresh"] = sum(parts_ns.values()) * share / (1 - share)
    parts_ns["dependencies"] = _dependencies_ns(plan, machine)
    return Least(sum(parts_ns.values()), parts_ns)


def matrix_least(matrix: MatrixPlacement, target: Target) -> Count:
    """The least of one product, over the channels that may share an output and the widths of its chunks."""
    able = splits(format_named(matrix.use.format))
    numbers = [n for n in range(1, target.channels + 1) if target.channels % n == 0 and (able or n == 1)]
    return min((_shared(matrix, n, target) for n in numbers), key=lambda count: count.cycles)


def _shared(matrix: MatrixPlacement, split: int, target: Target) -> Count:
    columns = ceil(matrix.k / matrix.use.values / split)
    outputs = ceil_div(ceil_div(matrix.n, target.banks), target.channels // split)
    burst = matrix.use.values * matrix.input_bits / (8 * target.column_bytes)  # of the vector, for a column
    held = max(int(target.buffer_bytes / target.column_bytes / burst), 1)
    first = min(columns, held, target.columns) * burst
    return best_chunks(columns, held, matrix.use.steps, target).times(outputs) + Count(
        vectors=max(first - (target.row_change - 1), 0)
    )


@lru_cache(maxsize=4096)
def best_chunks(columns: int, held: int, steps: int, target: Target) -> Count:
    """One output of `columns` columns, cut in chunks of at most `held` in the quickest way."""
    best = [Count()]
    widths = [one_output(width, steps, target) for width in range(min(held, columns) + 1)]
    for total in range(1, columns + 1):
        ways = (best[total - width] + widths[width] for width in range(1, min(held, total) + 1))
        best.append(min(ways, key=lambda count: count.cycles))
    return best[columns]


def one_output(columns: int, steps: int, target: Target) -> Count:
    """One output of a chunk: its share of the rows that hold such outputs, whole ones or end to end."""
    if not columns:
        return Count()
    whole = [n * columns for n in range(1, target.columns // columns + 1)]
    ways = [_in_rows_of(filled, columns, target) for filled in (*whole, target.columns)]
    return min(ways, key=lambda count: count.cycles) + Count(columns=columns * steps)


def _in_rows_of(filled: int, columns: int, target: Target) -> Count:
    """Rows with so many columns in use: pieces of at least so many outputs, all but the last batch read within."""
    reads = ceil_div(ceil_div(filled, columns), target.accumulators) - 1
    return Count(rows=target.row_change - 1, sums=reads * target.readout).times(columns / filled)


def _attention(plan: Plan, context: float) -> Count:
    """Scores and context products of one layer, over the channels that may share a head."""
    cache, target = plan.placement.cache, plan.target
    positions = context / target.banks
    scored = one_output(min(cache.head_columns, target.columns), cache.use.steps_for(cache.head_dim), target)
    columns = max(int(context / cache.use.values), 1)
    dims = cache.head_dim / target.banks
    product = best_chunks(columns, max(target.buffer_bytes // target.column_bytes, 1), cache.use.steps, target)
    each = scored.times(positions) + product.times(dims)
    all_queries = each.times(cache.queries)  # of a KV head; they may share every open row
    return Count(all_queries.columns, each.rows, all_queries.sums).times(_busiest_heads(plan))


def _busiest_heads(plan: Plan) -> float:
    """KV heads of the channel with most, shared heads counted in part; the best of all teams."""
    target, heads = plan.target, plan.model.kv_heads
    sizes = team_sizes(plan.model, target, plan.placement.cache.method) or [1]
    return min(ceil_div(heads, target.channels // size) / size for size in sizes)


def _writes(plan: Plan) -> float:
    """Commands that write K and V of one token in the busiest channel."""
    cache = plan.placement.cache
    return (cache.head_dim + cache.head_columns) * _busiest_heads(plan)


def _dependencies_ns(plan: Plan, machine: Machine) -> float:
    """Between products that wait for each other: a result read, a trip through the ASIC, a burst sent back."""
    cycles = {name: machine.cycles(name) for name in machine.timing}
    there = delay_cycles("tMACRD|0", cycles) + delay_cycles("tCL + tBL", cycles)
    back = delay_cycles("tWRMAC|0", cycles)
    trip = plan.target.asic.time_ps(asic.add_work(1)) / 1e3
    norm = plan.target.asic.time_ps(asic.finish_norm_work(1)) / 1e3
    norms = NORMS * plan.model.layers + any(m.name == HEAD for m in plan.placement.matrices)
    edges = (WAITING_PRODUCTS - NORMS) * plan.model.layers
    path = (there + back) * machine.tck_ps / 1e3
    return norms * (path + norm) + edges * (path + trip)

"""The least time of a token under any mapping of this kind, in closed form: what the automatic mapper cannot go below.

Of this kind (docs/mapping.md has it in full): one token at a time, product after product; outputs dealt out over
banks, chunk after chunk, each after its vector; every sum read before another takes its place; K row-major and V
column-major in equal blocks, one write per element of V; products that wait for what they need. In how many chunks of
which widths matrices are cut, how outputs lie in rows, how many channels share outputs or heads, and in which order
other commands come is free.

- *columns*: MAC commands of all weights, K and V, of the channel with most;
- *rows*: each is opened, and closed after its last column: `tRTP + tRP + tRCD` between the MACs of two rows;
- *sums*: pieces of outputs in a row, beyond what accumulators hold until it closes, keep the units waiting (`tMACRD`);
- *vectors*: bursts that neither a change of rows nor room in the buffer hides;
- *writes*: one command for every element of V and every column of K;
- *dependencies*: results on their way to the ASIC, its passes that need all of them, the vector's first burst back;
- *refresh*: its share of all time; and where one falls among MAC commands, as often as not chance, the rows that it
  closes are opened again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from nearbank.formats import format_named
from nearbank.mapping import asic
from nearbank.mapping.asic import Work
from nearbank.mapping.bounds import refresh_share
from nearbank.mapping.least_attention import attention_least
from nearbank.mapping.least_rows import Count, Vectors, product_least
from nearbank.mapping.matmul import label_of
from nearbank.mapping.matrix_placement import MatrixPlacement, splits
from nearbank.mapping.plan import Plan
from nearbank.mapping.target import Target
from nearbank.sim.machine import Machine
from nearbank.sim.standard import delay_cycles
from nearbank.units import ceil_div

# The ASIC's work between the last result of the product before and the first value of a product's vector. fc2 waits
# for the last GELU only where its one chunk needs all of fc1's results.
_BEFORE = {"qkv": asic.finish_norm_work, "proj": asic.add_work, "fc1": asic.finish_norm_work}
_BEFORE["lm_head"] = asic.finish_norm_work
_BEFORE_ONE_CHUNK = {"fc2": asic.gelu_work}


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
class Waits:
    """Cycles that the machine's rules put between a product and the next."""

    there: int  # from the last MAC to its sum at the ASIC, and from a vector's burst to the MAC, less the two ends
    read_first: int  # beside the bursts of a vector, from a chunk's last MAC to the next one's first: sums, then vector
    read_last: int  # the same for the vector first
    tck_ps: int

    @classmethod
    def of(cls, machine: Machine) -> Waits:
        cycles = {name: machine.cycles(name) for name in machine.timing}
        to_sum, there, turned, back, turned_back = (
            delay_cycles(delay, cycles)
            for delay in ("tMACRD|0", "tCL + tBL", "tRTW|0", "tWRMAC|0", "tCWL + tBL + tWTRS|tWTR|0")
        )
        read_first = max(to_sum + turned + back - 2, 0)
        return cls(max(to_sum + there + back - 2, 0), read_first, min(turned_back, read_first), machine.tck_ps)

    def turn(self, ahead: bool) -> int:
        return self.read_last if ahead else self.read_first

    def cycles(self, target: Target, work: Work | None) -> float | None:
        return None if work is None else self.there + target.asic.time_ps(work) / self.tck_ps


def least(plan: Plan, machine: Machine, contexts: Sequence[int], *, ahead: bool = False) -> Least:
    """The least for tokens that attend so many positions, on average.

    `ahead`: of mappings, too, that send a chunk's vector before the sums of the one before are read.
    """
    layers, waits = plan.model.layers, Waits.of(machine)
    query = waits.cycles(plan.target, asic.add_work(1)) or 0.0
    total = attention_least(plan, contexts, waits.turn(ahead), query, ahead=ahead).times(layers)
    for matrix in plan.placement.matrices:
        total += matrix_least(matrix, plan.target, waits, ahead=ahead).times(matrix.region.copies)
    parts_ns = {name: getattr(total, name) * machine.tck_ps / 1e3 for name in Count.__slots__}
    parts_ns["refresh"] = _refresh_ns(plan.target, machine, parts_ns)
    return Least(sum(parts_ns.values()), parts_ns)


def _refresh_ns(target: Target, machine: Machine, parts_ns: dict[str, float]) -> float:
    """One refresh every tREFI; those among MAC commands, as many as these have of the time, change the row as well."""
    share, work_ns = refresh_share(machine), sum(parts_ns.values())
    if not share:
        return 0.0
    cycles = {name: machine.cycles(name) for name in ("tRFC", "tREFI")}
    again = (target.row_change - 1) * parts_ns["columns"] / work_ns * (1 - share)
    taken = (cycles["tRFC"] + again) / cycles["tREFI"]
    return work_ns * taken / (1 - taken)


def matrix_least(matrix: MatrixPlacement, target: Target, waits: Waits, *, ahead: bool = False) -> Count:
    """The least of one product, over the channels that may share an output and the widths of its chunks."""
    able = splits(format_named(matrix.use.format))
    numbers = [n for n in range(1, target.channels + 1) if target.channels % n == 0 and (able or n == 1)]
    label = label_of(matrix.name)
    before, alone = (work[label](1) if label in work else None for work in (_BEFORE, _BEFORE_ONE_CHUNK))
    burst = matrix.use.values * matrix.input_bits / (8 * target.column_bytes)  # of the vector, for a column
    held = max(int(target.buffer_bytes / target.column_bytes / burst), 1)
    vectors = Vectors(burst, held, waits.turn(ahead), waits.cycles(target, before), waits.cycles(target, alone), ahead)
    found = (_shared(matrix, n, vectors, target) for n in numbers)
    return min(found, key=lambda count: count.cycles)


@lru_cache(maxsize=1024)
def _shared(matrix: MatrixPlacement, split: int, vectors: Vectors, target: Target) -> Count:
    columns = ceil(matrix.k / matrix.use.values / split)
    outputs = ceil_div(ceil_div(matrix.n, target.banks), target.channels // split)
    return product_least(outputs, columns, matrix.use.steps, vectors, target)

"""The studies as tables: what `nearbank design` prints, as Markdown, and as plain objects for JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nearbank.design import crossover, dequantise, power


@dataclass(frozen=True)
class Table:
    """A heading, the names of the columns, and rows of text; `rows` are the same as plain values."""

    heading: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str]]
    rows: Sequence[Mapping[str, Any]]

    def markdown(self) -> str:
        head = ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        return "\n".join([self.heading, "", *head, *("| " + " | ".join(line) + " |" for line in self.lines)])


def crossover_tables() -> Iterator[Table]:
    """Time per token against sequences, and from which count on each processor is quicker."""
    lines = [(design, crossover.pim_line(design)) for design in crossover.designs()]
    counts = crossover.COUNTS
    cells = [[d.name, *(f"{p.ns_per_token / 1e3:.0f} ({p.reuse})" for p in points)] for d, points in lines]
    gpus = [(p, w) for p in crossover.PROCESSORS for w in ("bf16", "ternary-tensor")]
    times = {(p, w): [crossover.roofline_ns(p, n, w) for n in counts] for p, w in gpus}
    cells += [[f"{p} roofline, {w}", *(f"{ns / 1e3:.0f}" for ns in found)] for (p, w), found in times.items()]
    rows = [{"machine": d.name, **asdict(p)} for d, points in lines for p in points]
    rows += [
        {"machine": f"{p} roofline, {w}", "sequences": n, "ns_per_token": ns}
        for (p, w), found in times.items()
        for n, ns in zip(counts, found, strict=True)
    ]
    what = "µs per token of a decode step of n sequences (vectors that share an open row)"
    yield Table(f"{crossover.MODEL}, {crossover.CONTEXT} tokens of context: {what}", _named(counts), cells, rows)
    found = [
        crossover.crossing(design, points, processor, weights)
        for design, points in lines
        for processor in crossover.PROCESSORS
        for weights in dict.fromkeys(("bf16", design.weights))
    ]
    cells = [[c.design, f"{c.processor}, {c.weights}", str(c.sequences or f"not up to {counts[-1]}")] for c in found]
    heading = "The first count of sequences at which a processor's roofline is as quick"
    yield Table(heading, ("machine", "processor, weights", "sequences"), cells, [asdict(c) for c in found])


def _named(counts: Sequence[int]) -> list[str]:
    return ["machine", *(f"n = {n}" for n in counts)]


def power_tables() -> Iterator[Table]:
    """Power against tFAW, and against a budget."""
    columns = ("machine", "weights", "µs per token", "W per channel", "peak", "W per chip", "peak", "held back")
    yield _power("A decode step against tFAW", "tFAW", columns, list(power.tfaw_rows()))
    yield _power("A decode step against a budget per channel", "budget", columns, list(power.budget_rows()))


def _power(heading: str, what: str, columns: Sequence[str], rows: Sequence[power.PowerRow]) -> Table:
    heading = f"{heading}; {power.MODEL}, {power.CONTEXT} tokens of context, peaks over {power.WINDOW} clocks"
    chip = power.CHANNELS_PER_CHIP
    lines = [
        [
            r.machine, r.weights, r.budget or (f"{r.tfaw_ns} ns" if r.tfaw_ns else "none"), f"{r.us_per_token:.0f}",
            f"{r.average_w:.2f}", f"{r.peak_w:.2f}", f"{chip * r.average_w:.2f}", f"{chip * r.peak_w:.2f}",
            f"{100 * r.held:.0f} %",
        ]
        for r in rows
    ]  # fmt: skip
    return Table(heading, (*columns[:2], what, *columns[2:]), lines, [asdict(r) for r in rows])


def dequantise_tables() -> Iterator[Table]:
    """Scales per row and per group, applied by the ASIC or beside the banks, and one scale per tensor."""
    rows = list(dequantise.rows())
    columns = (
        "weights", "scales applied by", "bits each", "µs per token", "over one scale", "µJ per token",
        "results, kB", "scales, kB", "banks wait for",
    )  # fmt: skip
    lines = [
        [
            r.weights, r.dequant, f"{r.bits_per_weight:.2f}",
            f"{r.us_per_token:.0f}", f"{r.over_bound:.2f} ×", f"{r.uj_per_token:.0f}",
            f"{r.pin_bytes['results_out'] / 1e3:.0f}", f"{r.pin_bytes['values_out'] / 1e3:.0f}",
            ", ".join(f"{name} {100 * share:.0f} %" for name, share in r.waiting.items()),
        ]
        for r in rows
    ]  # fmt: skip
    heading = f"Dequantisation: a decode step on {dequantise.MACHINE}, LM head {dequantise.HEAD}"
    heading += f"; {dequantise.MODEL}, {dequantise.CONTEXT} tokens of context"
    yield Table(heading, columns, lines, [asdict(r) for r in rows])


STUDIES: Mapping[str, Callable[[], Iterator[Table]]] = {
    "crossover": crossover_tables,
    "power": power_tables,
    "dequantise": dequantise_tables,
}

"""Write docs/performance.md from the committed results: `python benchmarks/page.py`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure

from nearbank.plot.kernels import kernel_roofline

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"
PAGE = ROOT / "docs" / "performance.md"
ROOFLINE = ROOT / "docs" / "figures" / "kernel_roofline.svg"
Row = Mapping[str, Any]

INTRO = """# Performance

Made by `python benchmarks/page.py` from `benchmarks/results/`, which `make bench` writes. Times are the 5th percentile
of many calls from Python; a cold call rotates over more memory than the caches hold. The limit is the read bandwidth
measured in the same run. No GPU was at hand: there are no GPU columns yet, and `make bench-gpu` makes them.
"""


def page(result: Mapping[str, Any]) -> str:
    """The whole page."""
    rows: Sequence[Row] = result["rows"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = result["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['paths'])}; {versions}; {result['date']}."
    return "\n".join(
        [
            INTRO,
            where,
            "",
            f"![Matrix products under the roofline of one thread](figures/{ROOFLINE.name})",
            "",
            *_table("Matrix times vector, int8 activations, cold weights", _picked(rows, "gemv", 1)),
            *_table("Matrix product, 128 tokens", [r for r in _picked(rows, "gemm", 128) if r["m"] == 128]),
            *_table("Decode attention over n tokens, 8 KV heads of 128, cold cache", _picked(rows, "attend", 1)),
        ]
    )


def _picked(rows: Sequence[Row], kernel: str, m: int) -> list[Row]:
    return [row for row in rows if row["kernel"] == kernel and row["m"] == m]


def _table(title: str, rows: Iterable[Row]) -> list[str]:
    head = ["| backend | threads | n | k | format | µs | GB/s | share of the limit | Gop/s |", "|---|" + "---:|" * 8]
    return [f"## {title}", "", *head, *(_line(row) for row in rows), ""]


def _line(row: Row) -> str:
    products = 2 if row["kernel"] == "attend" else 1  # attention: queries times K, probabilities times V
    operations = products * 2 * row["m"] * row["n"] * row["k"] / row["time_us"] / 1000
    cells = [row["backend"], row["threads"], row["n"], row["k"], row["format"]]
    cells += [f"{row['time_us']:.1f}", f"{row['gb_per_s']:.2f}", f"{100 * row['fraction_of_limit']:.1f} %"]
    return "| " + " | ".join(str(cell) for cell in [*cells, f"{operations:.0f}"]) + " |"


def draw(result: Mapping[str, Any]) -> Figure:
    """Matrix products of the fastest path with one thread, under their roof."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    rows = [row for row in result["rows"] if row["threads"] == 1 and row["backend"] == "numba"]
    kernel_roofline(rows, figure.subplots()).set_title("Matrix products, one thread, int8 activations")
    return figure


if __name__ == "__main__":
    measured = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(page(measured), encoding="utf-8")
    rcParams["svg.hashsalt"] = "nearbank"  # equal results, equal bytes
    draw(measured).savefig(ROOFLINE, metadata={"Date": None})

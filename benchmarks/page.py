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
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
FIGURES = ROOT / "docs" / "figures"
Row = Mapping[str, Any]

INTRO = """# Performance

Made by `python benchmarks/page.py` from `benchmarks/results/`, which `make bench` writes. Times are the 5th percentile
of many calls from Python, in the fastest pass; a cold call rotates over more memory than the caches hold. The limit is
the fastest read of the same run. GPU results, below, are from `make bench-gpu` and `benchmarks/gpu_tilings.py`.
"""


def page(cpus: Mapping[str, Row], gpus: Iterable[Path]) -> str:
    """The whole page: a section for each CPU, by the name of its best path, then one for each GPU."""
    sections = [line for path, result in cpus.items() for line in cpu_section(path, result)]
    return "\n".join([INTRO, *sections, *(line for path in gpus for line in gpu_section(path))])


def cpu_section(path: str, result: Row) -> list[str]:
    """One CPU's results: who it is, its roofline and its tables."""
    rows: Sequence[Row] = result["rows"]
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    passes = result.get("passes", 1)
    return [
        f"## {machine['cpu']} with {path}",
        "",
        f"{machine['cores']} cores, paths {', '.join(machine['paths'])}; {versions}; {result['date']}; "
        f"{passes} pass{'es' * (passes > 1)}.",
        "",
        f"![Matrix products under the roofline of one thread](figures/{roofline_of(path).name})",
        "",
        *_table("Matrix times vector, int8 activations, cold weights", _picked(rows, "gemv", 1)),
        *_table("Matrix times vector, weights in the cache", _picked(rows, "gemv", 1, cold=False)),
        *_table("Matrix product, 128 tokens", _picked(rows, "gemm", 128, cold=False)),
        *_table(
            "Decode attention over n tokens, 8 KV heads of 128, k / 128 query heads, cold", _picked(rows, "attend", 1)
        ),
    ]


def roofline_of(path: str) -> Path:
    """Where the picture of a CPU's results is."""
    return FIGURES / f"kernel_roofline_{path}.svg"


def gpu_section(path: Path) -> list[str]:
    """One GPU's results: who it is, its table, and the cuts of the few-token product where they were compared."""
    result = json.loads(path.read_text(encoding="utf-8"))
    machine, versions = result["machine"], result["versions"]
    about = [f"driver {machine['driver']}"] if "driver" in machine else []
    about += [f"{name} {version}" for name, version in versions.items()] + [result["date"]]
    bandwidth = f"Fastest read of the run {result['read_gb_per_s']:.0f} GB/s. " if "read_gb_per_s" in result else ""
    head = [
        "| kernel | backend | m | n | k | format | µs | GB/s | share of the limit | goal, µs |",
        "|---|---|" + "---:|" * 8,
    ]
    return [
        f"## {machine['gpu']}",
        "",
        f"{'; '.join(about)}. {bandwidth}{' '.join(result.get('notes', []))}",
        "",
        *head,
        *(_gpu_line(row) for row in result["rows"]),
        "",
        *_tilings(result.get("tilings", [])),
    ]


def _gpu_line(row: Row) -> str:
    goal = "" if row.get("goal_us") is None else f"{row['goal_us']:g}"
    cells = [row["kernel"], row["backend"], row["m"], row["n"], row["k"], row["format"], f"{row['time_us']:.2f}"]
    cells += [f"{row['gb_per_s']:.0f}", f"{100 * row['fraction_of_limit']:.1f} %", goal]
    return "| " + " | ".join(map(str, cells)) + " |"


def _tilings(rows: Sequence[Row]) -> list[str]:
    """µs of every cut of the few-token product, the fastest in bold."""
    if not rows:
        return []
    names = list(max((row["time_us"] for row in rows), key=len))
    lines = ["Cuts of the ternary product (16-row tiles per block, loads ahead, blocks per multiprocessor), µs:", ""]
    lines += ["| n × k | m | starts | " + " | ".join(names) + " |", "|---|---:|---|" + "---:|" * len(names)]
    for row in rows:
        best = min(row["time_us"].values())
        times = [row["time_us"].get(name) for name in names]
        cells = ["" if time is None else f"**{time:g}**" if time == best else f"{time:g}" for time in times]
        start = "early" if row["early"] else "late"
        lines.append(f"| {row['n']} × {row['k']} | {row['m']} | {start} | {' | '.join(cells)} |")
    return [*lines, ""]


def _picked(rows: Sequence[Row], kernel: str, m: int, cold: bool = True) -> list[Row]:
    return [row for row in rows if (row["kernel"], row["m"], row["cold"]) == (kernel, m, cold)]


def _table(title: str, rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    head = ["| backend | threads | n | k | format | µs | GB/s | share of the limit | Gop/s |", "|---|" + "---:|" * 8]
    return [f"### {title}", "", *head, *(_line(row) for row in rows), ""]


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
    rows = [row for row in rows if row["cold"] or row["kernel"] == "gemm"]  # the roof is of memory
    kernel_roofline(rows, figure.subplots()).set_title("Matrix products, one thread, int8 activations")
    return figure


def main() -> None:
    """The command."""
    files = sorted(RESULTS.glob("cpu-*.json"))
    cpus = {file.stem.removeprefix("cpu-"): json.loads(file.read_text(encoding="utf-8")) for file in files}
    PAGE.write_text(page(cpus, sorted(RESULTS.glob("gpu-*.json"))), encoding="utf-8")
    rcParams["svg.hashsalt"] = "nearbank"  # equal results, equal bytes
    for path, result in cpus.items():
        draw(result).savefig(roofline_of(path), metadata={"Date": None})


if __name__ == "__main__":
    main()

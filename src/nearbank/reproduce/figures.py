"""Figures of a reproduction. Every function draws on the caller's figure; none shows or saves.

Colours are `nearbank.plot`'s: ours, roofline and eager keep theirs in every figure, and published ranges are bands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from nearbank.plot import PALETTE, colours_of
from nearbank.reproduce.published import CLAIMS
from nearbank.reproduce.reads import OTHER_READS
from nearbank.reproduce.results import Results, energy_ratios

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

OURS, EAGER, ROOFLINE, BAND = PALETTE[0], PALETTE[1], PALETTE[7], "#dddddd"


def figure(name: str, results: Results) -> Figure:
    """The named figure of `FIGURES`."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(9, 4.6), layout="constrained")
    FIGURES[name](results, fig)
    return fig


def latency(results: Results, fig: Figure) -> None:
    """Time per token of every model, beside the row-aware bound."""
    ax = fig.subplots()
    ours = {m: ns / 1e3 for m, ns in results.column("time_ns_per_token").items()}
    bound = {m: d["row_aware_bound_ns"] / 1e3 for m, d in results.details.items()}
    _bars(ax, {"simulated": ours, "bound: rows and refresh": bound}, (OURS, ROOFLINE))
    _finish(ax, "µs per token", f"Latency per token, {results.tokens} tokens")


def speedups(results: Results, fig: Figure) -> None:
    """Speedups over T4 and Xeon, eager and roofline, with the published ranges as bands."""
    for ax, (name, processor, column) in zip(
        fig.subplots(1, 2),
        (("T4", "t4", "speedup_gpu_eager"), ("Xeon Gold 6154", "xeon-6154", "speedup_cpu_eager")),
        strict=True,
    ):
        eager = results.column(column)
        bare = {m: d["baselines"][f"{processor} roofline"]["speedup"] for m, d in results.details.items()}
        _band(ax, column)
        _bars(ax, {"eager": eager, "roofline": bare}, (EAGER, ROOFLINE))
        ax.set_yscale("log")
        ax.set_ylim(bottom=1)
        _finish(ax, "times faster", f"Speedup over the {name}")


def energy(results: Results, fig: Figure) -> None:
    """Energy per token by component, and ratios over both processors."""
    left, right = fig.subplots(1, 2)
    parts = {
        m: {k: (v or 0) / 1e9 for k, v in d["energy_by_component_pj_per_token"].items()}
        for m, d in results.details.items()
    }
    _stacked(left, parts, "mJ per token", "Energy per token", legend_columns=3)
    ratios = {"T4": results.column("energy_ratio_gpu"), "Xeon": results.column("energy_ratio_cpu")}
    for name, baseline in (("T4", "t4 eager"), ("Xeon", "xeon-6154 eager")):
        bounded = energy_ratios(results, OTHER_READS[-1].name, baseline)
        ratios[f"{name}, with IDD4R"] = dict(zip(results.details, bounded, strict=True))
    _bars(right, ratios, (EAGER, PALETTE[2], "#f2c9a4", "#a9d8c6"))
    for column, colour in (("energy_ratio_gpu", EAGER), ("energy_ratio_cpu", PALETTE[2])):
        claim = next(c for c in CLAIMS if c.column == column)
        right.axhspan(claim.low, claim.high, color=colour, alpha=0.15)
    right.set_yscale("log")
    right.set_ylim(bottom=10)
    _finish(right, "times less energy", "Energy ratios (bands: published)", legend_columns=2)


def row_hits(results: Results, fig: Figure) -> None:
    """Row-hit rate of every model, with the ceiling of one miss per row of 64 columns."""
    ax = fig.subplots()
    _bars(ax, {"simulated": {m: 100 * r for m, r in results.column("row_hit_rate").items()}}, (OURS,))
    ax.axhline(100 * 63 / 64, color=ROOFLINE, linestyle="--", label="one miss per 64 columns")
    ax.axhline(98, color=EAGER, linestyle=":", label="published: about 98 % (unverified)")
    ax.set_ylim(95, 100)
    _finish(ax, "%", "Row-hit rate")


def bytes_moved(results: Results, fig: Figure) -> None:
    """Bytes over the memory's pins per token, with PIM and in a plain GDDR6 system."""
    ax = fig.subplots()
    pim = {m: d["bytes_off_chip_per_token"] / 1e6 for m, d in results.details.items()}
    plain = {m: d["bytes_plain_gddr6_per_token"] / 1e6 for m, d in results.details.items()}
    _bars(ax, {"PIM": pim, "plain GDDR6": plain}, (OURS, ROOFLINE))
    ax.set_yscale("log")
    _finish(ax, "MB per token", "Bytes over the pins")


def breakdown(results: Results, fig: Figure) -> None:
    """What a token's time is spent on."""
    parts = {
        m: {k: (v or 0) / 1e3 for k, v in d["time_by_part_ns_per_token"].items()} for m, d in results.details.items()
    }
    _stacked(fig.subplots(), parts, "µs per token", "Where the time goes")


def sensitivities(results: Results, fig: Figure) -> None:
    """Relative time along every axis, one line per model."""
    axes_names = list(dict.fromkeys((row["axis"], row["unit"]) for row in results.sensitivities))
    fig.set_size_inches(11, 6)
    models = sorted({row["model"] for row in results.sensitivities})
    colours = dict(zip(models, PALETTE, strict=False))
    places = fig.subplots(2, max(-(-len(axes_names) // 2), 1), squeeze=False).flat
    for ax, (axis, unit) in zip(places, axes_names, strict=False):
        for model in models:
            rows = [r for r in results.sensitivities if (r["axis"], r["model"]) == (axis, model) and r["relative_time"]]
            ax.plot([r["value"] for r in rows], [r["relative_time"] for r in rows], "o-", color=colours[model])
        values = sorted({row["value"] for row in results.sensitivities if row["axis"] == axis})
        ax.set_xscale("log")
        ax.set_xticks(values, [str(value) for value in values], rotation=40, fontsize=8)
        ax.minorticks_off()
        if axis == "channels":
            ax.set_yscale("log", base=2)
            ax.yaxis.set_major_formatter("{x:g}")
        else:
            ax.set_ylim(bottom=0)
        ax.set_xlabel(f"{axis} ({unit})" if unit else axis)
        ax.set_ylabel("relative time per token")
        ax.grid(alpha=0.3)
    for ax in places:  # the grid may have one place more than there are axes
        ax.set_visible(False)
    fig.legend([_line(colours[m]) for m in models], models, loc="outside lower center", ncols=len(models) or 1)


def _line(colour: str) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker="o")


def _band(ax: Axes, column: str) -> None:
    claim = next(c for c in CLAIMS if c.column == column)
    ax.axhspan(claim.low, claim.high, color=BAND, label="published range")


def _bars(ax: Axes, groups: Mapping[str, Mapping[str, float]], colours: Sequence[str]) -> None:
    width = 0.8 / len(groups)
    for i, (label, values) in enumerate(groups.items()):
        ax.bar([x + i * width for x in range(len(values))], list(values.values()), width, label=label, color=colours[i])
    models = list(next(iter(groups.values())))
    ax.set_xticks([x + 0.4 - width / 2 for x in range(len(models))], models, rotation=40, ha="right")


def _stacked(
    ax: Axes, parts: Mapping[str, Mapping[str, float]], unit: str, title: str, legend_columns: int = 4
) -> None:
    names = dict.fromkeys(name for row in parts.values() for name in row)
    colours = colours_of(names)
    bottom = [0.0] * len(parts)
    for name in names:
        heights = [row.get(name, 0.0) for row in parts.values()]
        ax.bar(range(len(parts)), heights, 0.7, bottom=bottom, label=name, color=colours[name])
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    ax.set_xticks(range(len(parts)), list(parts), rotation=40, ha="right")
    _finish(ax, unit, title, legend_columns)


def _finish(ax: Axes, unit: str, title: str, legend_columns: int = 4) -> None:
    ax.set_ylabel(unit)
    ax.set_title(title)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), fontsize=8, ncols=legend_columns, frameon=False)


FIGURES: Mapping[str, Callable[[Results, Figure], None]] = {
    "latency": latency,
    "speedups": speedups,
    "energy": energy,
    "row_hits": row_hits,
    "bytes_moved": bytes_moved,
    "breakdown": breakdown,
    "sensitivities": sensitivities,
}

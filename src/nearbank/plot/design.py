"""Figures of the design studies: time per token against sequences beside GPUs, power against what bounds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nearbank.plot.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]


def crossover(rows: Rows, ax: Axes) -> Axes:
    """Lines of machines, drawn, and of rooflines, dashed; rows have machine, sequences and ns_per_token."""
    machines = dict.fromkeys(str(row["machine"]) for row in rows)
    for i, name in enumerate(machines):
        points = [(row["sequences"], row["ns_per_token"] / 1e3) for row in rows if row["machine"] == name]
        modelled = "roofline" in name
        line, marker, width = ("--", "", 1.2) if modelled else ("-", "o", 2.0)
        colour = PALETTE[i % len(PALETTE)]
        x, y = zip(*points, strict=True)
        ax.plot(x, y, line, marker=marker, linewidth=width, color=colour, label=name)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("sequences in a decode step")
    ax.set_ylabel("µs per token")
    ticks = sorted({row["sequences"] for row in rows})
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.legend(fontsize=7, frameon=False, ncols=2)
    return ax


def power(rows: Rows, against: str, ax: Axes) -> Axes:
    """Average (drawn) and peak (dotted) watts of a channel, by machine; time per token beside each average."""
    labels = list(dict.fromkeys(_label(row[against]) for row in rows))
    for i, name in enumerate(dict.fromkeys(row["machine"] for row in rows)):
        mine = [row for row in rows if row["machine"] == name]
        places = [labels.index(_label(row[against])) for row in mine]
        average = [row["average_w"] for row in mine]
        ax.plot(places, average, "o-", color=PALETTE[i], label=f"{name}, {mine[0]['weights']}: average")
        ax.plot(places, [row["peak_w"] for row in mine], "s:", color=PALETTE[i], label="its peak")
        above = i == 0  # the lines fall: there is room above to the right, below to the left
        side, level, offset = ("left", "bottom", (2, 5)) if above else ("right", "top", (-2, -5))
        for place, row in zip(places, mine, strict=True):
            ax.annotate(
                f"{row['us_per_token']:.0f} µs", (place, row["average_w"]), xytext=offset, ha=side, va=level,
                textcoords="offset points", fontsize=7, color=PALETTE[i],
            )  # fmt: skip
    ax.set_xticks(range(len(labels)), labels)
    ax.set_xlabel({"tfaw_ns": "tFAW", "budget": "budget per channel"}[against])
    ax.set_ylabel("W per channel")
    ax.set_ylim(bottom=0)
    ax.margins(x=0.12)
    ax.legend(fontsize=7, frameon=False, loc="lower left")
    return ax


def _label(value: object) -> str:
    return "none" if value is None else f"{value} ns" if isinstance(value, int) else str(value)

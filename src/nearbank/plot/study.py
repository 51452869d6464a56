"""Figures of studies: one cost against another, one thing changed at a time, and two at once.

A series or a group has the colour of its place among all values of its axis, so it keeps it from figure to figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nearbank.plot.palette import PALETTE
from nearbank.report.row import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Mapping[str, tuple[float, float]]


def scatter(points: Points, ax: Axes, *, front: bool = False) -> Axes:
    """Labelled points (x, y); with `front`, those that no other beats in both (less is better) are joined."""
    for i, (label, (x, y)) in enumerate(points.items()):
        ax.scatter(x, y, s=45, color=PALETTE[i % len(PALETTE)], zorder=3)
        ax.annotate(label, (x, y), textcoords="offset points", xytext=(6, -12 if i % 2 else 6), fontsize=8)
    if front:
        best = sorted(points[label] for label in pareto(points))
        ax.step([x for x, _ in best], [y for _, y in best], where="post", color=PALETTE[7], linewidth=1, zorder=2)
    ax.margins(0.18)
    return ax


def pareto(points: Points) -> list[str]:
    """Labels of the points that no other point beats: none is as small in one and smaller in the other."""

    def beaten(label: str) -> bool:
        x, y = points[label]
        return any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())

    return [label for label in points if not beaten(label)]


def sweep(values: Mapping[str, float], ax: Axes, *, now: str | None = None, fmt: str = "%.0f") -> Axes:
    """One bar per value of what is changed; `now` names the value that the machine has."""
    colours = [PALETTE[0] if label == now else PALETTE[4] for label in values]
    bars = ax.bar(range(len(values)), list(values.values()), 0.7, color=colours)
    ax.bar_label(bars, fmt=fmt, fontsize=8)
    ax.set_xticks(range(len(values)), list(values), fontsize=8)
    ax.margins(y=0.12)
    return ax


Number = int | float
Series = Mapping[str, Sequence[tuple[Number | str, float]]]


def lines(series: Series, ax: Axes) -> Axes:
    """One line per series of (x, y); numbers that span a factor of 8 get a logarithmic axis, texts even room."""
    xs = list(dict.fromkeys(x for points in series.values() for x, _ in points))
    numbers = [x for x in xs if not isinstance(x, str)]
    place = {x: x if len(numbers) == len(xs) else i for i, x in enumerate(xs)}
    for i, (name, points) in enumerate(series.items()):
        places = [place[x] for x, _ in points]
        marker = "osD^vP*X"[i // len(PALETTE) % 8]  # more series than colours
        ax.plot(
            places, [y for _, y in points], marker=marker, markersize=4, color=PALETTE[i % len(PALETTE)], label=name
        )
    if len(numbers) == len(xs) and min(numbers) > 0 and max(numbers) >= 8 * min(numbers):
        ax.set_xscale("log", base=2)
    ax.set_xticks([place[x] for x in xs], [str(x) for x in xs], fontsize=8)
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    if len(series) > 1:
        ax.legend(fontsize=8, frameon=False)
    return ax


def heat_map(
    columns: Sequence[str], rows: Sequence[str], values: Mapping[tuple[str, str], float], ax: Axes, *, label: str
) -> Axes:
    """A cell for every (column, row), written out; crossed out where there is no value. `label` names the values."""
    import numpy as np

    grid = np.array([[values.get((x, y), np.nan) for x in columns] for y in rows])
    image = ax.imshow(grid, cmap="cividis_r", aspect="auto", origin="lower")
    middle = float(np.nanmin(grid) + np.nanmax(grid)) / 2
    for j, i in np.ndindex(*grid.shape):
        known = bool(np.isfinite(grid[j, i]))
        dark = known and grid[j, i] > middle
        text = number(float(grid[j, i])) if known else "×"
        ax.text(i, j, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    ax.set_xticks(range(len(columns)), list(columns), fontsize=8)
    ax.set_yticks(range(len(rows)), list(rows), fontsize=8)
    ax.figure.colorbar(image, ax=ax, label=label)
    return ax


def front(groups: Mapping[str, Sequence[tuple[float, float]]], best: Sequence[tuple[float, float]], ax: Axes) -> Axes:
    """All points by group, and a line through those that nothing beats in both (less is better)."""
    for i, (name, points) in enumerate(groups.items()):
        colour = PALETTE[i % len(PALETTE)]
        ax.scatter([x for x, _ in points], [y for _, y in points], s=22, color=colour, label=name, zorder=3)
    line = sorted(best)
    ax.step([x for x, _ in line], [y for _, y in line], where="post", color=PALETTE[7], linewidth=1, zorder=2)
    for axis, values in (
        ("x", [x for g in groups.values() for x, _ in g]),
        ("y", [y for g in groups.values() for _, y in g]),
    ):
        if values and min(values) > 0 and max(values) >= 8 * min(values):
            ax.set(**{f"{axis}scale": "log"})
    if len(groups) > 1:
        ax.legend(fontsize=8, frameon=False)
    ax.margins(0.08)
    return ax


def grouped(labels: Sequence[str], groups: Mapping[str, Sequence[float]], ax: Axes) -> Axes:
    """Bars side by side: one cluster per label, one colour per group."""
    width = 0.8 / len(groups)
    for i, (name, heights) in enumerate(groups.items()):
        places = [p + (i - (len(groups) - 1) / 2) * width for p in range(len(labels))]
        bars = ax.bar(places, heights, width, color=PALETTE[i], label=name)
        ax.bar_label(bars, fmt="%.0f", fontsize=7)
    ax.set_xticks(range(len(labels)), list(labels), fontsize=8)
    ax.legend(fontsize=8, frameon=False)
    ax.margins(y=0.12)
    return ax

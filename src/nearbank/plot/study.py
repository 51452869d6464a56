"""Figures of studies: one cost against another, and one thing changed at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nearbank.plot.palette import PALETTE

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

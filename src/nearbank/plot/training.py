"""Figures of training and of what precision costs: loss over steps, loss over bytes stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nearbank.plot.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Log = Sequence[Mapping[str, float]]
SMOOTHED = 20  # steps that a drawn training loss is the mean of


def loss_curves(logs: Mapping[str, Log], ax: Axes) -> Axes:
    """The loss that each phase of a training run minimises, smoothed, and the validation loss where it was measured.

    logs: rows with step, loss_nats and perhaps val_loss_nats, by the phase's name.
    """
    for (name, rows), colour in zip(logs.items(), PALETTE, strict=False):
        groups = [rows[i : i + SMOOTHED] for i in range(0, len(rows), SMOOTHED)]
        ends = [group[-1]["step"] for group in groups]
        means = [sum(row["loss_nats"] for row in group) / len(group) for group in groups]
        ax.plot(ends, means, color=colour, label=f"{name}, its own loss")
        checked = [row for row in rows if "val_loss_nats" in row]
        places = [row["step"] for row in checked]
        ax.plot(places, [row["val_loss_nats"] for row in checked], "o", color=colour, label=f"{name}, validation")
    ax.set_xlabel("step")
    ax.set_ylabel("nats per character")
    ax.legend(fontsize=8, frameon=False)
    return ax


def loss_by_bytes(points: Sequence[Mapping[str, Any]], x: str, ax: Axes) -> Axes:
    """The loss against the bytes stored, on a logarithmic axis, every point named, coloured by its kind.

    points: rows with name, kind, nats and the bytes under the key `x`.
    """
    kinds = dict.fromkeys(point["kind"] for point in points)
    for (kind, colour), marker in zip(zip(kinds, PALETTE, strict=False), "osD^v", strict=False):
        chosen = [point for point in points if point["kind"] == kind]
        ax.plot([p[x] for p in chosen], [p["nats"] for p in chosen], marker, color=colour, label=kind)
    for names, place in _labels(points, x):
        ax.annotate(f"  {', '.join(names)}", place, fontsize=8, va="center")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda count, _: f"{count / 1024:g} Ki" if count >= 1024 else f"{count:g}")
    ax.margins(x=0.35)
    ax.set_ylabel("nats per character")
    ax.legend(fontsize=8, frameon=False)
    return ax


def _labels(points: Sequence[Mapping[str, Any]], x: str) -> list[tuple[list[str], tuple[float, float]]]:
    """Names with their place; points so near each other that their names would overlap share one label."""
    heights = [point["nats"] for point in points]
    near = 0.03 * (max(heights) - min(heights))
    labels: list[tuple[list[str], tuple[float, float]]] = []
    for point in sorted(points, key=lambda point: (point[x], point["nats"])):
        shared = (names for names, at in labels if point[x] < 1.2 * at[0] and abs(point["nats"] - at[1]) < near)
        found = next(shared, None)
        if found is None:
            labels.append(([point["name"]], (point[x], point["nats"])))
        else:
            found.append(point["name"])
    return labels

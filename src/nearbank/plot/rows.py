"""Figures from report rows. Every function draws on the caller's axes and returns them; none shows or saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from nearbank.plot.palette import KIND_COLOURS, colours_of
from nearbank.report.row import MachineRow, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch


def time_per_token(rows: Sequence[MachineRow], ax: Axes) -> Axes:
    """Time per token of every machine, on a logarithmic axis, coloured by simulated, measured or modelled."""
    values = [row.ns_per_token / 1000 for row in rows]
    _labelled_bars(rows, values, ax, "µs per token")
    ax.set_title("Time per token")
    return ax


def energy_per_token(rows: Sequence[MachineRow], ax: Axes) -> Axes:
    """Energy per token of every machine whose energy is known, on a logarithmic axis."""
    known = [row for row in rows if row.pj_per_token is not None]
    _labelled_bars(known, [(row.pj_per_token or 0) / 1e6 for row in known], ax, "µJ per token")
    ax.set_title("Energy per token")
    return ax


def _labelled_bars(rows: Sequence[MachineRow], values: Sequence[float], ax: Axes, unit: str) -> None:
    places = range(len(rows))
    ax.barh(places, values, 0.6, color=[KIND_COLOURS[row.kind] for row in rows])
    ax.set_yticks(places, [row.label for row in rows])
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.set_xlabel(unit)
    for place, value in zip(places, values, strict=True):
        ax.annotate(f" {number(value)}", (value, place), va="center", fontsize=8)
    ax.margins(x=0.2)
    kinds = dict.fromkeys(row.kind for row in rows)
    handles = [_patch(KIND_COLOURS[kind]) for kind in kinds]
    ax.legend(
        handles, list(kinds), loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.2, ncols=3, frameon=False
    )


def _patch(colour: str) -> Patch:
    from matplotlib.patches import Patch

    return Patch(color=colour)


def time_breakdown(rows: Sequence[MachineRow], ax: Axes) -> Axes:
    """What a token's time is spent on, stacked, for the machines that can tell."""
    parts = {row.label: {k: v / row.tokens / 1000 for k, v in (row.time_by_part_ns or {}).items()} for row in rows}
    _stacked(parts, ax, "µs per token")
    ax.set_title("Where the time goes")
    return ax


def energy_breakdown(rows: Sequence[MachineRow], ax: Axes) -> Axes:
    """What a token's energy is spent on, stacked, for the simulated machines, whose energy has components."""
    parts = {
        row.label: {k: v / row.tokens / 1e6 for k, v in (row.energy_by_component_pj or {}).items() if v is not None}
        for row in rows
        if row.kind == "simulated"
    }
    _stacked(parts, ax, "µJ per token")
    ax.set_title("Where the energy goes")
    return ax


def _stacked(parts: Mapping[str, Mapping[str, float]], ax: Axes, unit: str) -> None:
    names = dict.fromkeys(name for row in parts.values() for name in row)
    colours = colours_of(names)
    labels = [label for label, row in parts.items() if row]
    left = [0.0] * len(labels)
    for name in names:
        widths = [parts[label].get(name, 0.0) for label in labels]
        ax.barh(range(len(labels)), widths, 0.6, left=left, color=colours[name], label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.set_xlabel(unit)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.2, ncols=4, fontsize=8, frameon=False)


def utilisation(rows: Sequence[MachineRow], ax: Axes) -> Axes:
    """Share of the run that each part of a simulated machine was busy."""
    known = [row for row in rows if row.utilisation]
    names = sorted({name for row in known for name in row.utilisation or {}})
    colours = colours_of(names)
    height = 0.8 / max(len(names), 1)
    for i, name in enumerate(names):
        places = [p + i * height for p in range(len(known))]
        ax.barh(places, [100 * (row.utilisation or {}).get(name, 0) for row in known], height, color=colours[name])
    ax.set_yticks([p + 0.4 - height / 2 for p in range(len(known))], [row.label for row in known])
    ax.invert_yaxis()
    ax.set_xlim(0, 100)
    ax.set_xlabel("% of the run")
    handles = [_patch(colours[name]) for name in names]
    ax.legend(
        handles,
        names,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=4.2,
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    ax.set_title("Machine utilisation")
    return ax


def token_times(rows: Sequence[MachineRow], ax: Axes) -> Axes:
    """Time of every step, prompt first, as the context grows, for simulated and measured machines."""
    rows = [row for row in rows if row.kind != "modelled"] or rows
    colours = colours_of(row.label for row in rows)
    series = {row.label: [t / 1000 for t in row.token_time_ns] for row in rows if row.token_time_ns}
    for label, times in series.items():
        ax.plot(range(len(times)), times, label=label, color=colours[label])
    every = [t for times in series.values() for t in times]
    if every and max(every) > 5 * min(every):
        ax.set_yscale("log")
    ax.set_xlabel("step (0 is the prompt)")
    ax.set_ylabel("µs")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.2, ncols=2, fontsize=8, frameon=False)
    ax.set_title("Time of each step")
    return ax


FIGURES = {
    "time_per_token": time_per_token,
    "energy_per_token": energy_per_token,
    "time_breakdown": time_breakdown,
    "energy_breakdown": energy_breakdown,
    "utilisation": utilisation,
    "token_times": token_times,
}


def figure(name: str, rows: Sequence[MachineRow]) -> Figure:
    """The named figure of `FIGURES`, in a size that suits a page."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(9, 2 + 0.34 * max(len(rows), 3)), layout="constrained")
    FIGURES[name](rows, fig.subplots())
    return fig


def drawn(drawing: Callable[[Axes], Axes]) -> Figure:
    """A figure of what `drawing` draws, as large as those of `FIGURES`."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(9, 4), layout="constrained")
    drawing(fig.subplots())
    return fig

"""The roofline of a processor's kernels, from rows as `nearbank bench` makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nearbank.plot.palette import colours_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
_MARKERS = {"gemv": "o", "gemm": "s"}


def kernel_roofline(rows: Sequence[Row], ax: Axes) -> Axes:
    """Matrix products: Gop/s (two per multiply-accumulate) against operations per byte of packed weights.

    The slope is the read bandwidth measured in the same run, the flat part the fastest product of these rows: a
    measured ceiling, not the processor's peak.
    """
    products = [row for row in rows if row["kernel"] in _MARKERS]
    colours = colours_of(row["format"] for row in products)
    for row in products:
        ax.scatter(*_place(row), color=colours[row["format"]], marker=_MARKERS[row["kernel"]], s=28, zorder=3)
    _roof(products, ax)
    for name, colour in colours.items():
        ax.scatter([], [], color=colour, label=name)
    for kernel, marker in _MARKERS.items():
        ax.scatter([], [], color="#555555", marker=marker, label=kernel.upper())
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(_beyond_halves)
    ax.set_xlabel("operations per byte of weights")
    ax.set_ylabel("Gop/s")
    ax.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)
    return ax


def _beyond_halves(value: float, _: object) -> str:
    """A label for 2 and 5 times a power of ten; all nine would run into each other."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _place(row: Row) -> tuple[float, float]:
    operations = 2 * row["m"] * row["n"] * row["k"]
    nbytes = row["gb_per_s"] * row["time_us"] * 1e3
    return operations / nbytes, operations / row["time_us"] / 1e3


def _roof(rows: Sequence[Row], ax: Axes) -> None:
    places = [_place(row) for row in rows]
    slope, ceiling = max(row["limit_gb_per_s"] for row in rows), max(speed for _, speed in places)
    left, right = min(x for x, _ in places) / 1.5, max(x for x, _ in places) * 1.5
    corner = ceiling / slope
    ax.plot([left, corner, right], [left * slope, ceiling, ceiling], color="#555555", linewidth=1, zorder=2)
    middle = (left * corner) ** 0.5
    ax.annotate(
        f"read {slope:.0f} GB/s", (middle, middle * slope), fontsize=8, ha="right", xytext=(-4, 0),
        textcoords="offset points",
    )  # fmt: skip
    ax.annotate("fastest measured", (right, ceiling), fontsize=8, ha="right", xytext=(0, 4), textcoords="offset points")

"""A picture of a mapping: which tensor lies in which channel, bank and rows.

The left panel has the whole memory: channels and banks across, rows down. The right one zooms into the first layer, and
shows how much of its rows each tensor fills: what a channel has no outputs for, and what rows leave empty, stays pale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nearbank.mapping.matmul import label_of
from nearbank.plot.palette import PALETTE, colours_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nearbank.mapping import Plan
    from nearbank.mapping.region import Region

FREE = "#F2F2F2"
# K and V are not parts of a token's time, so they have colours that no matrix has.
_CACHE = {"K": PALETTE[8], "V": PALETTE[9], "K and V scales": PALETTE[12]}
_SCALES = "scales"


def kind_of(tensor: str) -> str:
    """What a tensor is called in the pictures: "qkv", "fc1", "K", … or "scales" for scales of weights."""
    if tensor in _CACHE:
        return tensor
    return _SCALES if tensor.endswith(f" {_SCALES}") else label_of(tensor)


def tensor_colours(plan: Plan) -> dict[str, str]:
    """The colour of every kind of tensor of a plan, by row; the same in every picture."""
    kinds = dict.fromkeys(kind_of(region.tensor) for region in plan.placement.regions)
    known = colours_of(kind for kind in kinds if kind not in _CACHE)
    return {kind: _CACHE.get(kind) or known[kind] for kind in kinds}


def memory_map(plan: Plan, ax: Axes) -> Axes:
    """Rows of every bank by tensor, all layers."""
    target, colours = plan.target, tensor_colours(plan)
    for region in plan.placement.regions:
        for layer in range(region.copies):
            _fill(ax, 0, _banks(plan), region, layer, colours)
    _channel_axis(plan, ax)
    ax.set_ylim(target.rows, 0)
    used = 100 * plan.placement.rows / target.rows
    ax.set_title(f"All {target.rows:,} rows, {used:.0f} % taken")
    if plan.placement.rows < 0.9 * target.rows:
        middle = (plan.placement.rows + target.rows) / 2
        ax.text(_banks(plan) / 2, middle, "free", ha="center", va="center", color="#777777")
    return ax


def layer_map(plan: Plan, ax: Axes) -> Axes:
    """The rows of the first layer, every channel as full as it is."""
    colours = tensor_colours(plan)
    regions = [region for region in plan.placement.regions if region.copies > 1 or region.stride]
    regions = regions or list(plan.placement.regions)
    for region in regions:
        _fill(ax, 0, _banks(plan), region, 0, colours, pale=True)
        for channel in range(plan.target.channels):
            _fill_channel(ax, plan, region, channel, colours)
    _channel_axis(plan, ax)
    first, last = regions[0].first_row, max(r.first_row + r.rows for r in regions)
    ax.set_ylim(last, first)
    _name_regions(plan, ax, regions, last - first)
    ax.set_title(f"One layer: {last - first:,} rows of every bank")
    return ax


def _banks(plan: Plan) -> int:
    return plan.target.channels * plan.target.banks


def _fill(
    ax: Axes, left: float, right: float, region: Region, layer: int, colours: dict[str, str], pale: bool = False
) -> None:
    """One region of one layer as a rectangle over banks `left` to `right`."""
    rows = region.rows_of(layer)
    colour = colours[kind_of(region.tensor)]
    ax.fill_between([left, right], rows.start, rows.stop, color=colour, alpha=0.3 if pale else 1, linewidth=0)


def _fill_channel(ax: Axes, plan: Plan, region: Region, channel: int, colours: dict[str, str]) -> None:
    """The rows of a region that hold something in a channel, from the region's first on."""
    banks, share = plan.target.banks, _share(plan, region, channel)
    top, colour = region.first_row, colours[kind_of(region.tensor)]
    ax.fill_between([channel * banks, (channel + 1) * banks], top, top + share * region.rows, color=colour, linewidth=0)


def _share(plan: Plan, region: Region, channel: int) -> float:
    """The part of a region's rows that a channel fills."""
    cache, target = plan.placement.cache, plan.target
    if region.tensor in _CACHE:
        return cache.slots_of(channel, target.channels) / cache.slots
    matrix = plan.placement.matrix(region.tensor.removesuffix(f" {_SCALES}"))
    return matrix.outputs_of(channel, target) / matrix.outputs_of(0, target)


def _channel_axis(plan: Plan, ax: Axes) -> None:
    target = plan.target
    ax.set_xlim(0, _banks(plan))
    ax.set_facecolor(FREE)
    centres = [(channel + 0.5) * target.banks for channel in range(target.channels)]
    every = max(target.channels // 16, 1)
    ax.set_xticks(centres[::every], [str(channel) for channel in range(0, target.channels, every)])
    ax.tick_params(axis="x", length=0)
    for channel in range(1, target.channels):
        ax.axvline(channel * target.banks, color="white", linewidth=0.8)
    ax.set_xlabel(f"channel ({target.banks} banks each)")
    ax.set_ylabel("row of a bank")


def _name_regions(plan: Plan, ax: Axes, regions: list[Region], rows: int) -> None:
    """Each region's name and rows beside it, where it is tall enough to read."""
    for region in regions:
        if region.rows > 0.02 * rows:
            middle = region.first_row + region.rows / 2
            text = f"{kind_of(region.tensor)}: {region.rows:,} rows"
            ax.annotate(text, (1.01, middle), xycoords=("axes fraction", "data"), va="center", fontsize=9)


def mapping_figure(plan: Plan) -> Figure:
    """Both panels and a legend, in a size that suits a page."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(11, 6.2), layout="constrained")
    whole, layer = figure.subplots(1, 2)
    memory_map(plan, whole)
    layer_map(plan, layer)
    handles = [Patch(color=colour, label=kind) for kind, colour in tensor_colours(plan).items()]
    handles.append(Patch(facecolor=FREE, edgecolor="#BBBBBB", label="free"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    formats = f"{plan.placement.matrices[0].use.format} weights, {plan.placement.cache.format} K and V"
    figure.suptitle(f"{plan.model.name} on {plan.target.name}: {formats}")
    return figure

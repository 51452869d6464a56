"""Figures of simulated runs: where cycles went, what was busy when, power, energy by place, and the roofline.

Those over time need a run with a profile (`simulate(machine, programs, bins=512)`); its bins are exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nearbank.errors import NearbankError
from nearbank.plot.palette import PALETTE, colours_of
from nearbank.sim.energy_places import Places
from nearbank.sim.machine import Machine
from nearbank.sim.power import Window, average_nw, peak_nw
from nearbank.sim.result import ChannelResult, Profile, SimResult
from nearbank.sim.utilisation import Placed, Roof, utilisation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ISSUED, OTHERS = "command issued", "other reasons"
_SHOWN = 9
_BELOW: Mapping[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "frameon": False, "fontsize": 8}


def stall_reasons(runs: Mapping[str, SimResult], ax: Axes) -> Axes:
    """Every cycle of the command buses, by run: a command, or the rule, refresh or unit that held the next one."""
    shares = {label: _cycle_shares(run.channels) for label, run in runs.items()}
    names = _largest(shares.values())
    left = [0.0] * len(shares)
    for name in names:
        widths = [100 * _share(share, name, names) for share in shares.values()]
        ax.barh(range(len(shares)), widths, 0.6, left=left, color=_colours(names)[name], label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    ax.set_yticks(range(len(shares)), list(shares))
    ax.invert_yaxis()
    ax.set_xlim(0, 100)
    ax.set_xlabel("% of cycles")
    ax.set_title("What held the command bus")
    ax.legend(ncols=4, **_BELOW)
    return ax


def stalls_over_time(run: SimResult, ax: Axes) -> Axes:
    """The same as time goes on."""
    edges = _edges_us(run)
    shares = [_cycle_shares(parts) for parts in _profile(run).bins]
    names = _largest(shares)
    heights = [[100 * _share(share, name, names) for share in shares] for name in names]
    below = [0.0] * len(shares)
    for name, own in zip(names, heights, strict=True):
        top = [a + b for a, b in zip(below, own, strict=True)]
        ax.stairs(top, edges, baseline=below, fill=True, color=_colours(names)[name], label=name)
        below = top
    ax.set_ylim(0, 100)
    ax.set_ylabel("% of cycles")
    ax.set_title("What held the command bus, over time")
    ax.legend(ncols=4, **_BELOW)
    return _time_axis(edges, ax)


def utilisation_over_time(run: SimResult, machine: Machine, ax: Axes) -> Axes:
    """How busy command bus, pins, banks and MAC units were in every bin."""
    edges = _edges_us(run)
    bins = [utilisation(parts, machine) for parts in _profile(run).bins]
    for name, colour in zip(bins[0], PALETTE, strict=False):
        ax.stairs([100 * own[name].share for own in bins], edges, color=colour, label=name, linewidth=1.2)
    ax.set_ylim(0, 100)
    ax.set_ylabel("% busy")
    ax.set_title("Utilisation over time")
    ax.legend(ncols=4, **_BELOW)
    return _time_axis(edges, ax)


def power_over_time(windows: Sequence[Window], ax: Axes) -> Axes:
    """Power of the memory in every window, with its average and its peak."""
    starts = [windows[0].first, *(w.first + w.cycles for w in windows)]
    edges = _scaled_us(starts, windows[0].time_ps / windows[0].cycles)
    ax.stairs([float(w.power_nw) / 1e9 for w in windows], edges, fill=True, color=PALETTE[4])
    for what, value, colour in (("average", average_nw, PALETTE[0]), ("peak", peak_nw, PALETTE[5])):
        watts = float(value(tuple(windows))) / 1e9
        ax.axhline(watts, color=colour, linewidth=1.2, label=f"{what} {watts:.3g} W")
    ax.set_ylim(0, None)
    ax.set_ylabel("W, memory alone")
    ax.set_title("Power over time")
    ax.legend(ncols=2, **_BELOW)
    return _time_axis(edges, ax)


def energy_by_place(places: Places, ax: Axes) -> Axes:
    """Energy of every channel, split into its bank groups and what the channel has once; then the units."""
    channels = list(places.by_channel())
    groups = [None, *sorted({p.group for p in places.places if p.group is not None})]
    below = [0.0] * len(channels)
    for group in groups:
        heights = [places.by_group(channel).get(group, 0) / 1e9 for channel in channels]
        label = "once a channel" if group is None else f"bank group {group}"
        colour = PALETTE[7] if group is None else PALETTE[group % 7]
        ax.bar(range(len(channels)), heights, 0.7, bottom=below, color=colour, label=label)
        below = [a + b for a, b in zip(below, heights, strict=True)]
    ax.set_xticks(range(len(channels)), ["units" if c is None else str(c) for c in channels])
    ax.set_xlabel("channel")
    ax.set_ylabel("µJ")
    ax.set_title("Energy by channel and bank group")
    ax.legend(ncols=5, **_BELOW)
    return ax


def roofline(runs: Mapping[str, tuple[Placed, Roof]], ax: Axes) -> Axes:
    """Runs under their machines' limits: multiply-accumulates a second against those for each byte over the pins."""
    colours = colours_of(runs)
    points = {label: (own.macs_per_byte, own.macs_per_s) for label, (own, _) in runs.items()}
    known = [x for x, _ in points.values() if x]
    ridges = [roof.macs_per_s / roof.bytes_per_s for _, roof in runs.values()]
    first, last = min([*known, *ridges]) / 4, max([*known, *ridges]) * 4
    for label, (_, roof) in runs.items():
        ridge = roof.macs_per_s / roof.bytes_per_s
        xs = [first, ridge, last]
        ax.plot(xs, [min(x * roof.bytes_per_s, roof.macs_per_s) / 1e9 for x in xs], color=colours[label], linewidth=1)
        x, y = points[label]
        if x:
            reached = 100 * y / min(x * roof.bytes_per_s, roof.macs_per_s)
            ax.plot([x], [y / 1e9], "o", color=colours[label], label=f"{label}: {reached:.1f} % of its roof")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("multiply-accumulates for each byte over the pins")
    ax.set_ylabel("10⁹ multiply-accumulates a second")
    ax.set_title("Roofline")
    ax.legend(ncols=1, **_BELOW)
    return ax


def _profile(run: SimResult) -> Profile:
    if run.profile is None:
        raise NearbankError("the run has no profile; play it with bins, such as simulate(machine, programs, bins=512)")
    return run.profile


def _edges_us(run: SimResult) -> list[float]:
    return _scaled_us(_profile(run).edges, run.tck_ps)


def _scaled_us(cycles: Sequence[int], tck_ps: float) -> list[float]:
    return [cycle * tck_ps / 1e6 for cycle in cycles]


def _time_axis(edges: Sequence[float], ax: Axes) -> Axes:
    ax.set_xlim(edges[0], edges[-1])
    ax.set_xlabel("time, µs")
    return ax


def _cycle_shares(parts: Sequence[ChannelResult]) -> dict[str, float]:
    """Shares of all cycles, adding up to one."""
    cycles: Counter[str] = Counter()
    for part in parts:
        cycles[ISSUED] += part.issued * len(part.channels)
        for reason, n in part.stalls.items():
            cycles[reason] += n * len(part.channels)
    total = sum(cycles.values())
    return {name: n / total for name, n in cycles.items()}


def _largest(shares: Iterable[Mapping[str, float]]) -> list[str]:
    """Issued commands first, then the largest reasons over all, then the rest as one."""
    total: Counter[str] = Counter()
    for share in shares:
        total.update(share)
    total.pop(ISSUED, None)
    return [ISSUED, *(name for name, _ in total.most_common(_SHOWN)), *([OTHERS] if len(total) > _SHOWN else [])]


def _share(share: Mapping[str, float], name: str, shown: Sequence[str]) -> float:
    if name == OTHERS:
        return sum(value for reason, value in share.items() if reason not in shown)
    return share.get(name, 0.0)


def _colours(names: Sequence[str]) -> dict[str, str]:
    """Green for a command, grey for the rest, the palette for reasons in between, by their set alone."""
    fixed = {ISSUED: PALETTE[2], OTHERS: PALETTE[14]}
    free = [colour for colour in PALETTE if colour not in fixed.values()]
    return fixed | dict(zip(sorted(name for name in names if name not in fixed), free, strict=False))

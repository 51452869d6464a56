"""Figures of what decode steps are made of; they draw the shares that `nearbank.anatomy` counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nearbank.anatomy import KINDS, Share
from nearbank.plot.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = dict(zip(KINDS, PALETTE, strict=False))


def bytes_by_context(shares: Sequence[Share], ax: Axes) -> Axes:
    """Bytes a decoded token reads and writes, stacked by kind, against the context. The prompt's step is left out."""
    decoded = [share for share in shares if share.step > 0]
    contexts = [share.context for share in decoded if share.kind == KINDS[0]]
    heights = [[_megabytes(s) for s in decoded if s.kind == kind] for kind in KINDS]
    ax.stackplot(contexts, heights, labels=KINDS, colors=[_COLOURS[kind] for kind in KINDS], linewidth=0)
    ax.set_xlim(contexts[0], contexts[-1])
    ax.set_xlabel("context (positions attended)")
    ax.set_ylabel("MB moved per token")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.2, ncols=4, fontsize=8, frameon=False)
    return ax


def reuse(shares: Sequence[Share], ax: Axes) -> Axes:
    """Multiply-accumulates per byte of weights and cache: the prompt's step beside the last decoded one."""
    places = range(len(KINDS) - 1)
    for shift, step, colour in ((-0.2, 0, PALETTE[3]), (0.2, shares[-1].step, PALETTE[4])):
        heights = [share.macs_per_byte or 0 for share in shares if share.step == step][: len(places)]
        bars = ax.bar([p + shift for p in places], heights, 0.4, color=colour, label="decoding" if step else "prompt")
        ax.bar_label(bars, fmt="%.3g", fontsize=8)
    ax.set_xticks(places, KINDS[:-1])
    ax.set_yscale("log")
    ax.set_ylabel("MACs per byte of weights or K and V")
    ax.legend(loc="upper right", fontsize=8, frameon=False)
    return ax


def bytes_by_format(shares: Mapping[str, Sequence[Share]], ax: Axes) -> Axes:
    """Bytes of one step as stacked bars, one bar per label, such as one per choice of formats."""
    left = [0.0] * len(shares)
    for kind in KINDS:
        widths = [sum(_megabytes(s) for s in row if s.kind == kind) for row in shares.values()]
        ax.barh(range(len(shares)), widths, 0.6, left=left, color=_COLOURS[kind], label=kind)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    ax.set_yticks(range(len(shares)), list(shares))
    ax.invert_yaxis()
    ax.set_xlabel("MB moved per token")
    ax.legend(loc="lower right", fontsize=8, frameon=False)
    return ax


def _megabytes(share: Share) -> float:
    return (share.model_bytes + share.activation_bytes) / 1e6

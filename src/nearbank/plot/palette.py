"""Colours of every figure: those of Okabe and Ito, safe for colour-blind readers.

A part of the work, a component of the energy or a machine keeps its colour in every figure.
"""

from __future__ import annotations

from collections.abc import Iterable

# Okabe-Ito, then Paul Tol's "muted" for what is left.
PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#555555",
    "#332288", "#AA4499", "#999933", "#882255", "#44AA99", "#DDCC77", "#999999", "#CC6677",
)  # fmt: skip
# Parts of a token's time and energy, and of a machine, always in the same colour.
_TIME_PARTS = (
    "qkv", "context", "fc1", "append", "proj", "fc2", "norm", "lm_head",
    "score", "softmax", "residual", "embed", "scales", "sample", "quantise", "activation",
)  # fmt: skip
_ENERGY_PARTS = (
    "mac_read", "activate", "mac", "write", "io", "background_active", "background_precharged", "refresh",
    "read", "global_buffer", "asic_idle", "links", "asic_busy", "host", "board",
)  # fmt: skip
_MACHINE_PARTS = ("MAC units", "command bus", "pins", "ASIC")
_PART_COLOURS = {
    name: colour
    for parts in (_TIME_PARTS, _ENERGY_PARTS, _MACHINE_PARTS)
    for name, colour in zip(parts, PALETTE, strict=False)
}
KIND_COLOURS = {"simulated": "#0072B2", "measured": "#009E73", "modelled": "#999999"}


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A stable colour for every name: known parts have their own, other names depend on their set alone."""
    wanted = sorted(set(names))
    others = [name for name in wanted if name not in _PART_COLOURS]
    free = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(others)}
    return {name: _PART_COLOURS.get(name) or free[name] for name in wanted}

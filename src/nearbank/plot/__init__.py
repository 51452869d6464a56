"""Figures. Every function draws on the caller's axes and returns them; none shows or saves, none keeps state.

`plot.rows` draws report rows; each other kind of figure has its own module beside it. Colours are `plot.palette`'s.
"""

from nearbank.plot.palette import KIND_COLOURS, PALETTE, colours_of
from nearbank.plot.rows import (
    FIGURES,
    drawn,
    energy_breakdown,
    energy_per_token,
    figure,
    time_breakdown,
    time_per_token,
    token_times,
    utilisation,
)

__all__ = [
    "FIGURES",
    "KIND_COLOURS",
    "PALETTE",
    "colours_of",
    "drawn",
    "energy_breakdown",
    "energy_per_token",
    "figure",
    "time_breakdown",
    "time_per_token",
    "token_times",
    "utilisation",
]

"""A tensor's rows: the same range in every bank of every channel."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Region:
    """Rows [first_row, first_row + rows) of every bank, and again `stride` rows later for each further layer.

    `data_bytes` are the bytes of the tensor itself in one layer, without what rows leave empty.
    """

    tensor: str
    first_row: int
    rows: int
    stride: int
    copies: int
    data_bytes: int

    def rows_of(self, layer: int) -> range:
        """The rows of one layer (0 outside the layers)."""
        first = self.first_row + layer * self.stride
        return range(first, first + self.rows)

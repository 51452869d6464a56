"""Scales that a bank applies itself: which matrices have them, and where they lie in the rows.

A group is so many columns of an output. Rows hold columns of weights and, behind them, columns of scales: those of all
groups that end in the row, in the order in which they end. A group that is cut by the end of a row waits in its
accumulator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Format, from_bf16, to_bf16
from nearbank.mapping.packing import Packing, Run
from nearbank.mapping.target import ColumnUse, Target
from nearbank.sim.mac_unit import SCALE_BYTES
from nearbank.units import ceil_div

BANK, ASIC = "bank", "asic"


def scaled_in_bank(fmt: Format, use: ColumnUse, dequant: str | None, target: Target) -> bool:
    """Whether the banks apply the scales of a matrix.

    None leaves it to the machine: scales per group where its units have scales, else the ASIC. Scales per row cost the
    ASIC next to nothing, so that the banks apply them on request only. `NearbankError` where they cannot.
    """
    if dequant not in (None, BANK, ASIC):
        raise NearbankError(f"dequant is {dequant!r}; expected {BANK} or {ASIC}, or nothing for what suits the machine")
    if dequant == ASIC or fmt.scaling.per not in ("row", "group"):
        return False
    if dequant == BANK and not use.scales:
        raise NearbankError(
            f"machine {target.name}: its unit for {use.mac_format} has no scales, so that banks cannot apply those of "
            f"{fmt.spec}; use dequant={ASIC}, or a machine whose unit has scales, such as pim-gpt-scales"
        )
    return bool(use.scales) and (dequant == BANK or fmt.scaling.per == "group")


@dataclass(frozen=True, slots=True)
class BankScales:
    """Groups of `group` columns; the first `used` columns of a row hold weights, the next `columns` scales.

    A scale of `format`, with a byte for the group's zero where there is one, takes `entry` bytes of a column; a column
    of `column_bytes` holds as many as fit whole.
    """

    group: int
    used: int
    columns: int
    format: str
    entry: int
    column_bytes: int

    @property
    def per_column(self) -> int:
        return self.column_bytes // self.entry

    def place(self, packing: Packing, output: int, part: int) -> tuple[int, int]:
        """(row, which scale of that row) of one group of an output."""
        last = (part + 1) * self.group - 1
        return packing.place(output, last)[0], self.index(packing, output, last)

    def index(self, packing: Packing, output: int, offset: int) -> int:
        """How many groups end in the row of a column of an output, before the one that the column is part of."""
        column = packing.place(output, offset)[1]
        if packing.crossing:
            at = output * packing.columns + offset
        else:
            at = output % max(packing.per_row, 1) * packing.columns + offset
        return at // self.group - (at - column) // self.group

    def byte(self, index: int) -> int:
        """Where in a row the scale of that number begins."""
        columns, place = divmod(index, self.per_column)
        return (self.used + columns) * self.column_bytes + place * self.entry

    def pieces(self, packing: Packing, run: Run) -> Iterator[Piece]:
        """A run of columns cut where groups end and where another column of scales is needed."""
        offset, end = run.offset, run.offset + run.count
        while offset < end:
            stop = min((offset // self.group + 1) * self.group, end)
            if stop % self.group:
                yield Piece(offset, stop - offset, 1, None)
                return
            index = self.index(packing, run.output, stop - 1)
            whole = (end - offset) // self.group if offset % self.group == 0 else 1
            count = max(min(whole, self.per_column - index % self.per_column), 1)
            yield Piece(offset, stop - offset, count, index)
            offset = stop + (count - 1) * self.group


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` neighbouring stretches of `columns` columns, from the output's column `offset` on.

    Each ends a group with scale `index`, `index` + 1, … of the row; None: the row ends before the group does.
    """

    offset: int
    columns: int
    count: int
    index: int | None


def bank_scales(fmt: Format, use: ColumnUse, group_columns: int, target: Target) -> BankScales:
    """As many columns of weights in a row as leave room for the scales of the groups that end there."""
    entry = SCALE_BYTES[use.scales] + fmt.scaling.zero_bytes
    per_column = target.column_bytes // entry

    def behind(used: int) -> int:
        return ceil_div(ceil_div(used, group_columns), per_column)

    used = max(n for n in range(1, target.columns) if n + behind(n) <= target.columns)
    return BankScales(group_columns, used, behind(used), use.scales, entry, target.column_bytes)


def rounded_scales(fmt: str, scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scales as a unit with scales of that format has them."""
    if fmt == "bf16":
        return from_bf16(to_bf16(scales))
    return scales.astype("f2" if fmt == "fp16" else "f4").astype(np.float32)


def scale_bytes(
    fmt: str, scales: npt.NDArray[np.float32], zeros: npt.NDArray[np.uint8] | None
) -> npt.NDArray[np.uint8]:
    """Scales [n, groups], and zeros alike where there are any, as they lie in a column: uint8[n, groups, entry]."""
    stored = to_bf16(scales) if fmt == "bf16" else scales.astype("f2" if fmt == "fp16" else "f4")
    found = np.ascontiguousarray(stored).view(np.uint8).reshape(*scales.shape, -1)
    return found if zeros is None else np.concatenate([found, zeros[:, :, None]], axis=2)


def scale_of(fmt: str, entry: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Scale and zero of entries […, bytes] as `scale_bytes` writes them."""
    size = SCALE_BYTES[fmt]
    stored = np.ascontiguousarray(entry[..., :size])
    if fmt == "bf16":
        scale = from_bf16(stored.view(np.uint16))[..., 0]
    else:
        scale = stored.view("f2" if fmt == "fp16" else "f4")[..., 0].astype(np.float32)
    zero = entry[..., size] if entry.shape[-1] > size else np.zeros(entry.shape[:-1])
    return scale, zero.astype(np.float64)

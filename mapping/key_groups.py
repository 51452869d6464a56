"""How keys that share scales per channel lie (KIVI): groups of tokens, and what of them is multiplied at a time.

The scale of a channel is taken into the query, so every group of keys is multiplied with a vector of its own. As many
groups as the global buffer has room for such vectors are a visit: their scales are read, their queries sent, their
rows multiplied. Rows of keys and rows of scales hold whole visits.
"""

from __future__ import annotations

from dataclasses import dataclass

from nearbank.cache_formats import KIVI_GROUP, PARAM_BYTES
from nearbank.errors import NearbankError
from nearbank.mapping.region import Region
from nearbank.mapping.target import Target
from nearbank.units import ceil_div


@dataclass(frozen=True, slots=True)
class KeyGroups:
    """Groups of `tokens` tokens, `records` records of a bank each, `visit` groups multiplied at once.

    `per_row` groups lie in a row of K and `scales_per_row` groups' scales and offsets in a row of `scales`, where
    `columns` columns hold the `bursts` bursts that a channel keeps of one group and slot.
    """

    tokens: int
    records: int
    visit: int
    per_row: int
    scales: Region
    columns: int
    bursts: int
    scales_per_row: int
    scale_rows: int


def able_teams(target: Target) -> list[int]:
    """Channels that may share a head, so that each has whole records of every group."""
    return [team for team in range(1, target.channels + 1) if KIVI_GROUP % (target.banks * team) == 0]


def check_banks(target: Target) -> None:
    """Groups must fill the banks evenly."""
    if not able_teams(target):
        raise NearbankError(
            f"machine {target.name}: groups of {KIVI_GROUP} tokens (KIVI) do not fill its {target.banks} banks evenly; "
            "use a cache with scales per token, such as int4-past"
        )


def group_columns(head_columns: int, team: int, target: Target) -> int:
    """Columns of one group of one head."""
    return head_columns * KIVI_GROUP // (target.banks * team)


def size_groups(
    head_dim: int, record_columns: int, vector_bytes: int, team: int, slots: int, regions: int, max_context: int,
    asic_holds: int, target: Target,
) -> KeyGroups:  # fmt: skip
    """Sizes, for records of `record_columns` columns of `slots` slots side by side, in `regions` regions.

    `vector_bytes`: the queries of one group; `asic_holds`: groups that the ASIC has memory for. Raises `NearbankError`
    when they do not fit the buffer.
    """
    records = KIVI_GROUP // (target.banks * team)
    bursts = ceil_div(target.bursts(PARAM_BYTES * head_dim), team)
    columns = ceil_div(bursts, target.banks)
    in_row, scales_in_row = (target.columns // n for n in (records * record_columns, columns * slots))
    most = min(in_row, scales_in_row, target.buffer_bytes // vector_bytes)
    if most < 1:
        raise NearbankError(
            f"machine {target.name}: the queries of one group of keys take {vector_bytes} bytes, and the global buffer "
            f"has {target.buffer_bytes}; use a cache with scales per token, such as int4-past"
        )
    visit = 1 << (min(most, max(asic_holds, 1)).bit_length() - 1)
    groups = ceil_div(max_context, KIVI_GROUP)
    per_row, scales_per_row = in_row // visit * visit, scales_in_row // visit * visit
    scale_rows = ceil_div(groups, scales_per_row)
    size = groups * slots * regions * PARAM_BYTES * head_dim
    scales = Region("K scales", 0, scale_rows * regions, 0, 1, size)
    return KeyGroups(KIVI_GROUP, records, visit, per_row, scales, columns, bursts, scales_per_row, scale_rows)

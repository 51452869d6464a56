"""One row of a report: what a run cost on one machine, and whether that was simulated, measured or modelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from nearbank.errors import NearbankError

Kind = Literal["simulated", "measured", "modelled"]


@dataclass(frozen=True)
class MachineRow:
    """What `tokens` tokens cost on `machine`. What is not known is None, never 0.

    `energy_by_component_pj` holds whole picojoules; `energy_pj` is the sum of the known ones. `time_by_part_ns` says
    what the time was spent on, for machines that can tell. `note` says how the numbers were made.
    """

    machine: str
    kind: Kind
    weights: str
    kv: str
    tokens: int
    time_ns: int
    cycles: int | None = None
    energy_by_component_pj: Mapping[str, int | None] | None = None
    row_hit_rate: float | None = None
    bytes_off_chip: int | None = None
    time_by_part_ns: Mapping[str, int] | None = None
    utilisation: Mapping[str, float] | None = None
    token_time_ns: tuple[int, ...] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def energy_pj(self) -> int | None:
        if self.energy_by_component_pj is None:
            return None
        return sum(value for value in self.energy_by_component_pj.values() if value is not None)

    @property
    def label(self) -> str:
        """A name that tells rows of one report apart."""
        return f"{self.machine}, {self.weights}"

    @property
    def ns_per_token(self) -> float:
        return self.time_ns / self.tokens

    @property
    def tokens_per_s(self) -> float:
        return self.tokens * 1e9 / self.time_ns

    @property
    def pj_per_token(self) -> float | None:
        return None if self.energy_pj is None else self.energy_pj / self.tokens

    def as_json(self) -> dict[str, Any]:
        """The row as plain values, energy total beside its parts."""
        return {**asdict(self), "energy_pj": self.energy_pj, "ns_per_token": self.ns_per_token}


def speedup(row: MachineRow, baseline: MachineRow) -> float:
    """How many times faster `row` is than `baseline`, for the same work."""
    _same_work(row, baseline)
    return baseline.time_ns / row.time_ns


def energy_ratio(row: MachineRow, baseline: MachineRow) -> float | None:
    """How many times less energy `row` takes than `baseline`; None when either is not known."""
    _same_work(row, baseline)
    if row.energy_pj is None or baseline.energy_pj is None:
        return None
    return baseline.energy_pj / row.energy_pj


def _same_work(row: MachineRow, baseline: MachineRow) -> None:
    if row.tokens != baseline.tokens:
        raise NearbankError(
            f"{row.label} made {row.tokens} tokens and {baseline.label} {baseline.tokens}; compare equal work"
        )


def number(value: float | None) -> str:
    """Three significant digits, no exponents; a dash for what is not known."""
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 else f"{value:.1e}"

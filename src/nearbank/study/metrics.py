"""What a point is judged by: names of a study's columns, with titles, units and which way is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from nearbank.errors import NearbankError
from nearbank.study.point import Outcome
from nearbank.study.settings import nearest


@dataclass(frozen=True)
class Metric:
    """How a number of a row is made (`of`), and shown: divided by `per`, with this title and unit."""

    title: str
    unit: str
    per: float
    of: Callable[[Outcome], float | None]
    less_is_better: bool = True

    @property
    def label(self) -> str:
        return f"{self.title} [{self.unit}]" if self.unit else self.title


def _power_w(outcome: Outcome) -> float:
    return outcome.energy_pj / outcome.time_ns / 1000


def _energy_delay(outcome: Outcome) -> float:
    return outcome.energy_pj / outcome.tokens * outcome.ns_per_token


def _bound(outcome: Outcome) -> float | None:
    return outcome.bound_ns


# fmt: off
METRICS: Mapping[str, Metric] = MappingProxyType({
    "time_ns_per_token": Metric("time per token", "µs", 1e3, lambda o: o.ns_per_token),
    "energy_pj_per_token": Metric("energy per token", "µJ", 1e6, lambda o: o.energy_pj / o.tokens),
    "energy_delay_pj_ns": Metric("energy × delay per token", "µJ·s", 1e15, _energy_delay),
    "tokens_per_s": Metric("tokens per second", "1/s", 1, lambda o: 1e9 / o.ns_per_token, less_is_better=False),
    "power_w": Metric("mean power", "W", 1, _power_w),
    "bound_ns_per_token": Metric("bound: rows and refresh", "µs", 1e3, _bound),
    "row_hit_rate": Metric("row hits", "%", 0.01, lambda o: o.row_hit_rate, less_is_better=False),
    "bytes_off_chip_per_token": Metric("bytes off chip per token", "kB", 1e3, lambda o: o.bytes_off_chip / o.tokens),
    "mac_unit_area_um2": Metric("area of a bank's unit", "µm²", 1, lambda o: o.mac_unit_area_um2),
    "mac_units_area_mm2": Metric("area of all units", "mm²", 1, lambda o: o.mac_units_area_mm2),
    "quality": Metric("quality", "", 1, lambda o: None),  # from the study's own table
})
# fmt: on


def metric_named(name: str) -> Metric:
    """The metric of that name; `NearbankError` with the nearest and all that there are."""
    if name not in METRICS:
        raise NearbankError(f"unknown metric {name!r}{nearest(name, METRICS)}; known: {', '.join(METRICS)}")
    return METRICS[name]


def measured(outcome: Outcome) -> dict[str, Any]:
    """All metrics of an outcome by name; None where one is not known."""
    return {name: metric.of(outcome) for name, metric in METRICS.items()}


_COUNTS, _SHARES = pa.map_(pa.string(), pa.int64()), pa.map_(pa.string(), pa.float64())

# What a row holds beside the axes' values and the metrics.
COLUMNS: Mapping[str, pa.DataType] = MappingProxyType(
    {
        "error": pa.string(),
        "machine_name": pa.string(),
        "machine_digest": pa.string(),
        "tokens_played": pa.int64(),
        "time_ns": pa.int64(),
        "energy_by_component_pj": _COUNTS,
        "time_by_part_ns": _COUNTS,
        "utilisation": _SHARES,
        "idle_by_reason": _SHARES,
        "seconds": pa.float64(),
        "key": pa.string(),
        "trial": pa.int64(),
    }
)

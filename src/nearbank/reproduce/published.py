"""What PIM-GPT's authors report, and how ours compares.

`verified` is true for what the paper's abstract prints (arXiv 2310.09385v2 and the journal version); the rest was read
in other papers' accounts of it and is shown as unverified. Published ranges are over the eight models; which model gave
which number is not known, so each of ours is held against the whole range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
_ABSTRACT = "abstract, arXiv 2310.09385v2"
_ACCOUNTS = "as other papers cite it"
TOLERANCE = 0.15


@dataclass(frozen=True)
class Claim:
    """A published number or range and the column it is held against; `per_model` tells a range over the models.

    `tolerance` is the deviation that still counts as reproduced: relative, or absolute where `absolute` is set.
    """

    title: str
    column: str
    low: float
    high: float
    unit: str
    source: str
    verified: bool
    of: Callable[[Sequence[Row]], list[float]]
    tolerance: float = TOLERANCE
    absolute: bool = False

    def published(self) -> str:
        """The published value as text."""
        if self.low == self.high:
            return f"{_shown(self.low, self.unit)}"
        if self.low == 0:
            return f"at most {_shown(self.high, self.unit)}"
        return f"{_shown(self.low, self.unit)} to {_shown(self.high, self.unit)}"

    def deviation(self, value: float) -> float:
        """How far a value lies outside the published range: 0 inside it."""
        nearest = min(max(value, self.low), self.high)
        return (value - nearest) if self.absolute else (value - nearest) / nearest


def _every(column: str) -> Callable[[Sequence[Row]], list[float]]:
    return lambda rows: [float(row[column]) for row in rows]


def _mean(column: str) -> Callable[[Sequence[Row]], list[float]]:
    return lambda rows: [sum(float(row[column]) for row in rows) / len(rows)]


def _of(model: str, column: str) -> Callable[[Sequence[Row]], list[float]]:
    return lambda rows: [float(row[column]) for row in rows if row["model"] == model]


def _claim(title: str, column: str, low: float, high: float, unit: str, verified: bool, **more: Any) -> Claim:
    source = _ABSTRACT if verified else _ACCOUNTS
    return Claim(title, column, low, high, unit, source, verified, **{"of": _every(column), **more})


# fmt: off
CLAIMS = (
    _claim("Speedup over the T4, eager",             "speedup_gpu_eager",    41,  137, "x", True),
    _claim("Speedup over the Xeon Gold 6154, eager", "speedup_cpu_eager",   631, 1074, "x", True),
    _claim("Energy, T4 over PIM",                    "energy_ratio_gpu",    123,  383, "x", True),
    _claim("Energy, Xeon over PIM",                  "energy_ratio_cpu",    320,  602, "x", True),
    _claim("Row-hit rate, mean",                     "row_hit_rate",       0.98, 0.98, "%", False,
           of=_mean("row_hit_rate"), tolerance=0.005, absolute=True),
    _claim("Off-chip data movement reduced by",      "off_chip_reduction",  110,  259, "x", False),
    _claim("Time that is not VMM, GPT3-XL",          "non_vmm_share",    0.0116, 0.0116, "%", False,
           of=_of("gpt3-xl", "non_vmm_share"), tolerance=0.01, absolute=True),
    _claim("Slowdown with the ASIC at 100 MHz",      "slowdown_asic_100mhz",  0, 1.20, "x", False, tolerance=0.0),
)
# fmt: on

VERDICTS = ("reproduced", "within tolerance", "missed")


def compare(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every claim beside our values: the range of ours, the worst deviation, and a verdict; no claim without values."""
    return [_compared(claim, values) for claim in CLAIMS if (values := claim.of(rows))]


def _compared(claim: Claim, values: list[float]) -> dict[str, Any]:
    deviations = [claim.deviation(value) for value in values]
    worst = max(deviations, key=abs)
    inside = sum(deviation == 0 for deviation in deviations)
    within = sum(abs(deviation) <= claim.tolerance for deviation in deviations)
    missed = len(values) - within
    return {
        "quantity": claim.title,
        "column": claim.column,
        "published": claim.published(),
        "source": claim.source,
        "verified": claim.verified,
        "ours": _range(values, claim.unit),
        "values": len(values),
        "inside": inside,
        "within_tolerance": within,
        "worst_deviation": worst,
        "deviation": _deviation(worst, claim),
        "verdict": VERDICTS[2] if missed else VERDICTS[0] if inside == len(values) else VERDICTS[1],
    }


def _range(values: Sequence[float], unit: str) -> str:
    low, high = min(values), max(values)
    return _shown(low, unit) if low == high else f"{_shown(low, unit)} to {_shown(high, unit)}"


def _shown(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.2f} %"
    return f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


def _deviation(worst: float, claim: Claim) -> str:
    if worst == 0:
        return "inside"
    return f"{100 * worst:+.2f} points" if claim.absolute else f"{100 * worst:+.0f} %"

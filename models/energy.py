"""Energy of the processor while something ran, from the counters that Linux shows (RAPL), where there are any.

The counters cover whole processor packages: other programs that ran at the same time are in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Counter:
    """A package's energy counter: its reading and the value it wraps around at, in microjoules."""

    reading_uj: int
    range_uj: int


def read_counters(root: Path = POWERCAP) -> dict[str, Counter]:
    """The counters of all packages, by name; empty where there are none or they may not be read."""
    found = {}
    for domain in sorted(root.glob("*-rapl:*")):
        if domain.name.count(":") == 1:  # a package; its parts (cores, memory) have one more number
            try:
                found[domain.name] = Counter(_number(domain / "energy_uj"), _number(domain / "max_energy_range_uj"))
            except (OSError, ValueError):
                return {}
    return found


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def spent_uj(before: Mapping[str, Counter], after: Mapping[str, Counter]) -> int | None:
    """Microjoules between two readings, a wrap of each counter allowed for; None without counters."""
    if not before or before.keys() != after.keys():
        return None
    return sum((after[name].reading_uj - before[name].reading_uj) % (before[name].range_uj + 1) for name in before)

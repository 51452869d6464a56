"""What lies between a simulated time and the bound that knows of rows and refresh, part by part."""

from __future__ import annotations

from dataclasses import dataclass

from nearbank.mapping.account import MACS
from nearbank.mapping.bounds import bounds, refresh_share
from nearbank.mapping.plan import Plan
from nearbank.sim.machine import Machine
from nearbank.sim.result import SimResult

REST = "sums read within rows, bus turns, rows begun"


@dataclass(frozen=True, slots=True)
class Gap:
    """Nanoseconds per token. `parts_ns` add up to `measured_ns - row_aware_ns`; the average channel's, so that a part
    can be negative where channels are uneven. `placed_ns`: the tightest bound, of this placement of the weights."""

    measured_ns: float
    row_aware_ns: float
    placed_ns: float
    parts_ns: dict[str, float]

    @property
    def percent(self) -> float:
        """How far the time lies above the bound that every mapping has."""
        return 100 * (self.measured_ns / self.row_aware_ns - 1)

    def lines(self) -> list[str]:
        """In words, the largest part first."""
        parts = sorted(self.parts_ns.items(), key=lambda part: -part[1])
        words = ", ".join(f"{name} {100 * ns / self.row_aware_ns:.1f} %" for name, ns in parts)
        return [
            f"{self.percent:.1f} % above the bound of any mapping ({self.row_aware_ns / 1e3:.1f} us: weights, K and V "
            f"once, every row opened and closed, refresh): {words}",
            f"{100 * (self.measured_ns / self.placed_ns - 1):.1f} % above the bound of this placement "
            f"({self.placed_ns / 1e3:.1f} us: with its own rows, chunks and reads)",
        ]


def gap_of(plan: Plan, machine: Machine, result: SimResult, tokens: int, context: float) -> Gap:
    """The gap of a run that decoded `tokens` tokens at `context` positions on average."""
    least = bounds(plan, machine, context)
    cycle_ns = machine.tck_ps / 1e3
    measured = result.cycles * cycle_ns / tokens
    per_token = cycle_ns / tokens / machine.organization.channels
    counts, stalls = result.command_counts(), result.stalls()
    kept = 1 - refresh_share(machine)
    change = plan.target.row_change - 1
    columns_ns = sum(counts[name] for name in MACS) * per_token - least.ideal_ns
    refreshed = (stalls["refresh"] + stalls["tRFC"]) * per_token
    apart = result.label_cycles.get("append", 0) * cycle_ns / tokens
    written = apart or counts["WR"] * per_token  # in place, they are commands among others
    rows_ns = max(counts["ACT16"] * change * per_token - (least.row_aware_ns * kept - least.ideal_ns), 0.0)
    parts = {
        "vectors sent": counts["WRGB"] * per_token,
        "columns of padding": columns_ns,
        "rows closed (tRTP), begun for part of a row": rows_ns,
        "K and V written": written,
        "waits for the ASIC": stalls["wait asic"] * per_token,
        "refresh of the rest": refreshed - least.row_aware_ns * refresh_share(machine),
    }
    parts[REST] = measured - least.row_aware_ns - sum(parts.values())
    return Gap(measured, least.row_aware_ns, least.placed_ns, parts)

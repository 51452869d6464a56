"""A workload on a machine: mapped, lowered, played command by command, and summed up in a row of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nearbank.formats import format_named
from nearbank.mapping.pim_gpt import MappingOptions, Plan, plan_model
from nearbank.mapping.account import bytes_off_chip
from nearbank.report import MachineRow
from nearbank.sim.engine import Player
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.result import SimResult
from nearbank.units import ceil_div
from nearbank.workload import Workload

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Replay:
    """The row, and what it was made of: the mapping's plan and the simulator's counts."""

    row: MachineRow
    plan: Plan
    result: SimResult

    @property
    def remarks(self) -> list[str]:
        """What the numbers rest on, in sentences."""
        return []


def replay(
    load: Workload,
    machine: str | Machine,
    *,
    weights: str | None = None,
    kv: str | None = None,
    advance: Advance | None = None,
) -> Replay:
    """Play every step of `load` on `machine`; `weights` and `kv` override the formats of matrices and cache.

    Raises `NearbankError` when the model does not fit the machine, or the machine lacks a format.
    """
    target = load_machine(machine) if isinstance(machine, str) else machine
    weights, kv = weights or load.weights, kv or load.kv
    for name in (weights, kv):
        format_named(name)
    plan = plan_model(load.model, target, MappingOptions(weights=weights, kv=kv, max_context=load.max_context))
    result = _play(load, target, plan, advance)
    return Replay(_row(load, target, plan, result, (weights, kv)), plan, result)


def _play(load: Workload, machine: Machine, plan: Plan, advance: Advance | None) -> SimResult:
    player = Player(machine)
    for done, step in enumerate(load.steps(), start=1):
        player.play(plan.lower(step))
        if advance is not None:
            advance(done)
    return player.result()


def _row(load: Workload, machine: Machine, plan: Plan, result: SimResult, formats: tuple[str, str]) -> MachineRow:
    moved = bytes_off_chip(result.commands(), machine.organization.column_bytes)
    return MachineRow(
        machine=machine.name,
        kind="simulated",
        weights=formats[0],
        kv=formats[1],
        tokens=load.tokens,
        time_ns=ceil_div(result.time_ps, 1000),
        cycles=result.cycles,
        row_hit_rate=result.row_hit_rate,
        bytes_off_chip=sum(moved.values()),
        time_by_part_ns=_nanoseconds(result.label_cycles, result),
        utilisation=_utilisation(machine, result, sum(moved.values())),
        token_time_ns=_step_times(result),
        details={"bytes_by_direction": moved, "machine_digest": machine.digest},
        note=machine.title,
    )


def _nanoseconds(cycles: Mapping[str, int], result: SimResult) -> dict[str, int]:
    return {name: ceil_div(n * result.tck_ps, 1000) for name, n in cycles.items()}


def _step_times(result: SimResult) -> tuple[int, ...]:
    ends = (0, *result.program_ends)
    return tuple(ceil_div((b - a) * result.tck_ps, 1000) for a, b in zip(ends, ends[1:], strict=False))


def _utilisation(machine: Machine, result: SimResult, moved_bytes: int) -> dict[str, float]:
    """Shares of the whole run, averaged over the channels."""
    channels = machine.organization.channels
    counts = result.command_counts()
    asic_ps = sum(busy for (unit, _), (busy, _) in result.jobs.items() if unit == "asic")
    pin_bits = machine.pins.bits_per_s * channels * result.time_ps / 1e12
    return {
        "MAC units": counts["MACAB"] / (channels * result.cycles),
        "command bus": sum(counts.values()) / (channels * result.cycles),
        "pins": 8 * moved_bytes / pin_bits,
        "ASIC": asic_ps / result.time_ps,
    }


def write_timeline(load: Workload, machine: str, weights: str | None, steps: int, path: Path) -> None:
    """Write the commands of the first steps as a timeline for ui.perfetto.dev."""

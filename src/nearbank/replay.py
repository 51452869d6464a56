"""A workload on a machine: mapped, lowered, played command by command, and summed up in a row of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Literal, cast, get_args

from nearbank.cache_formats import cache_format
from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.mapping import MappingOptions, Plan, bounds, bytes_off_chip, describe, plan
from nearbank.mapping.account import MACS
from nearbank.mapping.choices import Choices
from nearbank.mapping.kept import uses_of
from nearbank.mapping.reuse import best_reuse
from nearbank.mapping.search import Found, plan_best
from nearbank.report import MachineRow
from nearbank.sim.energy import energy
from nearbank.sim.engine import Issued, Player
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.readers.commands import write_issued
from nearbank.sim.result import SimResult
from nearbank.sim.rules import rulebook
from nearbank.sim.throttle import explain_budget
from nearbank.sim.timeline import write_timeline
from nearbank.units import ceil_div
from nearbank.workload import Workload

Advance = Callable[[int], None]
MappingName = Literal["pim-gpt", "auto", "auto-by-use"]
TIMELINE_CYCLES = 200_000


@dataclass(frozen=True)
class Replay:
    """The row, and what it was made of: the mapping's plan and the simulator's counts."""

    row: MachineRow
    plan: Plan
    result: SimResult

    machine: Machine
    load: Workload
    found: Found | None = None

    @property
    def remarks(self) -> list[str]:
        """Why the numbers are where they are, and what they rest on, in sentences."""
        budget = explain_budget(self.machine, self.result)
        because = [_against_bounds(self), _stalls(self.result), *([budget] if budget else [])]
        because += self.found.lines() if self.found else []
        because += _shared_rows(self)
        return [*because, *_absences(self.row), *_unverified(self.machine)]

    @property
    def placement(self) -> list[str]:
        """What the mapping decided, in lines."""
        return describe(self.plan)


def _against_bounds(done: Replay) -> str:
    context = done.load.prompt_tokens + (done.load.tokens - 1) / 2
    explained = bounds(done.plan, done.machine, context).explain(done.row.ns_per_token)
    return f"{done.row.label}: {explained}."


def _stalls(result: SimResult) -> str:
    idle = result.stalls().most_common(4)
    total = sum(channel.cycles * len(channel.channels) for channel in result.channels)
    reasons = ", ".join(f"{name} {100 * cycles / total:.1f} %" for name, cycles in idle)
    return f"Cycles without a command, by what held the next one: {reasons}."


def _shared_rows(done: Replay) -> list[str]:
    reuse = done.plan.options.choices.reuse
    return [f"Every open row is multiplied with up to {reuse} vectors before it closes."] if reuse > 1 else []


def _absences(row: MachineRow) -> list[str]:
    absent = [name for name, value in (row.energy_by_component_pj or {}).items() if value is None]
    if not absent:
        return []
    return [f"Energy leaves out what the machine file gives no constant for: {', '.join(absent)}."]


def _unverified(machine: Machine) -> list[str]:
    count = len(machine.unverified())
    return (
        [f"{count} constants of {machine.name} are unverified (`nearbank machines {machine.name}`)."] if count else []
    )


def replay(
    load: Workload,
    machine: str | Machine,
    *,
    weights: str | None = None,
    kv: str | None = None,
    mapping: MappingName = "pim-gpt",
    reuse: int | None = None,
    advance: Advance | None = None,
    bins: int = 0,
) -> Replay:
    """Play every step of `load` on `machine`; `weights` and `kv` override the formats of matrices and cache.

    `mapping`: that of the paper, or the quickest that the automatic mapper finds for this run; "auto-by-use" goes
    without refresh commands, where the run opens every row that holds data often enough. `reuse`: tokens of a
    prompt, or sequences of a batch, that share every open row; None: as many as make the run quickest.
    `bins` above 0 keeps a profile over time, as `nearbank.sim.engine.Player` says.

    Raises `NearbankError` when the model does not fit the machine, or the machine lacks a format.
    """
    target = load_machine(machine) if isinstance(machine, str) else machine
    weights, kv = weights or load.weights, kv or load.kv
    options = _options(load, weights, kv, 1 if reuse is None else reuse)
    if reuse is None:
        together = max(load.prompt_tokens, load.batch)
        options = best_reuse(load.model, target, options, load.steps, together).options
    found = _found(load, target, options, mapping)
    placed = found.plan if found else plan(load.model, target, options)
    result = _play(load, placed, advance, bins)
    return Replay(_row(load, placed, result, (weights, kv)), placed, result, placed.machine, load, found)


def _found(load: Workload, machine: Machine, options: MappingOptions, mapping: MappingName) -> Found | None:
    """What the automatic mapper finds; nothing for the published mapping."""
    if mapping_named(mapping) == "pim-gpt":
        return None
    return plan_best(load.model, machine, options, load.steps(), by_use=mapping == "auto-by-use")


def mapping_named(name: str) -> MappingName:
    """The mapping of that name; `NearbankError` lists those there are."""
    if name not in get_args(MappingName):
        raise NearbankError(f"mapping {name!r} is unknown; expected one of: {', '.join(get_args(MappingName))}")
    return cast(MappingName, name)


def find_mapping(
    load: Workload,
    machine: str | Machine,
    *,
    weights: str | None = None,
    kv: str | None = None,
    by_use: bool = False,
) -> Found:
    """The quickest mapping that the automatic mapper finds for a run, and what it gained; `by_use`: without refresh."""
    target = load_machine(machine) if isinstance(machine, str) else machine
    options = _options(load, weights or load.weights, kv or load.kv)
    return plan_best(load.model, target, options, load.steps(), by_use=by_use)


def _play(load: Workload, placed: Plan, advance: Advance | None, bins: int) -> SimResult:
    """Every step; where rows are kept by use, `NearbankError` if one that holds data stays closed for too long."""
    player = Player(placed.machine, bins=bins)
    uses = uses_of(placed) if placed.machine.refresh.policy == "by_use" else None
    for done, step in enumerate(load.steps(), start=1):
        begin, program = player.cycle, placed.lower(step)
        player.play(program)
        if uses is not None:
            uses.play(program, (player.cycle - begin) * placed.machine.tck_ps)
            uses.check()
        if advance is not None:
            advance(done)
    return player.result()


def _row(load: Workload, placed: Plan, result: SimResult, formats: tuple[str, str]) -> MachineRow:
    machine, reuse = placed.machine, placed.options.choices.reuse
    moved = bytes_off_chip(result.commands(), machine.organization.column_bytes)
    return MachineRow(
        machine=machine.name,
        kind="simulated",
        weights=formats[0],
        kv=formats[1],
        tokens=load.all_tokens,
        time_ns=ceil_div(result.time_ps, 1000),
        cycles=result.cycles,
        energy_by_component_pj=_picojoules(result, machine),
        row_hit_rate=result.bank_hit_rate,
        bytes_off_chip=sum(moved.values()),
        time_by_part_ns=_nanoseconds(result.label_cycles, result),
        utilisation=_utilisation(machine, result, sum(moved.values())),
        token_time_ns=_step_times(result),
        details={"bytes_by_direction": moved, "machine_digest": machine.digest, "reuse": reuse, "batch": load.batch},
        note=machine.title,
    )


def _picojoules(result: SimResult, machine: Machine) -> dict[str, int | None]:
    """Whole picojoules by component, without those in which nothing happened."""
    found = energy(result, machine).components_fj
    return {name: None if fj is None else (fj + 500) // 1000 for name, fj in found.items() if fj != 0}


def _nanoseconds(cycles: Mapping[str, int], result: SimResult) -> dict[str, int]:
    return {name: ceil_div(n * result.tck_ps, 1000) for name, n in cycles.items()}


def _step_times(result: SimResult) -> tuple[int, ...]:
    ends = (0, *result.program_ends)
    return tuple(ceil_div((b - a) * result.tck_ps, 1000) for a, b in pairwise(ends))


def _utilisation(machine: Machine, result: SimResult, moved_bytes: int) -> dict[str, float]:
    """Shares of the whole run, averaged over the channels."""
    channels = machine.organization.channels
    counts = result.command_counts()
    asic_ps = sum(busy for (unit, _), (busy, _) in result.jobs.items() if unit == "asic")
    pin_bits = machine.pins.bits_per_s * channels * result.time_ps / 1e12
    return {
        "MAC units": sum(counts[name] for name in MACS) / (channels * result.cycles),
        "command bus": sum(counts.values()) / (channels * result.cycles),
        "pins": 8 * moved_bytes / pin_bits,
        "ASIC": asic_ps / result.time_ps,
    }


def record_timeline(
    load: Workload, machine: str | Machine, path: Path, *, weights: str | None = None, steps: int
) -> None:
    """Play the first steps and write every command as a timeline for ui.perfetto.dev, up to `TIMELINE_CYCLES`."""
    target = load_machine(machine) if isinstance(machine, str) else machine
    placed = _plan(load, target, weights or load.weights, load.kv)
    player = Player(target)
    issued = [
        command
        for step in islice(load.steps(), steps)
        for command in player.record(placed.lower(step), 0, TIMELINE_CYCLES)
    ]
    write_timeline(path, issued, rulebook(target), target.tck_ps)


def record_commands(done: Replay, path: Path, first: int, last: int) -> int:
    """Play the run again and write every command issued in cycles `first` to `last - 1` as CSV; returns how many.

    `nearbank.sim.readers.read_commands` reads it, for `nearbank.sim.checker`. Lines are written as they come.
    """
    if not 0 <= first < last:
        raise NearbankError(
            f"window {first}:{last}: expected FIRST:LAST in cycles, 0 or more, the first below the last"
        )
    return write_issued(path, done.machine, _issued(done, first, last))


def _issued(done: Replay, first: int, last: int) -> Iterator[Issued]:
    player = Player(done.machine)
    for step in done.load.steps():
        if player.cycle >= last:
            return
        for batch in player.stream(done.plan.lower(step), first, last):
            yield from batch


def plan_of(load: Workload, machine: str | Machine, *, weights: str | None = None, kv: str | None = None) -> Plan:
    """The published mapping of a run's model, with room for the run's tokens."""
    target = load_machine(machine) if isinstance(machine, str) else machine
    return _plan(load, target, weights or load.weights, kv or load.kv)


def _plan(load: Workload, machine: Machine, weights: str, kv: str) -> Plan:
    return plan(load.model, machine, _options(load, weights, kv))


def _options(load: Workload, weights: str, kv: str, reuse: int = 1) -> MappingOptions:
    format_named(weights)
    cache_format(kv)
    choices = Choices(reuse=reuse)
    return MappingOptions(weights=weights, kv=kv, max_context=load.max_context, batch=load.batch, choices=choices)

"""PIM-GPT (Wu, Wang, Lu; arXiv 2310.09385) run again: eight models, 1,024 tokens, bf16, and what they depend on.

Every model is simulated on `pim-gpt` and with the ASIC at 100 MHz; sensitivities change one value of the machine at a
time, on the smallest and the largest model. The baselines are modelled in the open (`nearbank.baselines`).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nearbank import __version__
from nearbank.baselines.eager import eager_rows
from nearbank.baselines.processor import load_framework, load_processor
from nearbank.baselines.roofline import roofline_row
from nearbank.models.config import CONFIGS
from nearbank.models.shape import Shape
from nearbank.report.row import MachineRow
from nearbank.reproduce.capacity import capacity
from nearbank.reproduce.published import compare
from nearbank.reproduce.reads import OTHER_READS, energy_by_reads
from nearbank.reproduce.results import Results
from nearbank.sim.machine import Machine, load_machine
from nearbank.study import knobs
from nearbank.study.compute import Ran, Stage, run_points
from nearbank.study.point import Outcome, Point, source_digest
from nearbank.study.pool import Pool
from nearbank.study.store import Parts

MACHINE, GPU, CPU, FRAMEWORK = "pim-gpt", "t4", "xeon-6154", "gpt2-eager"
SLOW_ASIC_MHZ = 100
# Shown beside the rows, in none of them: other frameworks, and a T4's host slower than the one that was measured.
OTHER_FRAMEWORKS = ("gpt2-eager-2026", "gpt2-operators")
SLOWER_HOSTS = (2, 3)


@dataclass(frozen=True)
class Axis:
    """One value of the machine that is changed; `today` is the published one."""

    name: str
    unit: str
    values: tuple[int, ...]
    today: int
    change: Callable[[Machine, int], Machine]


AXES = (
    Axis("ASIC clock", "MHz", (100, 200, 500, 1000), 1000, knobs.with_asic_clock),
    Axis("channels", "", (1, 2, 4, 8, 16, 32, 64), 8, knobs.with_channels),
    Axis("bf16 lanes per bank", "", (4, 8, 16, 32), 16, knobs.with_lanes),
    Axis("global buffer", "B", (512, 1024, 2048, 4096, 8192), 2048, knobs.with_buffer),
    Axis("pin rate", "Gb/s", (2, 4, 8, 16, 32), 16, knobs.with_pin_rate),
)
TOKEN_AXIS = "tokens"


@dataclass(frozen=True)
class Options:
    """What to run. Sensitivities play `sensitivity_steps` steps, spread evenly over the run; base points too."""

    models: tuple[str, ...] = tuple(CONFIGS)
    tokens: int = 1024
    sensitivity_models: tuple[str, ...] = ("gpt2-small", "gpt3-xl")
    sensitivity_steps: int = 128
    token_counts: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192)
    axes: tuple[Axis, ...] = AXES
    quick: bool = False


QUICK = Options(tokens=32, sensitivity_steps=8, token_counts=(16, 32, 64), quick=True)


def reproduce_pim_gpt(options: Options, folder: Path, stage: Stage, pool: Pool | None = None) -> Results:
    """Run what `folder` does not hold yet, one part-file per point, and put everything together."""
    study = run_points(points_of(options), Parts(folder), stage, pool)
    rows, details = [], {}
    for model in options.models:
        if f"{model}" not in study.outcomes:
            continue
        stage(f"{model}: baselines", 1, 1)
        row, detail = _model(model, options, study)
        rows.append(row)
        details[model] = detail
    return Results(
        system=MACHINE,
        quick=options.quick,
        prompt=1,
        tokens=options.tokens,
        sensitivity_steps=options.sensitivity_steps,
        rows=rows,
        details=details,
        sensitivities=list(_sensitivities(options, study)),
        capacities=[capacity(point).as_json() for point in _capacity_points(options)],
        published=compare(rows),
        refused=dict(study.refused),
        made_with=_made_with(study),
    )


def points_of(options: Options) -> dict[str, Point]:
    """Every point by name: "gpt3-xl", "gpt3-xl, ASIC at 100 MHz", "gpt3-xl, channels 16", …"""
    base = load_machine(MACHINE)
    also = tuple(cost.machine(base) for cost in OTHER_READS)
    slow = knobs.with_asic_clock(base, SLOW_ASIC_MHZ)
    points = {}
    for model in options.models:
        shape = CONFIGS[model].shape
        points[model] = Point(shape, base, options.tokens, also=also)
        points[_slow_name(model)] = Point(shape, slow, options.tokens)
    for model in options.sensitivity_models:
        shape = CONFIGS[model].shape
        for axis in options.axes:
            for value in axis.values:
                machine = base if value == axis.today else axis.change(base, value)
                points[_name(model, axis.name, value)] = _spread(shape, machine, options.tokens, options)
        for count in options.token_counts:
            points[_name(model, TOKEN_AXIS, count)] = _spread(_long_enough(shape, count), base, count, options)
    return points


def _capacity_points(options: Options) -> Iterator[Point]:
    """Every model at every token count, to be placed alone."""
    base = load_machine(MACHINE)
    for model in options.models:
        for count in options.token_counts:
            yield Point(_long_enough(CONFIGS[model].shape, count), base, count)


def _spread(shape: Shape, machine: Machine, tokens: int, options: Options) -> Point:
    return Point(shape, machine, tokens, stride=max(tokens // options.sensitivity_steps, 1))


def _slow_name(model: str) -> str:
    return f"{model}, ASIC at {SLOW_ASIC_MHZ} MHz"


def _name(model: str, axis: str, value: int) -> str:
    return f"{model}, {axis} {value}"


def _long_enough(shape: Shape, tokens: int) -> Shape:
    """The shape, or one with a longer context and a name that says so."""
    return shape if tokens <= shape.context else replace(shape, name=f"{shape.name}-{tokens}", context=tokens)


def _model(model: str, options: Options, study: Ran) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of one model and what it is made of."""
    ours, slow = study.outcomes[model], study.outcomes[_slow_name(model)]
    others = _baselines(Point(CONFIGS[model].shape, load_machine(MACHINE), options.tokens))
    gpu, cpu = others[f"{GPU} eager"], others[f"{CPU} eager"]
    plain_bytes = others[f"{GPU} roofline"].bytes_off_chip or 0
    row = {
        "model": model,
        "time_ns_per_token": ours.ns_per_token,
        "energy_pj_per_token": ours.energy_pj / ours.tokens,
        "row_hit_rate": ours.row_hit_rate,
        "off_chip_reduction": plain_bytes / ours.bytes_off_chip,
        "non_vmm_share": ours.non_vmm_share,
        "speedup_gpu_eager": gpu.time_ns / ours.time_ns,
        "speedup_gpu_roofline": others[f"{GPU} roofline"].time_ns / ours.time_ns,
        "speedup_cpu_eager": cpu.time_ns / ours.time_ns,
        "energy_ratio_gpu": (gpu.energy_pj or 0) / ours.energy_pj,
        "energy_ratio_cpu": (cpu.energy_pj or 0) / ours.energy_pj,
        "slowdown_asic_100mhz": slow.time_ns / ours.time_ns,
    }
    return row, _details(ours, others, plain_bytes)


def _details(ours: Outcome, others: Mapping[str, MachineRow], plain_bytes: int) -> dict[str, Any]:
    return {
        "time_by_part_ns_per_token": _per_token(ours.time_by_part_ns, ours.tokens),
        "energy_by_component_pj_per_token": _per_token(ours.energy_by_component_pj, ours.tokens),
        "row_aware_bound_ns": ours.bound_ns,
        "row_hit_rate_by_command": ours.row_hit_rate_by_command,
        "utilisation": ours.utilisation,
        "bytes_off_chip_per_token": ours.bytes_off_chip / ours.tokens,
        "bytes_plain_gddr6_per_token": plain_bytes / ours.tokens,
        "power_w": ours.energy_pj / ours.time_ns / 1000,
        "energy_by_reads": energy_by_reads(ours, load_machine(MACHINE)),
        "baselines": {
            name: {
                "time_ns_per_token": row.ns_per_token,
                "speedup": row.time_ns / ours.time_ns,
                "energy_ratio": (row.energy_pj or 0) / ours.energy_pj,
                "note": row.note,
            }
            for name, row in others.items()
        },
    }


def _per_token(parts: Mapping[str, int | None], tokens: int) -> dict[str, float | None]:
    return {name: None if value is None else value / tokens for name, value in parts.items()}


def _baselines(point: Point) -> dict[str, MachineRow]:
    """Rows of GPU and CPU: the roofline, the eager framework as reports use it, and its other ways by name."""
    load, framework = point.workload(), load_framework(FRAMEWORK)
    found = {}
    for name in (GPU, CPU):
        processor = load_processor(name)
        found[f"{name} roofline"] = roofline_row(processor, load)
        first, *others = eager_rows(processor, framework, load)
        found[f"{name} eager"] = first
        found |= {f"{name} eager, {path}": row for path, row in zip(list(processor.eager)[1:], others, strict=True)}
    for other in map(load_framework, OTHER_FRAMEWORKS):
        found |= {
            f"{name} eager, {other.title}": eager_rows(load_processor(name), other, load)[0] for name in (GPU, CPU)
        }
    for slowdown in SLOWER_HOSTS:
        row = eager_rows(load_processor(GPU), framework, load, host_slowdown=slowdown)[0]
        found[f"{GPU} eager, host {slowdown}x slower"] = row
    return found


def _sensitivities(options: Options, study: Ran) -> Iterator[dict[str, Any]]:
    """Rows of every axis, times relative to the published value's (tokens: to the shortest run)."""
    for model in options.sensitivity_models:
        axes = [(a.name, a.unit, a.values, a.today) for a in options.axes]
        axes.append((TOKEN_AXIS, "", options.token_counts, options.token_counts[0]))
        for axis, unit, values, today in axes:
            base = study.outcomes.get(_name(model, axis, today))
            for value in values:
                found = study.outcomes.get(_name(model, axis, value))
                if found is not None:
                    yield {
                        "axis": axis,
                        "unit": unit,
                        "model": model,
                        "shape": found.model,
                        "value": value,
                        "steps": found.tokens,
                        "time_ns_per_token": found.ns_per_token,
                        "relative_time": None if base is None else found.ns_per_token / base.ns_per_token,
                        "row_hit_rate": found.row_hit_rate,
                        "bytes_off_chip_per_token": found.bytes_off_chip / found.tokens,
                    }


def _made_with(study: Ran) -> dict[str, Any]:
    machine = load_machine(MACHINE)
    return {
        "nearbank": __version__,
        "source": source_digest(),
        "python": platform.python_version(),
        "machine": machine.name,
        "machine_digest": machine.digest,
        "unverified_constants": machine.unverified(),
        "processors": {name: load_processor(name).model_dump(mode="json") for name in (GPU, CPU)},
        "frameworks": {name: load_framework(name).model_dump(mode="json") for name in (FRAMEWORK, *OTHER_FRAMEWORKS)},
        "points": len(study.outcomes),
        "simulated_seconds": round(sum(outcome.seconds for outcome in study.outcomes.values()), 1),
    }

"""The main job: a real low-bit model writes text, and the same run is priced on memory that computes and beside it.

Two sections come out. The first replays the run that was just recorded; the second asks the same of a model so large
that memory decides, GPT3-XL's shape, with the same prompt length and token count.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearbank import __version__
from nearbank.baselines.eager import eager_rows
from nearbank.baselines.processor import load_framework, load_processor
from nearbank.baselines.roofline import roofline_row
from nearbank.kernels.threads import thread_count
from nearbank.models import Generation, Model, Sampling, load_model, record
from nearbank.replay import Replay, record_timeline, replay
from nearbank.report import MachineRow, Report, Section
from nearbank.workload import Workload, sketch_workload, trace_workload

LARGE_SHAPE = "gpt3-xl"
# (machine, weights): the published system, its own MAC units fed with ternary weights, and ternary-native banks
SIMULATED = (("pim-gpt", "bf16"), ("pim-gpt", "ternary"), ("pim-gpt-ternary", "ternary"))
MODELLED = ("t4", "h200")
MODELLED_WEIGHTS = ("bf16", "ternary")
FRAMEWORK = "gpt2-eager"
BASELINE = "t4 (eager, fp32), bf16"
TIMELINE_STEPS = 2

Stage = Callable[[str, int, int], None]  # what is being done, how much is done, of how much


@dataclass(frozen=True)
class DemoOptions:
    """What to run."""

    prompt: str
    tokens: int
    sampling: Sampling
    backend: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class DemoResult:
    """The text, the report and the files it was saved to."""

    model: Model
    generation: Generation
    report: Report
    out: Path


def run_demo(options: DemoOptions, out: Path, stage: Stage) -> DemoResult:
    """Generate, record, replay on every machine, and save report, figures, trace and timeline into `out`."""
    model = load_model("shakespeare-ternary", backend=options.backend, threads=options.threads)
    generation = _generate(model, options, out / "trace.parquet", stage)
    small = trace_workload(out / "trace.parquet")
    large = sketch_workload(LARGE_SHAPE, generation.prompt_tokens, options.tokens)
    stages = _Stages(stage, 2 * len(SIMULATED))
    sections = (
        Section("This run", (_measured(model, generation), *_others(small, stages)), BASELINE, _small_remarks(small)),
        Section(_large_title(large), tuple(_others(large, stages)), BASELINE, _LARGE_REMARKS),
    )
    record_timeline(small, "pim-gpt-ternary", out / "timeline.perfetto-trace", steps=TIMELINE_STEPS)
    report = _report(model, generation, options, sections)
    report.save(out)
    return DemoResult(model, generation, report, out)


@dataclass
class _Stages:
    """Counts the simulated rows as they are made."""

    stage: Stage
    total: int
    done: int = 0

    def next(self, what: str) -> None:
        self.stage(what, self.done, self.total)
        self.done += 1


def _generate(model: Model, options: DemoOptions, trace: Path, stage: Stage) -> Generation:
    def advance(done: int, total: int) -> None:
        stage("generating text", done, total)

    return record(model, options.prompt, options.tokens, trace, options.sampling, advance)


def _measured(model: Model, generation: Generation) -> MachineRow:
    return MachineRow(
        machine=f"this CPU ({model.backend}, {thread_count()} threads)",
        kind="measured",
        weights=model.weights,
        kv=model.kv,
        tokens=len(generation.tokens),
        time_ns=sum(generation.step_ns),
        token_time_ns=generation.step_ns,
        note="wall time of every pass, sampling included; energy is not measured",
    )


def _others(load: Workload, stages: _Stages) -> Iterator[MachineRow]:
    for machine, weights in SIMULATED:
        stages.next(f"simulating {load.model.name} on {machine}, {weights}")
        yield _replay(load, machine, weights).row
    for processor in map(load_processor, MODELLED):
        for weights in MODELLED_WEIGHTS:
            yield roofline_row(processor, load, weights)
        yield eager_rows(processor, load_framework(FRAMEWORK), load, "bf16")[0]


def _replay(load: Workload, machine: str, weights: str) -> Replay:
    return replay(load, machine, weights=weights)


def _small_remarks(load: Workload) -> tuple[str, ...]:
    mb = load.model.weights() * 2 / 1e6
    return (
        f"The bundled model is small: its matrices are {mb:.1f} MB at 16 bits, so a host's overhead, the ASIC and the "
        "pins weigh as much as memory. The second table shows a size where memory decides.",
    )


def _large_title(load: Workload) -> str:
    return (
        f"The same at {load.model.name}'s shape: {load.prompt_tokens} prompt tokens, {load.tokens} new ones "
        "(sketched: no weights were run)"
    )


_LARGE_REMARKS = (
    "PIM reads every weight inside the memory: a token costs about its weights' columns at one per bank and clock, "
    "plus a precharge and an activation for every row, plus refresh. A roofline is the weights' bytes at peak "
    "bandwidth; an eager framework waits for its host besides, layer by layer.",
)


def _report(model: Model, made: Generation, options: DemoOptions, sections: tuple[Section, ...]) -> Report:
    return Report(
        title=f"nearbank: {model.name} on memory that computes",
        sections=sections,
        text=made.text,
        prompt=options.prompt,
        configuration=_configuration(model, options),
        details={"cpu_tokens_per_s": made.tokens_per_s},
    )


def _configuration(model: Model, options: DemoOptions) -> dict[str, Any]:
    from nearbank.models.record import cpu_name
    from nearbank.sim.machine import load_machine

    machines = {name: load_machine(name) for name, _ in SIMULATED}
    return {
        "nearbank": __version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "model": model.card,
        "sampling": vars(options.sampling),
        "tokens": options.tokens,
        "machines": {name: machine.digest for name, machine in machines.items()},
        "unverified_constants": {name: machine.unverified() for name, machine in machines.items()},
    }

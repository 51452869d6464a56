"""Running a model and writing the trace of what it executed, each operation with its measured time.

Rows reach the file between passes, so writing is in no measured time.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nearbank import __version__
from nearbank.models.energy import read_energy, spent
from nearbank.models.execution import Tokens
from nearbank.models.generate import (
    GREEDY,
    Generation,
    Progress,
    StepResult,
    begun_with,
    chosen_steps,
    collect,
    prompt_numbers,
)
from nearbank.models.model import Model
from nearbank.models.sampling import Sampling
from nearbank.models.search import Search
from nearbank.trace import TraceHeader, TraceWriter


def record(
    model: Model,
    prompt: str | Sequence[int],
    tokens: int,
    path: Path,
    sampling: Sampling = GREEDY,
    progress: Progress | None = None,
    search: Search | None = None,
) -> Generation:
    """Generate as `nearbank.models.generate.generate` does, and write every operation to a trace at `path`.

    Scores and softmax run inside the kernel that makes the context product: their rows have no time, and the
    context product's row has the time of the three.
    """
    numbers = prompt_numbers(model, prompt)
    passes = chosen_steps(model, numbers, tokens, sampling, search, record=True)
    results = []
    before = read_energy(model.backend)
    with TraceWriter(path, header(model, numbers, tokens, sampling, search or model.search)) as writer:
        for result in passes:
            _write(writer, result)
            results.append(replace(result, rows=()))
            if progress is not None:
                progress(len(results), tokens)
        energy = spent(before, read_energy(model.backend))
    return collect(model, len(numbers), results, energy)


def _write(writer: TraceWriter, result: StepResult) -> None:
    for layer, operation, time_ns in result.rows:
        writer.append(result.index, result.phase, layer, operation, time_ns)


def header(
    model: Model, prompt: Tokens, new_tokens: int, sampling: Sampling, search: Search | None = None
) -> TraceHeader:
    """What the trace of a run says about itself."""
    return TraceHeader(
        model=model.description(),
        origin="recorded",
        prompt_tokens=len(begun_with(model, [prompt], search)[0]),
        new_tokens=new_tokens,
        source_tokens=None if model.shape.encoder is None else len(prompt),
        beams=search.beams if search else 1,
        weights=model.weights,
        kv=model.kv_name,
        device=cpu_name(),
        backend=model.backend,
        threads=model.threads,
        seed=sampling.seed if sampling.temperature > 0 else None,
        nearbank_version=__version__,
    )


def cpu_name() -> str:
    """The processor's name as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

"""Train the larger models of docs/quality.md on one GPU, side by side, within a given time:

    PYTHONPATH=src python benchmarks/quality_gpu.py TEXT --out FOLDER [--seconds 230]

The decoders (4 layers of 256) and the encoder-decoders (2 + 2 layers of 256) are two processes; in each the teacher
comes first and its students then share the GPU, four at a time on streams of their own. When the time is over, runs
stop where they are. Always leaves in FOLDER: `results.json` with a row for every finished run and a note for every
other, `fp-control.safetensors`, and `trained.tar` with the low-bit checkpoints, cards and logs. A run started again
with the same --work goes on from the states saved there. `--device cpu --tiny` tries all of it out without a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from quality_models import CONTROL, SMALL, SMALL_RESTORER, row, runs

from nearbank.models.training import TrainOptions, train
from nearbank.models.training.loop import Progress, read_log

DECODER = replace(
    SMALL, layers=4, width=256, context=256, batch=16, twin_steps=1550, student_steps=2500, dropout=0.1, device="cuda",
    save_every=500,
)  # fmt: skip
RESTORER = replace(
    SMALL_RESTORER, width=256, context=120, batch=32, twin_steps=2500, student_steps=1500, device="cuda", save_every=500
)
TINY = {"layers": 1, "width": 16, "heads": 2, "context": 20, "batch": 4, "twin_steps": 30, "student_steps": 20}
FAMILIES = ("continue", "restore")
# The first runs to start after the teacher: what the page cannot do without.
FIRST = (CONTROL, "2-8", "2-2", "1-1", "twn-2", "bwn-1")
SIDE_BY_SIDE = 4
TO_PACK_S = 10  # of the time, kept for packing
TO_STOP_S = 20  # a process that has not stopped so long after its time is ended


class OutOfTimeError(Exception):
    """The time is over; the states saved so far are kept."""


@dataclass(frozen=True)
class Work:
    """What a process is to do. until: seconds of the epoch; results: a folder for one JSON file per run."""

    text: Path
    folder: Path
    until: float
    device: str
    tiny: bool

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def wanted(self) -> list[TrainOptions]:
        """Every run of both families, sized for the device."""
        changes: dict[str, Any] = {"device": self.device, **(TINY if self.tiny else {})}
        decoder, restorer = (replace(options, **changes) for options in (DECODER, RESTORER))
        return list(runs(self.text, self.folder, decoder, restorer))


def train_family(work: Work, task: str) -> None:
    """The teacher of a family, then its students."""
    teacher, *students = [options for options in work.wanted() if options.task == task]
    train_one(work, teacher)
    students.sort(key=lambda options: FIRST.index(options.name) if options.name in FIRST else len(FIRST))
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        list(pool.map(lambda options: train_one(work, options), students))


def train_one(work: Work, options: TrainOptions) -> None:
    """One run, its result as a file: a row, or why there is none."""
    began = time.perf_counter()
    try:
        trained = train(options, work.folder / options.name, watcher(work, options.name))
        found = {**row(options, trained), "elapsed_s": round(time.perf_counter() - began, 1)}
    except OutOfTimeError:
        found = {"name": options.name, "unfinished": "out of time", **reached(work.folder / options.name)}
    except Exception as error:  # the other runs go on
        found = {"name": options.name, "unfinished": f"{type(error).__name__}: {error}"}
    (work.results / f"{options.name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{options.name}: {found.get('nats_per_character', found.get('unfinished'))}", flush=True)


def watcher(work: Work, name: str) -> Progress:
    """Stops a run when the time is over, and says now and then where it is."""

    def watch(phase: str, step: int, steps: int, loss: float) -> None:
        if step == steps or step % 250 == 0:
            print(f"{work.until - time.time():6.1f} s left  {name} {phase} {step}/{steps} {loss:.4f}", flush=True)
        if step < steps and time.time() > work.until:
            raise OutOfTimeError

    return watch


def reached(folder: Path) -> dict[str, Any]:
    """How far a stopped run came, by its logs."""
    logs = {log.name.partition(".")[0]: read_log(log) for log in sorted(folder.glob("*.log.jsonl"))}
    return {"steps_taken": {phase: len(rows) for phase, rows in logs.items()}}


def run_processes(work: Work, arguments: Sequence[str]) -> None:
    """A process for each family; none outlives the time for long."""
    command = [sys.executable, __file__, *arguments, "--until", str(work.until)]
    processes = [subprocess.Popen([*command, "--family", family]) for family in FAMILIES]
    for process in processes:
        try:
            process.wait(max(1.0, work.until + TO_STOP_S - time.time()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def pack(work: Work, out: Path) -> None:
    """The results and checkpoints, in few files."""
    rows = [result(work, options.name) for options in work.wanted()]
    summary = {"device": described(work.device), "rows": rows}
    (out / "results.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    control = work.folder / CONTROL / f"{CONTROL}.safetensors"
    if control.exists():
        (out / control.name).write_bytes(control.read_bytes())
    with tarfile.open(out / "trained.tar", "w") as tar:
        for path in kept(work):
            tar.add(path, path.relative_to(work.folder))


def result(work: Work, name: str) -> Any:
    """What a run left."""
    file = work.results / f"{name}.json"
    if not file.exists():
        return {"name": name, "unfinished": "not started, or ended from outside"}
    return json.loads(file.read_text(encoding="utf-8"))


def kept(work: Work) -> Iterator[Path]:
    """Cards, options and logs of every run, and the packed checkpoints of decoders."""
    for options in work.wanted():
        folder = work.folder / options.name
        yield from (path for path in sorted(folder.glob("*")) if path.suffix in (".md", ".json", ".jsonl"))
        packed = folder / f"{options.name}.safetensors"
        if packed.exists() and options.recipe.rounds and options.task == "continue":
            yield packed


def described(device: str) -> dict[str, Any]:
    """Where this ran."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    return {"name": name, "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/quality-gpu"), help="states and whole checkpoints")
    parser.add_argument("--seconds", type=float, default=230.0, help="for all of it")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models that only show that the script runs")
    parser.add_argument("--family", choices=FAMILIES, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    until = arguments.until or time.time() + arguments.seconds - TO_PACK_S
    work = Work(arguments.text, arguments.work, until, arguments.device, arguments.tiny)
    for folder in (work.results, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
    if arguments.family:
        train_family(work, arguments.family)
    else:
        run_processes(work, sys.argv[1:])
        pack(work, arguments.out)


if __name__ == "__main__":
    main()

"""Train the small models of docs/quality.md, each as one JSON file in docs/quality: `make quality TEXT=file`.

    python benchmarks/quality_models.py TEXT [--out build/quality] [--results docs/quality] [--only 2-8 ...]

One after the other, on one thread; a killed run resumes where it was, a finished one is not trained again.
`quality_formats.py` rounds the full-precision model afterwards, `quality_page.py` writes the page. `quality_gpu.py`
trains the larger ones of docs/quality/gpu side by side.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from nearbank.formats import FORMATS
from nearbank.models.config import ModelConfig
from nearbank.models.record import cpu_name
from nearbank.models.training import TrainOptions, train
from nearbank.models.training.optimiser import working_dtype
from nearbank.models.training.run import Restorer, Trained

RESULTS = Path(__file__).parents[1] / "docs" / "quality"
TEACHER = "fp"
CONTROL = "fp-control"
SMALL = TrainOptions(
    text=Path(), name=TEACHER, precision="fp", layers=3, width=128, heads=4, context=128, batch=16, twin_steps=1800,
    student_steps=1500, decay_percent=35, dropout=0.0, threads=1, seed=1,
)  # fmt: skip
STUDENT_DECAY_PERCENT = 90  # rounded weights settle only while the rate falls
# name, precision, peak learning rate: with activations of few bits a student has farther to go, as in the paper.
STUDENTS = (
    (CONTROL, "fp", 2e-3),
    ("2-8", "2-8", 2e-3),
    ("1-8", "1-8", 2e-3),
    ("2-2", "2-2", 4e-3),
    ("1-1", "1-1", 4e-3),
    ("twn-2", "twn-2", 4e-3),
    ("bwn-1", "bwn-1", 4e-3),
)
RESTORER = "restore-fp"
RESTORER_CONTROL = "restore-fp-control"
SMALL_RESTORER = replace(
    SMALL, name=RESTORER, task="restore", layers=2, context=60, batch=24, twin_steps=600, student_steps=400
)
RESTORERS = ((RESTORER_CONTROL, "fp", 2e-3), ("restore-2-2-8", "2-2-8", 2e-3), ("restore-1-1-8", "1-1-8", 2e-3))
DISTILLED = {"hidden_weight": 1.0, "attention_weight": 0.1}  # the baselines learn from the text alone


def runs(text: Path, out: Path, decoder: TrainOptions, restorer: TrainOptions) -> Iterator[TrainOptions]:
    """Each teacher, then everyone it teaches; a run's name is its folder's."""
    for teacher, students in ((decoder, STUDENTS), (restorer, RESTORERS)):
        yield replace(teacher, text=text)
        for name, precision, lr in students:
            student = replace(
                teacher, text=text, name=name, precision=precision, teacher=out / teacher.name, student_lr=lr,
                decay_percent=STUDENT_DECAY_PERCENT,
            )  # fmt: skip
            yield replace(student, **DISTILLED) if student.recipe.distilled else student


def row(options: TrainOptions, trained: Trained | Restorer) -> dict[str, Any]:
    """What the page needs to know of a run. Losses in nats per character over the whole validation split."""
    kept = (
        "precision", "task", "layers", "width", "heads", "context", "batch", "decay_percent", "hidden_weight",
        "attention_weight", "seed", "threads",
    )  # fmt: skip
    result = _restored(trained) if isinstance(trained, Restorer) else _continued(trained)
    return {
        "name": options.name,
        **result,
        "steps": options.student_steps if options.has_student else options.twin_steps,
        "lr": options.student_lr if options.has_student else options.twin_lr,
        **{key: getattr(options, key) for key in kept},
        "products": str(working_dtype(options.device)).removeprefix("torch."),
        "training_time_s": round(trained.training_time_s, 1),
        "machine": machine(options.device),
        "torch": version("torch"),
        "date": datetime.now(UTC).date().isoformat(),
        "data_sha256": hashlib.sha256(options.text.read_bytes()).hexdigest(),
    }


def machine(device: str) -> str:
    """What trained."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {os.cpu_count()} cores, shared"


def _continued(trained: Trained) -> dict[str, Any]:
    config = trained.checkpoint.config
    return {
        "nats_per_character": trained.checkpoint.origin.val_loss_nats,
        "block_weight_bytes": block_bytes(config),
        "block_parameters": config.block_parameters(),
        "parameters": config.parameters(),
    }


def _restored(trained: Restorer) -> dict[str, Any]:
    """damaged: over masked and changed characters alone."""
    return {
        "nats_per_character": trained.val_loss_nats,
        "damaged_nats_per_character": trained.damaged_nats,
        "block_weight_bytes": trained.block_weight_bytes,
        "parameters": trained.parameters,
    }


def block_bytes(config: ModelConfig) -> int:
    """Bytes of the block matrices in their format, scales included."""
    return sum(FORMATS[config.weights].bytes_for(m.outputs, m.inputs) for m in config.all_block_matrices())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/quality"))
    parser.add_argument("--only", nargs="*", default=None, help="names of runs; all when absent")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    for options in runs(arguments.text, arguments.out, SMALL, SMALL_RESTORER):
        if arguments.only is None or options.name in arguments.only:
            found = row(options, train(options, arguments.out / options.name))
            (arguments.results / f"{options.name}.json").write_text(
                json.dumps(found, indent=2) + "\n", encoding="utf-8"
            )
            print(f"{options.name}: {found['nats_per_character']:.4f} nats per character", flush=True)


if __name__ == "__main__":
    main()

"""`nearbank train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nearbank.cli.output import Json, output_folder, print_json


def train(
    text: Annotated[Path, typer.Argument(help="UTF-8 text: the first 90 % trains, the last 10 % validates.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, its card and what a resumed run needs.")],
    layers: Annotated[int | None, typer.Option(help="Transformer blocks.")] = None,
    width: Annotated[int | None, typer.Option(help="Values per token between blocks.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads.")] = None,
    context: Annotated[int | None, typer.Option(help="Characters the model sees at once.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences per step.")] = None,
    twin_steps: Annotated[int | None, typer.Option(help="Steps of the full-precision twin.")] = None,
    student_steps: Annotated[int | None, typer.Option(help="Steps of the low-bit student.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, batches and dropout.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    as_json: Json = False,
) -> None:
    """Train a character model and its ternary student by distillation; an interrupted run resumes."""
    given = {
        "layers": layers,
        "width": width,
        "heads": heads,
        "context": context,
        "batch": batch,
        "twin_steps": twin_steps,
        "student_steps": student_steps,
        "seed": seed,
        "threads": threads,
        "device": device,
    }
    result = _run(text, out, {key: value for key, value in given.items() if value is not None})
    if as_json:
        print_json(result)
    else:
        print("\n".join(f"{key}: {value}" for key, value in result.items()))


def _run(text: Path, out: Path, given: dict[str, Any]) -> dict[str, Any]:
    from nearbank.models.training import TrainOptions, train

    return train(TrainOptions(text=text, **given), output_folder(out)).summary()

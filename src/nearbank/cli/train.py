"""`nearbank train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nearbank.cli.output import Json, output_folder, print_json

PRECISIONS = "fp, 2-8, 1-8, 2-2, 1-1 (weights, activations), twn-2, bwn-1 (naive), 2-2-8, 1-1-8 (to restore)."


def train(
    text: Annotated[Path, typer.Argument(help="UTF-8 text: the first 90 % trains, the last 10 % validates.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, its card and what a resumed run needs.")],
    task: Annotated[str | None, typer.Option(help="continue, or restore damaged text (encoder and decoder).")] = None,
    precision: Annotated[str | None, typer.Option("--precision", "--variant", help=PRECISIONS)] = None,
    form: Annotated[str | None, typer.Option(help="Quantisers' form: paper, or reference (the authors' code).")] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Folder of a run whose twin teaches; else it is trained.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name, and its files'.")] = None,
    layers: Annotated[int | None, typer.Option(help="Transformer blocks.")] = None,
    width: Annotated[int | None, typer.Option(help="Values per token between blocks.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads.")] = None,
    context: Annotated[int | None, typer.Option(help="Characters the model sees at once.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences per step.")] = None,
    twin_steps: Annotated[int | None, typer.Option(help="Steps of the full-precision twin.")] = None,
    student_steps: Annotated[int | None, typer.Option(help="Steps of the low-bit student.")] = None,
    twin_lr: Annotated[float | None, typer.Option(help="Peak learning rate of the twin.")] = None,
    student_lr: Annotated[float | None, typer.Option(help="Peak learning rate of the student.")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps over which the learning rate rises.")] = None,
    decay_percent: Annotated[int | None, typer.Option(help="Share of the last steps over which it falls to 0.")] = None,
    hidden_weight: Annotated[float | None, typer.Option(help="Weight of the teacher's hidden states.")] = None,
    attention_weight: Annotated[float | None, typer.Option(help="Weight of the teacher's attention scores.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Share of channels dropped while the twin trains.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, batches and dropout.")] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between states that a resumed run can start from.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    as_json: Json = False,
) -> None:
    """Train a character model and its low-bit student by distillation; an interrupted run resumes."""
    settings = {key: value for key, value in locals().items() if key not in ("text", "out", "as_json")}
    result = _run(text, out, {key: value for key, value in settings.items() if value is not None})
    if as_json:
        print_json(result)
    else:
        print("\n".join(f"{key}: {value}" for key, value in result.items()))


def _run(text: Path, out: Path, given: dict[str, Any]) -> dict[str, Any]:
    from nearbank.models.training import TrainOptions, train

    trained = train(TrainOptions(text=text, **given), output_folder(out))
    return {**trained.summary(), "plot": str(_plot(out))}


def _plot(out: Path) -> Path:
    """The run's loss over its steps, drawn from its logs."""
    from matplotlib.figure import Figure

    from nearbank.models.training.loop import read_log
    from nearbank.plot.picture import write_picture
    from nearbank.plot.training import loss_curves

    found = [(name, out / f"{name}.log.jsonl") for name in ("twin", "student")]
    figure = Figure(figsize=(7, 4), layout="constrained")
    loss_curves({name: read_log(log) for name, log in found if log.exists()}, figure.subplots())
    return write_picture(figure, out / "loss.svg")

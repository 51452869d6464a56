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
    task: Annotated[
        str | None, typer.Option(help="continue, or restore damaged text (encoder-decoder).", show_default="continue")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", "--variant", help=PRECISIONS, show_default="2-8")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(help="Quantisers' form: paper, or reference (the authors' code).", show_default="paper"),
    ] = None,
    teacher: Annotated[Path | None, typer.Option(help="Folder of a run that teaches; else one is trained.")] = None,
    name: Annotated[str | None, typer.Option(help="The model's name, and its files'.", show_default="ternary")] = None,
    layers: Annotated[int | None, typer.Option(help="Transformer blocks.", show_default="4")] = None,
    width: Annotated[int | None, typer.Option(help="Values per token between blocks.", show_default="256")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads.", show_default="4")] = None,
    context: Annotated[int | None, typer.Option(help="Characters the model sees at once.", show_default="256")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences per step.", show_default="16")] = None,
    twin_steps: Annotated[
        int | None, typer.Option(help="Steps of the full-precision twin.", show_default="1550")
    ] = None,
    student_steps: Annotated[
        int | None, typer.Option(help="Steps of the low-bit student.", show_default="1700")
    ] = None,
    twin_lr: Annotated[float | None, typer.Option(help="Peak learning rate of the twin.", show_default="0.002")] = None,
    student_lr: Annotated[
        float | None, typer.Option(help="Peak learning rate of the student.", show_default="0.002")
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(help="Steps over which the learning rate rises.", show_default="40")
    ] = None,
    decay_percent: Annotated[
        int | None, typer.Option(help="Share of the last steps over which it falls to 0.", show_default="35")
    ] = None,
    hidden_weight: Annotated[
        float | None, typer.Option(help="Weight of the teacher's hidden states.", show_default="0.0")
    ] = None,
    attention_weight: Annotated[
        float | None, typer.Option(help="Weight of the teacher's attention scores.", show_default="0.0")
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(help="Share of channels dropped while the twin trains.", show_default="0.1")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, batches and dropout.", show_default="1")] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between states that a resumed run can start from.", show_default="100")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", show_default="2")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cpu")] = None,
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

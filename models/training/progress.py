"""A progress bar for a training run: on a terminal's stderr, silent elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from nearbank.models.training.loop import Progress as Watcher


@contextmanager
def training_bar() -> Iterator[Watcher]:
    """Yields what `run` calls after every step: one bar per phase, with the loss."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:

        def advance(phase: str, step: int, steps: int, loss: float) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=steps, loss=loss)
            bar.update(tasks[phase], completed=step, loss=loss)

        yield advance

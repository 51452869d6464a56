"""How commands talk: one JSON object on stdout, or tables; progress and remarks only on a terminal's stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nearbank.errors import NearbankError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
INTERRUPTED = 130  # the status a shell gives a command that Ctrl-C stopped
Advance = Callable[[int], None]


def console() -> Console:
    """Where tables go. A pipe gets as much width as the widest table needs."""
    return Console(width=None if sys.stdout.isatty() else 180, highlight=False)


def print_json(content: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    print(json.dumps(content, default=str, allow_nan=False))


@contextmanager
def progress(description: str, total: int) -> Iterator[Advance]:
    """A progress bar on a terminal, silence elsewhere; yields a function that sets how much is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """As `progress`, for work of several kinds; yields a function of what is done now, how much, and of how much."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("")
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def output_folder(out: Path) -> Path:
    """`out`, made if need be; `NearbankError` when it cannot hold files."""
    if out.exists() and not out.is_dir():
        raise NearbankError(f"{out}: is a file; --out expects a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NearbankError(f"{out}: cannot make this folder ({error.strerror}); choose another --out") from error
    return out

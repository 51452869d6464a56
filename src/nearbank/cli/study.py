"""`nearbank study`: one question over many machines, models, formats and contexts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nearbank.cli.options import Scheduler, Workers
from nearbank.cli.output import Json, console, output_folder, print_json, stages
from nearbank.errors import NearbankError

if TYPE_CHECKING:
    from nearbank.study import StudyResults

study = typer.Typer(help="Studies: axes over machines, models, formats and contexts.", no_args_is_help=True)

Rows = Annotated[int, typer.Option(help="Rows to print; 0 for all.")]


@study.command("run")
def run_study(
    file: Annotated[Path, typer.Argument(help="A study's YAML file.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; nearbank-out/study/NAME when absent.")
    ] = None,
    parts: Annotated[Path | None, typer.Option(help="Share the points in this folder with other studies.")] = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    rows: Rows = 40,
    as_json: Json = False,
) -> None:
    """Play what is not there yet, and write table.parquet, study.html and figures. Resumes where it stopped."""
    from nearbank.study import load_study, run
    from nearbank.study.page import write_page
    from nearbank.study.pool import default_workers

    asked = load_study(file)
    folder = output_folder(out or Path("nearbank-out/study") / asked.name)
    count = default_workers() if workers is None else workers
    with stages() as stage:
        results = run(asked, folder, workers=count, scheduler=scheduler, parts=parts, stage=stage)
    write_page(results, folder)
    _show(results, folder, rows, as_json)


@study.command("show")
def show(
    folder: Annotated[Path, typer.Argument(help="What `study run` wrote, finished or not.")],
    x: Annotated[str | None, typer.Option(help="Draw --metric along this axis.")] = None,
    by: Annotated[str | None, typer.Option(help="Of --x: a line, of --front: a colour for each value.")] = None,
    y: Annotated[str | None, typer.Option(help="With --x: a heat map over both axes.")] = None,
    metric: Annotated[str, typer.Option(help="What --x draws.")] = "time_ns_per_token",
    front: Annotated[
        str | None, typer.Option(help="Two metrics, with a comma: draw the front that nothing beats.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="The picture of --x or --front, .png or .svg.")] = None,
    rows: Rows = 40,
    as_json: Json = False,
) -> None:
    """The table of a study, also of one that was stopped; its page again; or one picture."""
    from nearbank.study import load_results
    from nearbank.study.page import write_page

    results = load_results(folder)
    if (x or front) is None:
        if y or by or save:
            raise NearbankError("--y, --by and --save draw a picture; give --x AXIS or --front METRIC,METRIC with them")
        write_page(results, folder)
    else:
        _draw(results, x, y, by, metric, front, save or folder / "picture.png")
    _show(results, folder, rows, as_json)


@study.command("fields")
def fields(
    machine: Annotated[str, typer.Argument(help="A machine's name or YAML file.")] = "pim-gpt",
    as_json: Json = False,
) -> None:
    """What a study's base and axes may name on a machine."""
    from nearbank.sim.machine import load_machine
    from nearbank.sim.variant import fields_of
    from nearbank.study.knobs import KNOBS
    from nearbank.study.metrics import METRICS
    from nearbank.study.settings import FIELDS

    paths = fields_of(load_machine(machine))
    if as_json:
        print_json({"run": list(FIELDS), "knobs": list(KNOBS), "machine": list(paths), "metrics": list(METRICS)})
        return
    print(f"run: {', '.join(FIELDS)}")
    for name, knob in KNOBS.items():
        print(f"{name}: {knob.about}{f' [{knob.unit}]' if knob.unit else ''}")
    print("\n".join(paths))


def _draw(
    results: StudyResults, x: str | None, y: str | None, by: str | None, metric: str, front: str | None, path: Path
) -> None:
    from nearbank.plot.picture import write_picture
    from nearbank.study import figures

    if front is not None:
        first, comma, second = front.partition(",")
        if not comma:
            raise NearbankError(
                f"--front {front!r}: expected two metrics with a comma, such as time_ns_per_token,quality"
            )
        fig = figures.front(results, first.strip(), second.strip(), by)
    elif y is not None:
        fig = figures.heat_map(results, str(x), y, metric)
    else:
        fig = figures.lines(results, str(x), metric, by)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise NearbankError(f"--save {path}: expected a name that ends in .png, .svg or .pdf")
    write_picture(fig, path, dpi=140)


def _show(results: StudyResults, folder: Path, most: int, as_json: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from nearbank.study.page import cells, headings, summary

    if as_json:
        print_json(results.as_json())
        return
    screen = console()
    screen.print(results.study.title or results.study.name, style="bold")
    table = Table(*map(escape, headings(results)))
    best = {id(row) for row in results.front()}
    for row in results.rows[: most or None]:
        table.add_row(*map(escape, cells(results, row, best)))
    screen.print(table)
    hidden = len(results.rows) - most if most else 0
    if hidden > 0:
        screen.print(f"{hidden} more rows; --rows 0 prints all.", style="dim")
    for line in summary(results):
        screen.print(line)
    screen.print(
        f"{results.reused} points were there before; {folder}/ has the table, the page and figures.", style="dim"
    )

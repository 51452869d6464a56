"""`nearbank reproduce`: a published system run again, its numbers beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nearbank.cli.options import Out, Scheduler, Workers
from nearbank.cli.output import Json, console, output_folder, print_json, stages
from nearbank.errors import NearbankError

if TYPE_CHECKING:
    from nearbank.reproduce import Results

SYSTEMS = ("pim-gpt",)


def reproduce(
    system: Annotated[str, typer.Argument(help=f"What to reproduce: {', '.join(SYSTEMS)}.")],
    out: Out = Path("nearbank-out/reproduce"),
    quick: Annotated[bool, typer.Option("--quick", help="Few tokens: seconds, not the published setting.")] = False,
    docs: Annotated[Path | None, typer.Option(help="Also write reproduction.md with its figures here.")] = None,
    given: Annotated[Path | None, typer.Option("--from", help="Take these results instead of running.")] = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Run a published system again: one table and figures, its numbers beside ours. Resumes where it stopped."""
    from nearbank.reproduce.page import write_page
    from nearbank.reproduce.results import load_results

    if system not in SYSTEMS:
        raise NearbankError(f"unknown system {system!r}; known: {', '.join(SYSTEMS)}")
    results = _run(output_folder(out), quick, workers, scheduler) if given is None else load_results(given)
    if given is None:
        write_page(results, out)
    if docs is not None:
        write_page(results, output_folder(docs))
    if as_json:
        print_json(results.as_json())
    else:
        _show(results, docs or out)


def _run(out: Path, quick: bool, workers: int | None, scheduler: str | None) -> Results:
    from nearbank.reproduce.pim_gpt import QUICK, Options, reproduce_pim_gpt
    from nearbank.study.pool import pool_for

    with pool_for(workers, scheduler) as pool, stages() as stage:
        return reproduce_pim_gpt(QUICK if quick else Options(), out / "parts", stage, pool)


def _show(results: Results, folder: Path) -> None:
    from rich.table import Table

    from nearbank.reproduce.page import CLAIM_HEADINGS, ROW_HEADINGS, claim_cells, row_cells

    screen = console()
    note = "; a quick run, not the published setting" if results.quick else ""
    screen.print(f"PIM-GPT: {results.prompt} prompt token, {results.tokens} new ones, bf16{note}", style="bold")
    for headings, lines in (
        (ROW_HEADINGS, [row_cells(row) for row in results.rows]),
        (CLAIM_HEADINGS, [claim_cells(claim) for claim in results.published]),
    ):
        table = Table(*headings)
        for cells in lines:
            table.add_row(*cells)
        screen.print(table)
    for name, why in results.refused.items():
        screen.print(f"not run: {name}: {why}", style="dim")
    screen.print(f"{folder / 'reproduction.md'} has sensitivities, constants and figures.", style="dim")

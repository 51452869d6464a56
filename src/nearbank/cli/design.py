"""`nearbank design`: studies of what a bank should be, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from nearbank.cli.output import Json, console, print_json
from nearbank.errors import NearbankError

PICTURES = ("crossover", "power")


def design(
    study: Annotated[str, typer.Argument(help="crossover (batches beside GPUs), power (tFAW, budgets), dequantise.")],
    picture: Annotated[Path | None, typer.Option(help="Also draw it into this file (.svg, .png, .pdf).")] = None,
    as_json: Json = False,
) -> None:
    """Print a study of GPT3-XL's shape on PIM-GPT's bank and its low-bit kin, each step played command by command."""
    from nearbank.design.tables import STUDIES

    if study not in STUDIES:
        raise NearbankError(f"study {study!r} is unknown; expected one of: {', '.join(STUDIES)}")
    if picture is not None and study not in PICTURES:
        raise NearbankError(f"study {study!r} has no picture; those that have one: {', '.join(PICTURES)}")
    tables = []
    for table in STUDIES[study]():
        tables.append(table)
        if not as_json:
            console().print(table.markdown() + "\n", markup=False, soft_wrap=True)
    if as_json:
        print_json({"study": study, "tables": [{"heading": t.heading, "rows": list(t.rows)} for t in tables]})
    if picture is not None:
        _draw(study, [table.rows for table in tables], picture)


def _draw(study: str, tables: list[Sequence[Mapping[str, Any]]], path: Path) -> None:
    from matplotlib.figure import Figure

    from nearbank.plot import design as plots
    from nearbank.plot.picture import write_picture

    width = 7.5 if study == "crossover" else 11
    figure = Figure(figsize=(width, 4.5), layout="constrained")
    if study == "crossover":
        plots.crossover(tables[0], figure.subplots())
    else:
        left, right = figure.subplots(1, 2)
        plots.power(tables[0], "tfaw_ns", left)
        plots.power(tables[1], "budget", right)
    write_picture(figure, path)

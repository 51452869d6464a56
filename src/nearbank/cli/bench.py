"""`nearbank bench`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from nearbank.cli.output import Json, console, print_json


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="A few shapes only, in seconds.")] = False,
    as_json: Json = False,
) -> None:
    """Time the kernels on this machine, beside its measured memory bandwidth."""
    from nearbank.kernels.bench import run

    result = run(quick=quick)
    if as_json:
        print_json(result)
        return
    rows = result["rows"]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    console().print(table)

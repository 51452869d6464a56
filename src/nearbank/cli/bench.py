"""`nearbank bench`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from nearbank.cli.output import INTERRUPTED, Json, console, print_json, stages

COLUMNS = ("kernel", "backend", "threads", "M", "N", "K", "format", "", "µs", "GB/s", "of limit")


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="A few shapes only: about a minute.")] = False,
    as_json: Json = False,
) -> None:
    """Time the kernels on this machine, beside its measured memory bandwidth.

    K and V count as N tokens of K numbers. Ctrl-C ends it with the rows measured so far.
    """
    from nearbank.kernels.bench import run

    with stages() as tell:
        result = run(quick=quick, progress=tell)
    if as_json:
        print_json(result)
    else:
        console().print(_table(result))
    if not result["complete"]:
        raise typer.Exit(INTERRUPTED)


def _table(result: dict[str, Any]) -> Table:
    rows = result["rows"]
    limits = {row["threads"]: row["limit_gb_per_s"] for row in rows}
    reads = ", ".join(f"{limit:.1f} GB/s with {count} thread{'s' * (count > 1)}" for count, limit in limits.items())
    title = f"{result['machine']['cpu']}, {result['date']}"
    table = Table(title=title, caption=f"The limit is this machine reading memory: {reads}." if rows else None)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("kernel", "backend", "format", "") else "right")
    for row in rows:
        given = [str(row[name]) for name in ("kernel", "backend", "threads", "m", "n", "k", "format")]
        share = f"{row['fraction_of_limit']:.1%}"
        speed = f"{row['gb_per_s']:.2f}"
        table.add_row(*given, "cold" if row["cold"] else "hot", f"{row['time_us']:,.0f}", speed, share)
    return table

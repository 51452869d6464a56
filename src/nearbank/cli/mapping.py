"""`nearbank map`: where a mapping puts a model, and how near it comes to its bounds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearbank.cli.options import Kv, Mapping, Weights
from nearbank.cli.output import Json, console, print_json
from nearbank.errors import NearbankError

if TYPE_CHECKING:
    from nearbank.mapping import Plan
    from nearbank.mapping.search import Found
    from nearbank.workload import Workload

PICTURES = (".svg", ".png", ".pdf")


def map_model(
    models: Annotated[list[str], typer.Argument(help="Shapes by name, such as gpt3-xl; several give one table.")],
    machine: Annotated[str, typer.Option(help="A machine's name or YAML file (see `machines`).")] = "pim-gpt",
    weights: Weights = None,
    kv: Kv = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the run that space is kept for.")] = 1024,
    mapping: Mapping = "pim-gpt",
    picture: Annotated[Path | None, typer.Option(help="Draw one model's mapping into this .svg, .png or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """What a mapping decided for a model: which tensor lies where, its bounds, what `--mapping auto` gains."""
    _check(models, tokens, picture)
    from nearbank.replay import find_mapping, mapping_named, plan_of
    from nearbank.workload import sketch_workload

    auto, by_use = mapping_named(mapping) != "pim-gpt", mapping == "auto-by-use"
    rows: list[dict[str, Any]] = []
    for name in models:
        load = sketch_workload(name, 1, tokens)
        found = find_mapping(load, machine, weights=weights, kv=kv, by_use=by_use) if auto else None
        placed = found.plan if found else plan_of(load, machine, weights=weights, kv=kv)
        rows.append(_row(load, placed, found))
        if picture is not None:
            _draw(placed, picture)
    if as_json:
        print_json({"machine": machine, "mapping": mapping, "tokens": tokens, "models": rows})
    elif len(rows) == 1:
        _say(rows[0])
    else:
        _show(rows)


def _check(models: list[str], tokens: int, picture: Path | None) -> None:
    if tokens < 1:
        raise NearbankError(f"--tokens {tokens}: expected 1 or more")
    if picture is None:
        return
    if len(models) > 1:
        raise NearbankError(f"--picture {picture} shows one model, but {len(models)} were named; name one")
    if picture.suffix not in PICTURES:
        raise NearbankError(f"--picture {picture}: expected a name that ends in {', '.join(PICTURES)}")


def _row(load: Workload, placed: Plan, found: Found | None) -> dict[str, Any]:
    """What one mapping decided, what it must take and, where it was searched, what was gained."""
    from nearbank.mapping import bounds, describe

    context = load.prompt_tokens + (load.tokens - 1) / 2
    least = bounds(placed, placed.machine, context)
    row: dict[str, Any] = {
        "model": load.model.name,
        "rows": placed.placement.rows,
        "rows_of_a_bank": placed.target.rows,
        "ideal_ns": least.ideal_ns,
        "row_aware_ns": least.row_aware_ns,
        "placed_ns": least.placed_ns,
        "decided": describe(placed),
        "regions": [
            {"tensor": r.tensor, "first_row": r.first_row, "rows": r.rows, "stride": r.stride, "copies": r.copies}
            for r in placed.placement.regions
        ],
    }
    if found:
        row |= {
            "default_ns": found.default_ns,
            "auto_ns": found.best_ns,
            "gain_percent": found.percent,
            "gains": [{"choice": g.choice, "percent": g.percent} for g in found.gains],
            "gap_percent": found.gap.percent,
            "gap_parts_ns": found.gap.parts_ns,
            "mapper": found.lines(),
        }
    return row


def _say(row: dict[str, Any]) -> None:
    screen = console()
    for line in row["decided"]:
        screen.print(line, markup=False)
    screen.print(
        f"a token takes at least {row['ideal_ns'] / 1e3:.1f} us with MAC units that never idle, "
        f"{row['row_aware_ns'] / 1e3:.1f} us with rows and refresh, {row['placed_ns'] / 1e3:.1f} us as placed"
    )
    for line in row.get("mapper", ()):
        screen.print(line, markup=False)


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    columns = {"default us": "default_ns", "auto us": "auto_ns"} if "auto_ns" in rows[0] else {}
    columns |= {"bound of any mapping us": "row_aware_ns", "bound as placed us": "placed_ns"}
    percents = {"gain %": "gain_percent", "gap %": "gap_percent"} if "auto_ns" in rows[0] else {}
    shown = Table("Model", *columns, *percents)
    for row in rows:
        times = [f"{row[key] / 1e3:.1f}" for key in columns.values()]
        shown.add_row(row["model"], *times, *(f"{row[key]:.1f}" for key in percents.values()))
    console().print(shown)


def _draw(placed: Plan, picture: Path) -> None:
    from nearbank.plot.mapping import mapping_figure
    from nearbank.plot.picture import write_picture

    write_picture(mapping_figure(placed), picture, dpi=150)

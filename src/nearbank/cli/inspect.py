"""`nearbank validate`, `machines` and `formats`: looking at files and registries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from nearbank.cli.output import Json, console, print_json


def validate(
    file: Annotated[Path, typer.Argument(help="A trace (.parquet) or a machine (.yaml).")], as_json: Json = False
) -> None:
    """Check a trace or a machine file; the first error is named with row, column and expectation."""
    found = _machine(file) if file.suffix in (".yaml", ".yml") else _trace(file)
    if as_json:
        print_json({"file": file, "valid": True, **found})
    else:
        console().print(f"{file}: valid; " + ", ".join(f"{key} {value}" for key, value in found.items()))


def _machine(file: Path) -> dict[str, Any]:
    from nearbank.sim.machine import load_machine

    machine = load_machine(str(file))
    return {"machine": machine.name, "standard": machine.standard, "unverified_constants": len(machine.unverified())}


def _trace(file: Path) -> dict[str, Any]:
    from nearbank.trace import open_trace

    trace = open_trace(file)
    rows = sum(batch.num_rows for batch in trace.batches())
    header = trace.header
    return {"rows": rows, "model": header.model.name, "origin": header.origin, "complete": trace.complete}


def machines(
    name: Annotated[str | None, typer.Argument(help="Show one machine whole: a name or a YAML file.")] = None,
    as_json: Json = False,
) -> None:
    """List the machines, or show one with every constant and its source."""
    from nearbank.sim.machine import load_machine, machine_names

    if name is not None:
        _show_machine(name, as_json)
        return
    all_machines = [load_machine(n) for n in machine_names()]
    if as_json:
        print_json({"machines": [m.model_dump(mode="json", by_alias=True) for m in all_machines]})
        return
    table = Table("Name", "Standard", "Channels", "Banks", "GiB", "MAC formats", "Unverified", "What it is")
    for m in all_machines:
        org = m.organization
        formats = ", ".join(m.mac_unit.formats) if m.mac_unit else "–"
        gib = f"{org.total_bytes / 2**30:g}"
        unverified = str(len(m.unverified()))
        table.add_row(m.name, m.standard, str(org.channels), str(org.banks), gib, formats, unverified, m.title)
    console().print(table)


def _show_machine(name: str, as_json: bool) -> None:
    import io

    from ruamel.yaml import YAML

    from nearbank.sim.machine import load_machine

    content = load_machine(name).model_dump(mode="json", by_alias=True, exclude_none=True)
    if as_json:
        print_json(content)
        return
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 160
    yaml.dump(content, text)
    console().print(text.getvalue(), end="", markup=False)


def formats(as_json: Json = False) -> None:
    """List the number formats and the bits they really store per value."""
    from nearbank.formats import FORMATS

    rows: list[dict[str, Any]] = [
        {
            "format": f.name,
            "bits_per_value": f.bits_per_value(4096, 4096),
            "code_bits": float(f.code_bits),
            "scales": f.scaling.per,
            "summary": f.summary,
        }
        for f in FORMATS.values()
    ]
    if as_json:
        print_json({"formats": rows, "matrix": [4096, 4096]})
        return
    table = Table("Format", "Bits/value (4096 x 4096)", "Code bits", "Scales", "What it is")
    for row in rows:
        table.add_row(
            row["format"], f"{row['bits_per_value']:.3f}", f"{row['code_bits']:g}", row["scales"], row["summary"]
        )
    console().print(table)

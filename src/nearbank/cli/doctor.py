"""`nearbank doctor`."""

from __future__ import annotations

from rich.table import Table

from nearbank.cli.output import Json, console, print_json


def doctor(as_json: Json = False) -> None:
    """Say what works here (CPU features, GPU, versions) and what to install for the rest."""
    from nearbank.doctor import as_dicts, findings

    found = findings()
    if as_json:
        print_json({"findings": as_dicts(found)})
        return
    table = Table("", "What", "Found", "To do")
    for f in found:
        table.add_row("[green]yes[/]" if f.works else "[yellow]no[/]", f.what, f.found, f.advice)
    console().print(table)

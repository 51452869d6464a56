"""Report rows as a table for the terminal; the page shares its cells."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from nearbank.report.row import MachineRow, energy_ratio, number, speedup

HEADINGS = ("Machine", "Kind", "Weights", "KV", "µs/token", "µJ/token", "Row hits", "MB off chip")


def cells(row: MachineRow) -> tuple[str, ...]:
    """The row's text for each of `HEADINGS`; what is not known is a dash."""
    return (
        row.machine,
        row.kind,
        row.weights,
        row.kv,
        number(row.ns_per_token / 1000),
        number(None if row.pj_per_token is None else row.pj_per_token / 1e6),
        "–" if row.row_hit_rate is None else f"{100 * row.row_hit_rate:.2f} %",
        number(None if row.bytes_off_chip is None else row.bytes_off_chip / 1e6),
    )


def ratio_headings(baseline: MachineRow | None) -> tuple[str, ...]:
    """Headings of the ratios over the baseline, which they name; none without a baseline."""
    return () if baseline is None else (f"Speedup over {baseline.label}", "Energy ratio")


def ratio_cells(row: MachineRow, baseline: MachineRow | None) -> tuple[str, ...]:
    """Speedup and energy ratio of a row over the baseline, as text; none without a baseline."""
    if baseline is None:
        return ()
    return f"{number(speedup(row, baseline))}x", _times(energy_ratio(row, baseline))


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{number(ratio)}x"


def table(title: str, rows: Sequence[MachineRow], baseline: MachineRow | None) -> Table:
    """A rich table of the rows, with ratios over the baseline if there is one."""
    result = Table(title=title, title_justify="left", title_style="bold")
    for heading in (*HEADINGS, *ratio_headings(baseline)):
        result.add_column(heading, justify="left" if heading in HEADINGS[:4] else "right", overflow="fold")
    for row in rows:
        result.add_row(*cells(row), *ratio_cells(row, baseline))
    return result

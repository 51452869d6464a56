"""A study as one HTML page that opens offline: what was asked, what is best, pictures, every row, what failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from nearbank.plot.picture import write_picture
from nearbank.report.page import STYLE, configuration_section, inline_svg
from nearbank.report.report import write_atomically
from nearbank.report.row import number
from nearbank.study.figures import report_figures
from nearbank.study.metrics import metric_named
from nearbank.study.results import Row, StudyResults

PAGE = "study.html"
_SHOWN = (
    "time_ns_per_token",
    "energy_pj_per_token",
    "bound_ns_per_token",
    "row_hit_rate",
    "mac_units_area_mm2",
    "quality",
)
_MOST_ROWS = 1000  # on the page; the table has all


def write_page(results: StudyResults, folder: Path) -> list[Path]:
    """Write study.html and its figures (SVG and PNG) into `folder`; returns what was written."""
    figures = []
    for name, fig in report_figures(results):
        path = folder / f"{name}.svg"
        write_picture(fig, path, metadata={"Date": None})
        write_picture(fig, path.with_suffix(".png"), dpi=110)
        figures.append(path)
    write_atomically(folder / PAGE, page(results, figures))
    return [folder / PAGE, *figures]


def page(results: StudyResults, figures: Sequence[Path]) -> str:
    """The whole page."""
    title = results.study.title or results.study.name
    drawings = "".join(f"<div>{inline_svg(path, 'study')}</div>" for path in figures)
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in summary(results)),
        f'<div class="figures">{drawings}</div>',
        _rows(results),
        _failures(results),
        configuration_section(
            {key: value for key, value in results.as_json().items() if key in ("study", "made_with", "objectives")}
        ),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def summary(results: StudyResults) -> Iterator[str]:
    """How many points there are, what is best in each objective, and how many nothing beats."""
    study = results.study
    asked = f"{study.search.trials} trials over {study.size} points" if study.search else f"{study.size} points"
    waiting = f", {results.waiting} to come" if results.waiting else ""
    yield f"{asked}: {len(results.good)} played, {len(results.failed)} failed{waiting}."
    for name in results.objectives:
        known = [row for row in results.good if row[name] is not None]
        if known:
            best = results.front(name)[0]
            yield f"Best {metric_named(name).title}: {_value(best, name)} at {_place(results, best)}."
    if results.good and len(results.objectives) > 1:
        yield f"{len(results.front())} points are beaten by none in {', '.join(results.objectives)} together."


def headings(results: StudyResults) -> list[str]:
    """Axes, and those metrics that are known in any row or asked for."""
    return [*results.study.choices, *(_heading(results, name) for name in shown_metrics(results)), ""]


def shown_metrics(results: StudyResults) -> list[str]:
    names = dict.fromkeys((*_SHOWN, *results.objectives))
    return [name for name in names if any(row[name] is not None for row in results.good)]


def cells(results: StudyResults, row: Row, best: set[int]) -> list[str]:
    """A row's text for each of `headings`; `best` holds the ids of rows that nothing beats, which are starred."""
    last = row["error"] or ("*" if id(row) in best else "")
    values = [_value(row, name, unit=False) for name in shown_metrics(results)]
    return [*(str(row[axis]) for axis in results.study.choices), *values, last]


def _heading(results: StudyResults, name: str) -> str:
    quality = results.study.quality
    return quality.title if name == "quality" and quality else metric_named(name).label


def _value(row: Row, name: str, unit: bool = True) -> str:
    metric = metric_named(name)
    text = number(None if row[name] is None else row[name] / metric.per)
    return f"{text} {metric.unit}".strip() if unit else text


def _place(results: StudyResults, row: Row) -> str:
    return ", ".join(f"{axis} {row[axis]}" for axis in results.study.choices)


def _rows(results: StudyResults) -> str:
    best = {id(row) for row in results.front()}
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings(results))
    body = ""
    for row in results.good[:_MOST_ROWS]:
        line = "".join(f"<td>{escape(cell)}</td>" for cell in cells(results, row, best))
        style = ' style="font-weight:600"' if id(row) in best else ""
        body += f"<tr{style}>{line}</tr>"
    more = len(results.good) - _MOST_ROWS
    note = f'<p class="small">{more} more rows are in table.parquet.</p>' if more > 0 else ""
    stars = f"*: beaten by none in {', '.join(results.objectives)} together."
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return f'<h2>Points</h2>{table}<p class="small">{escape(stars)}</p>{note}'


def _failures(results: StudyResults) -> str:
    if not results.failed:
        return ""
    lines = "".join(f"<li>{escape(_place(results, row))}: {escape(row['error'])}</li>" for row in results.failed)
    return f"<h2>Failed</h2><p>Tried again by the next run.</p><ul>{lines}</ul>"

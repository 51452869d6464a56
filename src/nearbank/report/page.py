"""The report as one HTML page that opens offline: no scripts, no links, figures inside."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearbank.plot import KIND_COLOURS
from nearbank.report.table import HEADINGS, cells, ratio_cells, ratio_headings

if TYPE_CHECKING:
    from nearbank.report.report import Report, Section

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
blockquote { margin: 0; padding: .8rem 1rem; background: #f5f5f2; border-left: 4px solid #0072B2; white-space: pre-wrap;
  font-family: ui-monospace, monospace; font-size: .9rem; }
blockquote b { color: #555; font-weight: 400; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; width: 100%; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:nth-child(-n+4), td:nth-child(-n+4) { text-align: left; }
th { border-bottom: 2px solid #888; white-space: normal; vertical-align: bottom; }
.kind { color: #fff; border-radius: .6rem; padding: .05rem .5rem; font-size: .8rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(30rem, 1fr)); gap: 1rem; }
.figures svg { width: 100%; height: auto; }
.small { color: #555; font-size: .85rem; }
pre { background: #f5f5f2; padding: .8rem; overflow-x: auto; font-size: .8rem; }
"""


def page(report: Report, figures: Mapping[tuple[int, str], Path]) -> str:
    """The whole page; `figures` are the SVG files by section and name."""
    body = [f"<h1>{escape(report.title)}</h1>", _text(report)]
    for index, section in enumerate(report.sections):
        body.append(_section(section, {name: p for (i, name), p in figures.items() if i == index}))
    body.append(configuration_section(report.configuration))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _text(report: Report) -> str:
    if report.text is None:
        return ""
    return f"<blockquote><b>{escape(report.prompt or '')}</b>{escape(report.text)}</blockquote>"


def _section(section: Section, figures: Mapping[str, Path]) -> str:
    remarks = "".join(f"<p>{escape(remark)}</p>" for remark in section.remarks)
    drawings = "".join(f"<div>{inline_svg(path, name)}</div>" for name, path in figures.items())
    return (
        f"<h2>{escape(section.title)}</h2>{_table(section)}{remarks}"
        f'<div class="figures">{drawings}</div>{_notes(section)}'
    )


def _table(section: Section) -> str:
    baseline = section.baseline_row
    headings = (*HEADINGS, *ratio_headings(baseline))
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = ""
    for row in section.rows:
        machine, kind, *rest = (escape(cell) for cell in (*cells(row), *ratio_cells(row, baseline)))
        badge = f'<span class="kind" style="background:{KIND_COLOURS[row.kind]}">{kind}</span>'
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in (machine, badge, *rest)) + "</tr>"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _notes(section: Section) -> str:
    notes = dict.fromkeys(f"{row.machine}: {row.note}" for row in section.rows if row.note)
    return "".join(f'<p class="small">{escape(note)}</p>' for note in notes)


def inline_svg(path: Path, prefix: str) -> str:
    """The drawing without its XML preamble; ids are made unique, as a page holds many drawings."""
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    unique = f"{path.stem}-{prefix}-"
    svg = re.sub(r'\bid="', f'id="{unique}', svg)
    return re.sub(r'((?:xlink:)?href="|url\()#', rf"\1#{unique}", svg)


def configuration_section(configuration: Mapping[str, Any]) -> str:
    text = json.dumps(dict(configuration), indent=1, default=str)
    return f"<h2>Configuration</h2><pre>{escape(text)}</pre>"

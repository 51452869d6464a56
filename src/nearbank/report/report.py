"""A report: what was run, and rows for every machine, in sections; saved as a page, figures and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearbank.report.row import MachineRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPORT_SCHEMA = "nearbank.report/1"


@dataclass(frozen=True)
class Section:
    """The same work on several machines. `baseline` names the row that ratios are taken over.

    `drawings` are figures beside those of the rows, by name: functions that draw on the axes given to them.
    """

    title: str
    rows: tuple[MachineRow, ...]
    baseline: str | None = None
    remarks: tuple[str, ...] = ()
    drawings: Mapping[str, Callable[[Axes], Axes]] = field(default_factory=dict)

    @property
    def baseline_row(self) -> MachineRow | None:
        return next((row for row in self.rows if row.label == self.baseline), None)


@dataclass(frozen=True)
class Report:
    """`configuration` says what made the result: versions, machine digests, seeds."""

    title: str
    sections: tuple[Section, ...]
    text: str | None = None
    prompt: str | None = None
    configuration: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything in the report as plain values."""
        return {
            "schema": REPORT_SCHEMA,
            "title": self.title,
            "prompt": self.prompt,
            "text": self.text,
            "configuration": dict(self.configuration),
            **self.details,
            "sections": [
                {
                    "title": section.title,
                    "baseline": section.baseline,
                    "remarks": list(section.remarks),
                    "machines": [row.as_json() for row in section.rows],
                }
                for section in self.sections
            ],
        }

    def rows(self) -> list[dict[str, Any]]:
        """All rows as flat dictionaries, ready for a data frame: `pandas.DataFrame(report.rows())`."""
        return [{"section": s.title, **row.as_json()} for s in self.sections for row in s.rows]

    def plot(self, name: str = "time_per_token", section: int = 0) -> Figure:
        """One of the figures of `nearbank.plot.FIGURES`, for one section."""
        from nearbank import plot

        return plot.figure(name, self.sections[section].rows)

    def save(self, folder: Path) -> list[Path]:
        """Write report.html, report.json and the figures (PNG and SVG) into `folder`; returns what was written."""
        from nearbank.report.page import page

        folder.mkdir(parents=True, exist_ok=True)
        figures = self._save_figures(folder)
        write_atomically(folder / "report.json", json.dumps(self.as_json(), indent=1, default=str))
        write_atomically(folder / "report.html", page(self, figures))
        return [folder / "report.html", folder / "report.json", *figures.values()]

    def _save_figures(self, folder: Path) -> dict[tuple[int, str], Path]:
        from nearbank import plot
        from nearbank.plot.picture import write_picture

        saved = {}
        for index, section in enumerate(self.sections):
            for name in (*plot.FIGURES, *section.drawings):
                path = folder / f"{name}_{index + 1}.svg"
                drawing = section.drawings.get(name)
                fig = plot.drawn(drawing) if drawing else plot.figure(name, section.rows)
                write_picture(fig, path, metadata={"Date": None})
                fig.set_layout_engine("none")  # the layout is found; finding it again doubles the time
                write_picture(fig, path.with_suffix(".png"), dpi=110)
                saved[index, name] = path
        return saved


def write_atomically(path: Path, text: str) -> None:
    """Write so that the file is either the old or the new one, whatever happens."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)

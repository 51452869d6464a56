"""What a study gave: one row per point, as dictionaries, as an Arrow table, in a folder that can be read again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nearbank import __version__
from nearbank.errors import NearbankError
from nearbank.report.report import write_atomically
from nearbank.study.metrics import COLUMNS, METRICS, measured, metric_named
from nearbank.study.point import Outcome, Point, source_digest
from nearbank.study.settings import Scalar, point_of
from nearbank.study.spec import Study, parse_study
from nearbank.study.store import Parts

RESULTS_SCHEMA = "nearbank.study-results/1"
STUDY_FILE, TABLE_FILE = "study.json", "table.parquet"
Row = dict[str, Any]
At = Mapping[str, Scalar]


@dataclass(frozen=True)
class StudyResults:
    """`rows`: the axes' values by the axes' names, the metrics, what made them, and `error` where a point failed.

    Rows of a search are in the order of their trials, each point once. `reused`: points that were there before;
    `waiting`: points of the grid that nobody has computed yet, or trials that a search has left.
    """

    study: Study
    rows: list[Row]
    reused: int = 0
    waiting: int = 0

    @property
    def good(self) -> list[Row]:
        """The rows that did not fail."""
        return [row for row in self.rows if row["error"] is None]

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row["error"] is not None]

    @property
    def table(self) -> pa.Table:
        """The rows as an Arrow table: `results.table.to_pandas()` is a data frame."""
        pairs = [{name: list(v.items()) if isinstance(v, dict) else v for name, v in row.items()} for row in self.rows]
        return pa.Table.from_pylist(pairs, _schema(self.study))

    def front(self, *metrics: str) -> list[Row]:
        """Rows that no other beats in all of these metrics, by the first of them; rows that lack one are left out."""
        names = metrics or self.objectives
        rows = [row for row in self.good if all(row[name] is not None for name in names)]
        costs = [_costs(row, names) for row in rows]
        best = [row for row, mine in zip(rows, costs, strict=True) if not any(_beats(other, mine) for other in costs)]
        return sorted(best, key=lambda row: _costs(row, names))

    @property
    def objectives(self) -> tuple[str, ...]:
        """What a search minimises; else time and energy, and quality where there is a table of it."""
        if self.study.search:
            return self.study.search.minimise
        return ("time_ns_per_token", "energy_pj_per_token", *(("quality",) if self.study.quality else ()))

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": RESULTS_SCHEMA,
            "study": self.study.as_json(),
            "axes": list(self.study.choices),
            "rows": self.rows,
            "failed": len(self.failed),
            "reused": self.reused,
            "waiting": self.waiting,
            "front": [row["key"] for row in self.front()],
            "objectives": list(self.objectives),
            "made_with": {"nearbank": __version__, "source": source_digest()},
        }

    def save(self, folder: Path) -> None:
        """Write the table, for `load_results` and for other tools."""
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{TABLE_FILE}.unfinished"
        pq.write_table(self.table, unfinished)
        unfinished.replace(folder / TABLE_FILE)


def _costs(row: Row, names: Sequence[str]) -> tuple[float, ...]:
    """The metrics, turned so that less is better."""
    return tuple(row[name] if metric_named(name).less_is_better else -row[name] for name in names)


def _beats(other: tuple[float, ...], mine: tuple[float, ...]) -> bool:
    return other != mine and all(a <= b for a, b in zip(other, mine, strict=True))


def save_study(study: Study, folder: Path, parts: Parts) -> None:
    """Write what is asked and where the answers will lie, before the first is there."""
    folder.mkdir(parents=True, exist_ok=True)
    inside = parts.folder.is_relative_to(folder)
    where = parts.folder.relative_to(folder) if inside else parts.folder.absolute()
    about = {"study": study.as_json(), "source": source_digest(), "parts": str(where)}
    write_atomically(folder / STUDY_FILE, json.dumps(about, indent=1) + "\n")


def load_results(folder: Path) -> StudyResults:
    """What a study left in `folder`, finished or not; `NearbankError` when no study ever ran there."""
    try:
        about = json.loads((folder / STUDY_FILE).read_text(encoding="utf-8"))
        study = parse_study(about["study"], str(folder / STUDY_FILE))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, NearbankError):
            raise
        raise NearbankError(f"{folder}: no study lies here; expected what `nearbank study run` wrote") from error
    if study.search or about["source"] != source_digest():
        return _stored(study, folder)
    return present(study, Parts(folder / about["parts"]))


def _stored(study: Study, folder: Path) -> StudyResults:
    try:
        rows = pq.ParquetFile(folder / TABLE_FILE).read().to_pylist(maps_as_pydicts="strict")
    except (OSError, pa.ArrowException):
        rows = []
    asked = study.search.trials if study.search else study.size
    done = max((row["trial"] + 1 for row in rows), default=0) if study.search else len(rows)
    return StudyResults(study, rows, reused=len(rows), waiting=asked - done)


def present(study: Study, parts: Parts) -> StudyResults:
    """The rows of a grid that the store has now."""
    points = grid_points(study)
    results = ((at, point, _found(point, parts)) for at, point in points)
    rows = [row_of(study, at, point, result) for at, point, result in results if result is not None]
    return StudyResults(study, rows, reused=len(rows), waiting=len(points) - len(rows))


def _found(point: Point | str, parts: Parts) -> Outcome | str | None:
    return point if isinstance(point, str) else parts.find(point) or parts.error(point)


def grid_points(study: Study) -> list[tuple[At, Point | str]]:
    """Every point of the grid; where its settings contradict each other, the line that says so."""
    return [(at, point_at(study, at)) for at in study.grid()]


def point_at(study: Study, at: At) -> Point | str:
    try:
        return point_of(study.settings(at))
    except NearbankError as error:
        return " ".join(str(error).split())


def row_of(study: Study, at: At, point: Point | str, result: Outcome | str, trial: int | None = None) -> Row:
    """The row of a point: what came out, or why nothing did."""
    row: Row = {**at, **dict.fromkeys(METRICS), **dict.fromkeys(COLUMNS), "trial": trial}
    if isinstance(point, Point):
        row |= {"key": point.key, "machine_name": point.machine.name, "machine_digest": point.machine.digest}
    if isinstance(result, str):
        return row | {"error": result}
    row |= {name: getattr(result, name) for name in COLUMNS if hasattr(result, name)}
    row["tokens_played"] = result.tokens
    quality = study.quality.of(study.settings(at)) if study.quality else None
    return row | measured(result) | {"quality": quality}


def _schema(study: Study) -> pa.Schema:
    axes = [(name, _kind(list(choices))) for name, choices in study.choices.items()]
    integers = ("mac_unit_area_um2",)
    metrics = [(name, pa.int64() if name in integers else pa.float64()) for name in METRICS]
    return pa.schema([*axes, *metrics, *COLUMNS.items()])


def _kind(values: Sequence[Scalar]) -> pa.DataType:
    if all(isinstance(value, int) for value in values):
        return pa.int64()
    return pa.float64() if all(isinstance(value, int | float) for value in values) else pa.string()


def names_of(at: At) -> str:
    """A point's name: its values on the axes."""
    return ", ".join(f"{axis} {value}" for axis, value in at.items())


def each(rows: Sequence[Row], metric: str) -> Iterator[tuple[Row, float]]:
    """Rows in which a metric is known, with its value in the unit it is shown in."""
    per = metric_named(metric).per
    return ((row, row[metric] / per) for row in rows if row[metric] is not None)

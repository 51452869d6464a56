"""Outcomes on disk: one Parquet part-file of one row for every point, named by the point's key.

A part appears whole or not at all, so a run that is killed leaves what it had finished, and the next one reads it
instead of computing it again. A point that failed leaves a row with the reason, which counts as absent: it is tried
again. So does a part that cannot be read. While a point is computed it is claimed by a lock that dies with its owner,
so that studies that run side by side share the work instead of doing it twice.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nearbank import __version__
from nearbank.study.point import Outcome, Point, source_digest

PART_SCHEMA = "nearbank.part/1"
_COUNTS, _SHARES = pa.map_(pa.string(), pa.int64()), pa.map_(pa.string(), pa.float64())

# What was asked, then what came out.
_ASKED = (
    ("key", pa.string()), ("weights", pa.string()), ("kv", pa.string()), ("mapping", pa.string()),
    ("reuse", pa.int64()), ("prompt", pa.int64()), ("run_tokens", pa.int64()), ("batch", pa.int64()),
    ("beams", pa.int64()), ("skip", pa.int64()), ("stride", pa.int64()), ("error", pa.string()),
)  # fmt: skip
_OUTCOME = (
    ("model", pa.string()), ("machine", pa.string()), ("machine_digest", pa.string()), ("tokens", pa.int64()),
    ("time_ns", pa.int64()), ("cycles", pa.int64()), ("energy_by_component_pj", _COUNTS), ("energy_also_pj", _COUNTS),
    ("row_hit_rate", pa.float64()), ("row_hit_rate_by_command", pa.float64()), ("bytes_off_chip", pa.int64()),
    ("time_by_part_ns", _COUNTS), ("utilisation", _SHARES), ("idle_by_reason", _SHARES), ("bound_ns", pa.float64()),
    ("mac_unit_area_um2", pa.int64()), ("mac_units_area_mm2", pa.float64()), ("seconds", pa.float64()),
)  # fmt: skip
SCHEMA = pa.schema([*_ASKED, *_OUTCOME])
_MAPS = tuple(name for name, kind in _OUTCOME if pa.types.is_map(kind))


@dataclass(frozen=True)
class Parts:
    """A folder of part-files."""

    folder: Path

    def path(self, point: Point) -> Path:
        return self.folder / f"{point.key}.parquet"

    def find(self, point: Point) -> Outcome | None:
        """The outcome, if an earlier run left it here, under this point's own names."""
        row = self._row(point)
        if row is None or row["error"] is not None:
            return None
        self._claim(point).unlink(missing_ok=True)  # of a run that was killed when it had just written the part
        return named(point, Outcome(**{field.name: row[field.name] for field in fields(Outcome)}))

    def error(self, point: Point) -> str | None:
        """Why the point failed when it was last tried."""
        row = self._row(point)
        return None if row is None else row["error"]

    def keep(self, point: Point, result: Outcome | str) -> None:
        """Write the outcome, or the line that says why there is none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        asked = {
            "key": point.key,
            "run_tokens": point.tokens,
            "error": result if isinstance(result, str) else None,
            **{name: getattr(point, name) for name, _ in _ASKED if hasattr(point, name)},
        }
        names = {"model": point.shape.name, "machine": point.machine.name, "machine_digest": point.machine.digest}
        made = names if isinstance(result, str) else asdict(result)
        row = {name: made.get(name, asked.get(name)) for name in SCHEMA.names}
        made_with = {"schema": PART_SCHEMA, "nearbank": __version__, "source": source_digest()}
        _write(pa.Table.from_pylist([_as_pairs(row)], SCHEMA).replace_schema_metadata(made_with), self.path(point))

    def _claim(self, point: Point) -> Path:
        return self.folder / f"{point.key}.claim"

    def _row(self, point: Point) -> dict[str, Any] | None:
        try:
            table = pq.ParquetFile(self.path(point)).read()
        except (OSError, pa.ArrowException):
            return None
        if table.schema != SCHEMA or table.num_rows != 1:
            return None
        row: dict[str, Any] = table.to_pylist(maps_as_pydicts="strict")[0]
        return row

    @contextmanager
    def claim(self, point: Point, *, wait: bool = False) -> Iterator[bool]:
        """Hold the point as one's own to compute; false if another run holds it. With `wait` until that is done.

        The claim is a lock on a file, which the system releases when its owner ends, however that happens.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._claim(point)
        with path.open("w") as claim:
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)  # whoever waits for this file looks for the part first


def named(point: Point, outcome: Outcome) -> Outcome:
    """The outcome under the names of `point`, where a point of other names and the same key made it."""
    machine = point.machine
    return replace(outcome, model=point.shape.name, machine=machine.name, machine_digest=machine.digest)


def _as_pairs(row: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v.items()) if k in _MAPS and v is not None else v for k, v in row.items()}


def _write(table: pa.Table, path: Path) -> None:
    """Whole or not at all, also where two write the same."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    pq.write_table(table, unfinished)
    unfinished.replace(path)

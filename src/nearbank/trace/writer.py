"""Writing a trace as it happens: rolling parts, so that a run that is killed leaves a readable trace.

While the run goes on, closed parts collect in `FILE.parts/`. `close` joins them into FILE and removes the folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nearbank.errors import NearbankError
from nearbank.trace.columns import COLUMNS, DELTA_COLUMNS, WORD_COLUMNS
from nearbank.trace.header import TRACE_SCHEMA, TraceHeader
from nearbank.trace.operation import FORMAT_FIELDS, NUMBERS, Operation, Step


def parts_folder(path: Path) -> Path:
    """Where a trace that is still being written keeps its parts."""
    return path.with_name(path.name + ".parts")


def _parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=WORD_COLUMNS, column_encoding=DELTA_COLUMNS
    )


class TraceWriter:
    """A context manager; leaving it normally joins the parts, leaving it by an error keeps them readable.

    `rows_per_part` rows are held in memory at most.
    """

    def __init__(self, path: Path, header: TraceHeader, rows_per_part: int = 1 << 16) -> None:
        if path.is_dir():
            raise NearbankError(f"{path}: is a folder; expected a file to write, such as {path / 'trace.parquet'}")
        self.path = path
        self._schema = COLUMNS.with_metadata({TRACE_SCHEMA: header.model_dump_json()})
        self._rows_per_part = rows_per_part
        self._columns: dict[str, list[Any]] = {name: [] for name in COLUMNS.names}
        self._parts: list[Path] = []
        self._folder = parts_folder(path)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    def append(self, step: int, phase: str, layer: int, operation: Operation, time_ns: int | None = None) -> None:
        """One row: `operation`, run at `layer` (-1 outside the layers) in `time_ns`."""
        row = {"step": step, "phase": phase, "layer": layer, "time_ns": time_ns}
        for name, column in self._columns.items():
            column.append(row[name] if name in row else getattr(operation, name))
        if len(self._columns["step"]) >= self._rows_per_part:
            self._flush()

    def write_step(self, step: Step) -> None:
        """All rows of a step, without times."""
        for layer, operation in step.rows():
            self.append(step.index, step.phase, layer, operation)

    def close(self) -> None:
        """Join the parts into the file."""
        self._flush(even_if_empty=not self._parts)
        unfinished = self.path.with_name(self.path.name + ".unfinished")
        with _parquet_writer(unfinished, self._schema) as whole:
            for part in self._parts:
                whole.write_table(pq.read_table(part, schema=self._schema))
        unfinished.replace(self.path)
        shutil.rmtree(self._folder)

    def _flush(self, even_if_empty: bool = False) -> None:
        if not self._columns["step"] and not even_if_empty:
            return
        table = pa.table(self._columns, schema=self._schema)
        part = self._folder / f"part-{len(self._parts):06d}.parquet"
        hidden = part.with_suffix(".unfinished")
        with _parquet_writer(hidden, self._schema) as writer:
            writer.write_table(table)
        hidden.replace(part)
        self._parts.append(part)
        for column in self._columns.values():
            column.clear()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
            else:
                self._flush()
        except OSError as failure:
            raise NearbankError(
                f"{self.path}: cannot write the trace: {failure}; free space or choose --out"
            ) from error


_OTHERS = {"step", "phase", "layer", "time_ns", "sequence", "op", "name", "holder"}
assert set(COLUMNS.names) == {*_OTHERS, *NUMBERS, *FORMAT_FIELDS}

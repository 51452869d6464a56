"""Reading a trace, a batch of rows at a time, and checking it as it is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nearbank.errors import NearbankError
from nearbank.trace.check import check_batch
from nearbank.trace.columns import COLUMNS, SINCE_VERSION_2
from nearbank.trace.header import TRACE_SCHEMA, TraceHeader, parse_header
from nearbank.trace.operation import Operation, Step, fold_layers
from nearbank.trace.writer import parts_folder

_OPERATION_COLUMNS = [name for name in COLUMNS.names if name not in ("step", "phase", "layer", "time_ns")]


@dataclass(frozen=True)
class Trace:
    """A trace on disk: its header and its files (several when the run that wrote it was cut off)."""

    path: Path
    header: TraceHeader
    files: tuple[Path, ...]

    @property
    def complete(self) -> bool:
        """False when the run that wrote it did not end."""
        return self.files == (self.path,)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Checked rows, in order; `NearbankError` names row, column and expectation of the first bad one."""
        row = 0
        for file in self.files:
            for batch in _read_batches(file):
                check_batch(batch, row, self.header.model, file)
                yield batch
                row += batch.num_rows

    def steps(self) -> Iterator[Step]:
        """The steps, in order, equal layers folded."""
        pending: list[tuple[int, Operation]] = []
        current: tuple[int, str] | None = None
        for key, layer, operation in self._rows():
            if key != current and current is not None:
                yield Step(*current, fold_layers(pending))
                pending = []
            current = key
            pending.append((layer, operation))
        if current is not None:
            yield Step(*current, fold_layers(pending))

    def table(self) -> pa.Table:
        """All rows at once, for analysis; a notebook can call `.to_pandas()` on it."""
        return pa.Table.from_batches(self.batches(), COLUMNS)

    def measured_ns(self) -> int | None:
        """Sum of the measured times, None if no row has one.

        Operations that ran as one have their common time on one row and nothing on the others.
        """
        sums = [pc.sum(batch.column("time_ns")).as_py() for batch in self.batches()]
        known = [int(part) for part in sums if part is not None]
        return sum(known) if known else None

    def _rows(self) -> Iterator[tuple[tuple[int, str], int, Operation]]:
        for batch in self.batches():
            columns = batch.to_pydict()
            keys = zip(columns["step"], columns["phase"], strict=True)
            fields = zip(*(columns[name] for name in _OPERATION_COLUMNS), strict=True)
            for key, layer, values in zip(keys, columns["layer"], fields, strict=True):
                yield key, layer, _operation(values)


@lru_cache(maxsize=1 << 16)
def _operation(values: tuple[object, ...]) -> Operation:
    return Operation(**dict(zip(_OPERATION_COLUMNS, values, strict=True)))


def open_trace(path: Path) -> Trace:
    """The trace in a Parquet file, or in the parts that a run that was cut off left behind."""
    files = _files_of(path)
    header = parse_header(_metadata(files[0]).get(TRACE_SCHEMA.encode()), str(files[0]))
    return Trace(path, header, files)


def _files_of(path: Path) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    folder = path if path.is_dir() else parts_folder(path)
    files = tuple(sorted(folder.glob("part-*.parquet")))
    if not files:
        raise NearbankError(f"{path}: no such trace; expected a Parquet file that `nearbank trace` or `demo` wrote")
    return files


def _metadata(file: Path) -> dict[bytes, bytes]:
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise NearbankError(f"{file}: not a readable Parquet file ({_one_line(error)}); write it again") from error
    metadata = schema.metadata or {}
    if TRACE_SCHEMA.encode() in metadata:
        _check_columns(schema, file)
    return metadata


def _check_columns(schema: pa.Schema, file: Path) -> None:
    for field in COLUMNS:
        index = schema.get_field_index(field.name)
        if index < 0 and field.name in SINCE_VERSION_2:
            continue
        if index < 0:
            raise NearbankError(f"{file}: column {field.name} is missing; expected {', '.join(COLUMNS.names)}")
        if not schema.field(index).type.equals(field.type):
            raise NearbankError(f"{file}: column {field.name} is {schema.field(index).type}; expected {field.type}")


def _read_batches(file: Path) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(file) as parquet:
            there = [name for name in COLUMNS.names if name in parquet.schema_arrow.names]
            yield from map(_with_all_columns, parquet.iter_batches(batch_size=1 << 16, columns=there))
    except (OSError, pa.ArrowException) as error:
        raise NearbankError(f"{file}: damaged: {_one_line(error)}; write it again") from error


def _with_all_columns(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch in our order, with empty columns where an older file has none."""
    if batch.schema.names == COLUMNS.names:
        return batch
    empty = {field.name: pa.nulls(batch.num_rows, field.type) for field in COLUMNS}
    arrays = [batch.column(name) if name in batch.schema.names else empty[name] for name in COLUMNS.names]
    return pa.RecordBatch.from_arrays(arrays, schema=COLUMNS)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]

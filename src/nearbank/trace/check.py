"""What a row of a trace must be, checked a batch at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearbank.cache_formats import cache_names
from nearbank.errors import NearbankError
from nearbank.formats import FORMATS
from nearbank.trace.header import ModelDescription
from nearbank.trace.operation import FIELDS, FORMAT_FIELDS, NUMBERS, OPTIONAL, PHASES

Bad = tuple[int, str, str]  # row in the batch, column, expectation


def check_batch(batch: pa.RecordBatch, first_row: int, model: ModelDescription, file: Path) -> None:
    """Raise `NearbankError` for the first row that no run of this model could have written."""
    bad = [*_unknown_words(batch), *_fields(batch), *_ranges(batch, model), *_order(batch)]
    if not bad:
        return
    row, column, expected = min(bad)
    value = batch.column(column)[row].as_py()
    raise NearbankError(f"{file}: row {first_row + row}, column {column}: {value!r}, expected {expected}")


def _first(mask: np.ndarray, column: str, expected: str) -> list[Bad]:
    rows = np.flatnonzero(mask)
    return [(int(rows[0]), column, expected)] if rows.size else []


def _mask(condition: pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(condition, False).to_numpy(zero_copy_only=False))


def _words(batch: pa.RecordBatch, column: str) -> pa.Array:
    return batch.column(column).cast(pa.string())


def _unknown_words(batch: pa.RecordBatch) -> list[Bad]:
    known = {"op": tuple(FIELDS), "phase": PHASES} | _names()
    bad = []
    for column, words in known.items():
        values = _words(batch, column)
        unknown = pc.and_(pc.is_valid(values), pc.invert(pc.is_in(values, pa.array(words))))
        bad += _first(_mask(unknown), column, f"one of {', '.join(words)}")
    return bad


def _names() -> dict[str, tuple[str, ...]]:
    """What formats may be called, by column; those of a cache have names of their own."""
    return {name: tuple(FORMATS) for name in FORMAT_FIELDS} | {"kv": tuple(dict.fromkeys((*FORMATS, *cache_names())))}


def _fields(batch: pa.RecordBatch) -> list[Bad]:
    """Every operation has its own fields and no others; those of sharing both or neither."""
    ops = _words(batch, "op")
    given_in = {
        column: batch.column(column).is_valid().to_numpy(zero_copy_only=False)
        for column in (*NUMBERS, *FORMAT_FIELDS, "holder")
    }
    half = given_in["holder"] & _mask(pc.is_in(ops, pa.array(tuple(OPTIONAL)))) & ~given_in["shared"]
    bad = _first(half, "shared", "a value beside holder")
    for op, fields in FIELDS.items():
        rows = _mask(pc.equal(ops, op))
        for column, given in given_in.items():
            if column in OPTIONAL.get(op, ()):
                continue
            wrong = rows & (given != (column in fields))
            bad += _first(wrong, column, f"{'a value' if column in fields else 'nothing'} for op {op}")
    return bad


def _ranges(batch: pa.RecordBatch, model: ModelDescription) -> list[Bad]:
    bad = []
    for column in NUMBERS:
        bad += _first(_mask(pc.less_equal(batch.column(column), 0)), column, "a positive number")
    layer = batch.column("layer")
    bad += _first(_mask(pc.or_(pc.less(layer, -1), pc.greater_equal(layer, model.layers))), "layer", "-1 or a layer")
    bad += _first(_mask(pc.less(batch.column("time_ns"), 0)), "time_ns", "a time of 0 or more, or nothing")
    for column in ("sequence", "holder"):
        bad += _first(_mask(pc.less(batch.column(column), 0)), column, "0 or more")
    beyond = pc.greater(batch.column("shared"), batch.column("context"))
    bad += _first(_mask(beyond), "shared", "at most the context")
    most = pc.multiply(batch.column("m").cast(pa.int64()), batch.column("context").cast(pa.int64()))
    bad += _first(_mask(pc.greater(batch.column("pairs"), most)), "pairs", "at most m x context")
    longest = f"at most the model's context of {model.context}"
    bad += _first(_mask(pc.greater(batch.column("context"), model.context)), "context", longest)
    return bad


def _order(batch: pa.RecordBatch) -> list[Bad]:
    step = batch.column("step").to_numpy(zero_copy_only=False)
    falling = np.zeros(len(step), dtype=bool)
    falling[1:] = np.diff(step) < 0
    return _first(falling | (step < 0), "step", "0 or more, never falling")

"""A trace survives the disk, a killed run, and refuses what no run could have written."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearbank.errors import NearbankError
from nearbank.trace import (
    Block,
    Matrix,
    ModelDescription,
    Operation,
    Step,
    TraceHeader,
    TraceWriter,
    fold_layers,
    open_trace,
    recast,
)
from nearbank.trace.writer import parts_folder

MODEL = ModelDescription(
    name="tiny",
    layers=3,
    width=8,
    heads=2,
    kv_heads=2,
    head_dim=4,
    hidden=32,
    vocabulary=11,
    context=16,
    matrices=(Matrix(name="attn.qkv", n=24, k=8, per_layer=True), Matrix(name="lm_head", n=11, k=8, per_layer=False)),
)
HEADER = TraceHeader(
    model=MODEL,
    origin="sketched",
    prompt_tokens=2,
    new_tokens=3,
    weights="ternary",
    kv="bf16",
    nearbank_version="0",
)
QKV = Operation("matmul", "attn.qkv", m=1, n=24, k=8, weights="ternary", inputs="int8")
NORM = Operation("norm", "ln_1", m=1, n=8)
HEAD = Operation("matmul", "lm_head", m=1, n=11, k=8, weights="bf16", inputs="bf16")
EMBED = Operation("embed", "wte", m=1, n=8)


def score(context: int) -> Operation:
    return Operation("score", "attn.score", m=1, k=4, heads=2, kv_heads=2, context=context, pairs=context, kv="bf16")


def step(index: int) -> Step:
    layers = Block(0, 3, (NORM, QKV, score(index + 1)))
    return Step(index, "decode", (Block(-1, 1, (EMBED,)), layers, Block(-1, 1, (HEAD,))))


def write(path: Path, steps: list[Step], rows_per_part: int = 4) -> None:
    with TraceWriter(path, HEADER, rows_per_part) as writer:
        for s in steps:
            writer.write_step(s)


def test_steps_come_back_with_their_layers_folded(tmp_path: Path) -> None:
    steps = [step(i) for i in range(5)]
    write(tmp_path / "t.parquet", steps)
    trace = open_trace(tmp_path / "t.parquet")
    assert list(trace.steps()) == steps
    assert trace.header == HEADER
    assert trace.complete
    assert not parts_folder(tmp_path / "t.parquet").exists()


def test_a_run_that_was_cut_off_leaves_a_readable_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(KeyboardInterrupt), TraceWriter(path, HEADER, rows_per_part=4) as writer:
        writer.write_step(step(0))
        raise KeyboardInterrupt
    trace = open_trace(path)
    assert not trace.complete
    assert list(trace.steps()) == [step(0)]


def test_a_killed_run_loses_only_the_open_part(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    writer = TraceWriter(path, HEADER, rows_per_part=4)
    for i in range(3):
        writer.write_step(step(i))
    written = sum(batch.num_rows for batch in open_trace(path).batches())
    assert 0 <= 3 * 11 - written < 4


def test_a_new_run_replaces_the_parts_of_a_killed_one(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    TraceWriter(path, HEADER, rows_per_part=1).write_step(step(0))
    write(path, [step(7)])
    assert list(open_trace(path).steps()) == [step(7)]


operations = st.sampled_from([NORM, QKV, score(3), score(4)])


@given(st.lists(st.tuples(st.integers(-1, 3), st.lists(operations, min_size=1, max_size=3)), max_size=6))
def test_folding_layers_loses_nothing(layers: list[tuple[int, list[Operation]]]) -> None:
    rows = [(layer, operation) for layer, ops in layers for operation in ops]
    assert list(Step(0, "decode", fold_layers(rows)).rows()) == rows


def test_macs_of_a_step() -> None:
    assert step(0).macs == 3 * (24 * 8 + 1 * 2 * 4) + 11 * 8
    assert step(0).tokens == 1


def test_recast_changes_every_matrix_but_the_head() -> None:
    changed = Step(0, "decode", recast(step(0).blocks, "bf16", "int8"))
    by_name = {operation.name: operation for _, operation in changed.rows()}
    assert (by_name["attn.qkv"].weights, by_name["attn.qkv"].inputs) == ("bf16", "bf16")
    assert by_name["lm_head"] == HEAD
    assert by_name["attn.score"].kv == "int8"
    assert recast(step(0).blocks, None, None) == step(0).blocks


def _altered(path: Path, column: str, row: int, value: object) -> Path:
    """The trace at `path` with one cell changed, as a foreign tool might have written it."""
    table = pq.read_table(path)
    values = table.column(column).to_pylist()
    values[row] = value
    index = table.schema.get_field_index(column)
    field = table.schema.field(index)
    table = table.set_column(index, field, pa.array(values, type=field.type))
    out = path.with_name("altered.parquet")
    pq.write_table(table, out)
    return out


@pytest.mark.parametrize(
    ("column", "row", "value", "complaint"),
    [
        ("m", 2, 0, "row 2, column m: 0, expected a positive number"),
        ("m", 2, -4, "row 2, column m: -4, expected a positive number"),
        ("n", 2, None, "row 2, column n: None, expected a value for op matmul"),
        ("heads", 2, 2, "row 2, column heads: 2, expected nothing for op matmul"),
        ("op", 1, "conv", "row 1, column op: 'conv', expected one of embed"),
        ("weights", 2, "int5", "row 2, column weights: 'int5', expected one of fp32"),
        ("layer", 1, 3, "row 1, column layer: 3, expected -1 or a layer"),
        ("context", 3, 17, "row 3, column context: 17, expected at most the model's context of 16"),
        ("pairs", 3, 99, "row 3, column pairs: 99, expected at most m x context"),
        ("time_ns", 0, -1, "row 0, column time_ns: -1, expected a time of 0 or more"),
        ("step", 1, 5, "row 2, column step: 0, expected 0 or more, never falling"),
        ("holder", 3, 0, "row 3, column shared: None, expected a value beside holder"),
        ("holder", 2, 0, "row 2, column holder: 0, expected nothing for op matmul"),
        ("phase", 1, "train", "row 1, column phase: 'train', expected one of prefill, decode"),
    ],
)
def test_a_bad_cell_is_named(tmp_path: Path, column: str, row: int, value: object, complaint: str) -> None:
    write(tmp_path / "t.parquet", [step(0), step(1)])
    trace = open_trace(_altered(tmp_path / "t.parquet", column, row, value))
    with pytest.raises(NearbankError) as caught:
        list(trace.steps())
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def _foreign(path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), path)


def _truncated(path: Path) -> None:
    write(path, [step(0)])
    path.write_bytes(path.read_bytes()[:-20])


def _other_version(path: Path) -> None:
    write(path, [step(0)])
    table = pq.read_table(path)
    header = table.schema.metadata[b"nearbank.trace"].replace(b'"version":2', b'"version":9')
    pq.write_table(table.replace_schema_metadata({"nearbank.trace": header}), path)


def test_a_file_of_version_1_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write(path, [step(0), step(1)])
    table = pq.read_table(path).drop_columns(["shared", "holder"])
    header = json.loads(table.schema.metadata[b"nearbank.trace"])
    header["version"] = 1
    del header["source_tokens"], header["beams"], header["model"]["encoder_layers"]
    for matrix in header["model"]["matrices"]:
        del matrix["layers"]
    pq.write_table(table.replace_schema_metadata({"nearbank.trace": json.dumps(header)}), path)
    trace = open_trace(path)
    assert list(trace.steps()) == [step(0), step(1)]
    assert trace.header.model == MODEL
    assert trace.table().num_rows == 22


def test_matrices_of_some_layers_are_counted_and_checked() -> None:
    cross = Matrix(name="cross.q", n=8, k=8, per_layer=True, layers=(1, 2))
    described = MODEL.model_copy(update={"encoder_layers": 1, "matrices": (*MODEL.matrices, cross)})
    assert described.weights() == MODEL.weights() + 2 * 64
    assert described.decoder_layers == 2
    for wrong in (cross.model_copy(update={"layers": (3,)}), cross.model_copy(update={"layers": ()})):
        with pytest.raises(ValueError, match=r"matrix cross\.q lies in layers that the model does not have"):
            ModelDescription(**{**dict(MODEL), "matrices": (wrong,)})
    with pytest.raises(ValueError, match="3 encoder layers of 3"):
        ModelDescription(**{**dict(MODEL), "encoder_layers": 3})


def _without_a_column(path: Path) -> None:
    write(path, [step(0)])
    pq.write_table(pq.read_table(path).drop_columns(["pairs"]), path)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, "no such trace"),
        (lambda path: path.write_text("hello"), "not a readable Parquet file"),
        (_foreign, "not a nearbank trace"),
        (_truncated, "not a readable Parquet file"),
        (_other_version, "header field version"),
        (_without_a_column, "column pairs is missing"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, make: object, complaint: str) -> None:
    path = tmp_path / "t.parquet"
    make(path)  # type: ignore[operator]
    with pytest.raises(NearbankError, match=complaint):
        open_trace(path)


def test_every_cut_of_a_file_is_an_error_or_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write(path, [step(0)])
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(NearbankError):
            list(open_trace(path).steps())

"""The main job, end to end: what it prints, what it leaves on disk, and what an interruption leaves."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nearbank.cli.app import run
from nearbank.trace import open_trace

ROW_FIELDS = {
    "machine",
    "kind",
    "weights",
    "kv",
    "tokens",
    "cycles",
    "time_ns",
    "energy_pj",
    "energy_by_component_pj",
    "row_hit_rate",
    "bytes_off_chip",
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    out = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "nearbank", "demo", "--tokens", "12", "--out", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_the_json_says_what_was_run(demo: dict[str, object]) -> None:
    assert demo["tokens"] == len(str(demo["text"])) == 12
    assert float(str(demo["cpu_tokens_per_s"])) > 0
    assert demo["val_loss_nats"] - demo["val_loss_twin_nats"] <= 0.06  # type: ignore[operator]
    assert demo["val_loss_nats"] <= 1.80  # type: ignore[operator]


@pytest.mark.parametrize("table", ["machines", "large"])
def test_rows_are_labelled_and_add_up(demo: dict[str, object], table: str) -> None:
    rows = demo["machines"] if table == "machines" else demo["large"]["machines"]  # type: ignore[index]
    assert isinstance(rows, list)
    kinds = {row["kind"] for row in rows}
    assert {"simulated", "modelled"} <= kinds <= {"simulated", "modelled", "measured"}
    for row in rows:
        assert set(row) >= ROW_FIELDS
        parts = row["energy_by_component_pj"]
        assert row["energy_pj"] == (parts and sum(value or 0 for value in parts.values()))
        assert row["time_ns"] > 0
        assert (row["kind"] == "simulated") == (row["cycles"] is not None) == (row["row_hit_rate"] is not None)


def test_time_by_part_adds_up_to_the_cycles(demo: dict[str, object]) -> None:
    for row in demo["large"]["machines"]:  # type: ignore[index]
        if row["kind"] == "simulated":
            assert sum(row["time_by_part_ns"].values()) == row["time_ns"] == sum(row["token_time_ns"])


def test_the_folder_holds_page_figures_trace_and_timeline(demo: dict[str, object]) -> None:
    out = Path(str(demo["out"]))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "GPT" in page.upper()
    assert "<script" not in page
    assert open_trace(out / "trace.parquet").complete
    assert (out / "timeline.perfetto-trace").stat().st_size > 10_000
    assert json.loads((out / "report.json").read_text())["sections"][1]["machines"]
    assert not list(out.glob("*.unfinished")) + list(out.glob("*.parts"))


def test_the_recorded_trace_replays_to_the_demos_row(
    demo: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    trace = str(Path(str(demo["out"])) / "trace.parquet")
    assert run(("replay", trace, "--machine", "pim-gpt-ternary", "--json")) == 0
    row = json.loads(capsys.readouterr().out)
    expected = next(m for m in demo["machines"] if m["machine"] == "pim-gpt-ternary")  # type: ignore[attr-defined]
    for field in ("cycles", "energy_pj", "row_hit_rate", "bytes_off_chip"):
        assert row[field] == expected[field]


@contextmanager
def _interrupting(*_: object) -> Iterator[Callable[[int], None]]:
    yield lambda done: signal.raise_signal(signal.SIGINT) if done == 3 else None


def test_ctrl_c_is_one_line_and_status_130_and_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C after the third token of a recording, also where the shell had started the tests with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr("nearbank.cli.trace.progress", _interrupting)
    path = tmp_path / "t.parquet"
    try:
        assert run(("trace", "--tokens", "20", "--out", str(path))) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    error = capsys.readouterr().err
    assert error.startswith("nearbank: interrupted")
    assert error.count("\n") == 1
    trace = open_trace(path)
    assert not trace.complete
    assert len(list(trace.steps())) == 3

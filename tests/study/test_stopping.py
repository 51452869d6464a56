"""A study that is stopped, by Ctrl-C or kill -9, keeps what it had; the next run computes the rest and no more."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nearbank.study import Study, load_results, load_study, run

POINTS = 8
TEXT = "name: s\nbase: {model: gpt2-small, tokens: 12}\naxes: {channels: {from: 4, to: 11, step: 1}}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def started(file: Path, out: Path, workers: int) -> subprocess.Popen[str]:
    """A study in a process group of its own, with two points done and others to come."""
    arguments = ("study", "run", str(file), "--out", str(out), "--workers", str(workers))
    process = subprocess.Popen(
        [sys.executable, "-m", "nearbank", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    until = time.monotonic() + 120
    while len(list(out.glob("parts/*.parquet"))) < 2:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.005)
    return process


def parts(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("parts/*.parquet")}


def resumed(file: Path, out: Path, before: dict[str, int]) -> None:
    """The next run reuses what is there, leaves it as it was, and gives what an uninterrupted one gives."""
    asked = load_study(file)
    found = run(asked, out)
    assert found.reused == len(before) and len(found.good) == POINTS
    assert before.items() <= parts(out).items()
    whole = run(asked, out.parent / "whole")
    assert [r | {"seconds": 0} for r in found.rows] == [r | {"seconds": 0} for r in whole.rows]
    assert not list(out.glob("parts/*.claim"))


def test_kill_9_loses_nothing_that_was_finished(file: Path, tmp_path: Path) -> None:
    process = started(file, tmp_path / "out", 0)
    process.kill()
    process.communicate(timeout=60)
    before = parts(tmp_path / "out")
    assert 2 <= len(before) < POINTS
    partial = load_results(tmp_path / "out")
    assert (len(partial.good), partial.waiting) == (len(before), POINTS - len(before))
    for part in before:  # as if it had come between a part and the end of its claim
        (tmp_path / "out" / "parts" / part).with_suffix(".claim").touch()
    resumed(file, tmp_path / "out", before)


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_is_one_line_and_leaves_a_table(workers: int, file: Path, tmp_path: Path) -> None:
    process = started(file, tmp_path / "out", workers)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    before = parts(tmp_path / "out")
    assert process.returncode == 130
    assert err == "nearbank: interrupted; what was already written stays readable\n"
    assert 2 <= len(before) < POINTS
    assert pq.read_table(tmp_path / "out" / "table.parquet").num_rows == len(before)
    shown = subprocess.run(
        [sys.executable, "-m", "nearbank", "study", "show", str(tmp_path / "out"), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout)["waiting"] == POINTS - len(before)


def test_results_of_other_code_are_shown_and_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Study(name="s", base={"model": "gpt2-small", "tokens": 2}, axes={"channels": [8]})
    first = run(asked, tmp_path)
    for module in ("point", "results"):
        monkeypatch.setattr(f"nearbank.study.{module}.source_digest", lambda: "other code")
    assert load_results(tmp_path).rows == first.rows
    assert run(asked, tmp_path).reused == 0

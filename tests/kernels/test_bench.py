"""`nearbank bench`: the rows it promises, what Ctrl-C leaves, how often a slow call is made."""

from __future__ import annotations

import json
import sys
import time

import pytest

from nearbank.cli.app import run
from nearbank.kernels.bench import run as bench
from nearbank.kernels.bench.cases import Case, all_cases
from nearbank.kernels.bench.timing import LEAST_CALLS, time_us

ROW = {
    "kernel": str, "backend": str, "threads": int, "m": int, "n": int, "k": int, "format": str, "cold": bool,
    "time_us": float, "gb_per_s": float, "limit_gb_per_s": float, "fraction_of_limit": float,
}  # fmt: skip


def one_case(call, threads=1):
    return Case("gemv", "numba", threads, 1, 64, 32, "int8", 2048, lambda copies: [None] * 2, call, cold=False)


@pytest.fixture
def stopped_at_the_second(monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    cases = [lambda: one_case(lambda _: time.sleep(1e-4)), lambda: one_case(interrupt)]
    module = sys.modules[bench.__module__]
    monkeypatch.setattr(module, "all_cases", lambda quick, threads: cases)
    monkeypatch.setattr(module, "read_gb_per_s", lambda: 2.0)


def test_ctrl_c_leaves_the_rows_measured_so_far(capsys, stopped_at_the_second):
    assert run(("bench", "--json")) == 130
    result = json.loads(capsys.readouterr().out)
    assert result.keys() == {"machine", "versions", "date", "complete", "rows"} and not result["complete"]
    (row,) = result["rows"]
    assert {name: type(value) for name, value in row.items()} == ROW
    assert row["gb_per_s"] == 2048 / row["time_us"] / 1000
    assert row["fraction_of_limit"] == row["gb_per_s"] / 2


def test_the_table_has_the_limit_beneath(capsys, stopped_at_the_second):
    assert run(("bench",)) == 130
    shown = capsys.readouterr().out
    assert "64 │ 32 │ int8" in shown and "reading memory: 2.0 GB/s with 1 thread." in shown


def test_progress_says_what_is_timed_and_how_much_there_is(stopped_at_the_second):
    told = []
    bench(threads=[1, 2], progress=lambda *args: told.append(args))
    assert told == [("gemv int8 64 × 32, numba, threads 1", done, 4) for done in (0, 1)]


def test_slow_calls_are_made_less_often():
    calls = []
    time_us(lambda _: calls.append(time.sleep(0.002)), [None], repeats=1000, most_s=0.02)
    assert 1 + LEAST_CALLS <= len(calls) <= 12  # the round before, and 20 ms of 2 ms or more
    calls.clear()
    time_us(calls.append, [None, None], repeats=7)
    assert len(calls) == 2 + 7


@pytest.mark.parametrize("quick", [True, False])
def test_every_case_can_be_made(quick, monkeypatch):
    monkeypatch.setattr("nearbank.kernels.bench.cases.SHAPES", ((64, 128), (32, 96)))
    monkeypatch.setattr("nearbank.kernels.bench.cases.MODEL_SHAPES", ())
    kernels = {make().kernel for make in all_cases(quick, 1)}
    assert kernels == {"gemv", "gemm", "attend"} | (set() if quick else {"append"})

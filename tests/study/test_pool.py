"""Where points are computed changes nothing: processes give what this one gives, and failures are lines."""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nearbank.errors import NearbankError
from nearbank.models.shape import gpt_shape
from nearbank.sim.machine import load_machine
from nearbank.study import pool
from nearbank.study.compute import run_points
from nearbank.study.point import Outcome, Point, simulate
from nearbank.study.pool import Dask, Serial, pool_for
from nearbank.study.store import Parts

BASE = load_machine("pim-gpt")
POINT = Point(gpt_shape("tiny", 2, 64, 2, 128, 64), BASE, 4)
HUGE = Point(gpt_shape("huge", 96, 12288, 96, 50257, 2048), BASE, 2)


def silent(what: str, done: int, total: int) -> None:
    pass


def test_processes_give_what_this_process_gives(tmp_path: Path) -> None:
    points = {str(n): replace(POINT, tokens=n) for n in range(2, 9)} | {"huge": HUGE}
    here = run_points(points, Parts(tmp_path / "here"), silent)
    seen: list[tuple[int, int]] = []
    with Dask(1) as processes:
        there = run_points(
            points, Parts(tmp_path / "there"), lambda what, done, total: seen.append((done, total)), processes
        )
    timeless = {name: replace(outcome, seconds=0) for name, outcome in there.outcomes.items()}
    assert timeless == {name: replace(outcome, seconds=0) for name, outcome in here.outcomes.items()}
    assert there.refused == here.refused and list(there.refused) == ["huge"]
    assert seen[-1] == (sum(range(2, 9)) + 2,) * 2


def test_a_worker_with_other_code_is_refused() -> None:
    said = pool._remote(POINT, "another digest")
    assert "the worker's nearbank" in str(said) and "install the same on both" in str(said)


@pytest.mark.parametrize(("error", "said"), [(ZeroDivisionError("by\nzero"), "ZeroDivisionError: by zero")])
def test_a_fault_of_one_point_is_its_line_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(point: Point, advance: Callable[[int], None]) -> Outcome:
        if point.tokens == 3:
            raise error
        return simulate(point, advance)

    points = {"a": POINT, "b": replace(POINT, tokens=3)}
    monkeypatch.setattr(pool, "simulate", fail)
    ran = run_points(points, Parts(tmp_path), silent)
    assert (list(ran.outcomes), ran.refused) == (["a"], {"b": said})
    assert Parts(tmp_path).error(points["b"]) == said
    monkeypatch.setattr(pool, "simulate", simulate)
    again = run_points(points, Parts(tmp_path), silent)
    assert (list(again.outcomes), again.refused, again.reused) == (["a", "b"], {}, 1)


def _count_points(folder: Path, start: float, sink: "multiprocessing.Queue[int]") -> None:
    """Run the study of the test below and say how many points were computed here, slowly."""
    computed = []

    def slow(point: Point, advance: Callable[[int], None]) -> Outcome:
        computed.append(point)
        time.sleep(0.2)
        return simulate(point, advance)

    pool.simulate = slow  # type: ignore[assignment]
    time.sleep(max(start - time.time(), 0))
    run_points({str(n): replace(POINT, tokens=n) for n in range(2, 8)}, Parts(folder), silent)
    sink.put(len(computed))


def test_two_runs_side_by_side_share_the_points(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    sink = context.Queue()
    processes = [context.Process(target=_count_points, args=(tmp_path, time.time() + 0.5, sink)) for _ in range(2)]
    for process in processes:
        process.start()
    counts = [sink.get(timeout=60) for _ in processes]
    assert sum(counts) == 6
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".parquet"] * 6


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "has_dask", lambda: False)
    assert isinstance(pool_for(None, None), Serial)
    with pytest.raises(NearbankError, match=r"pip install 'nearbank\[study\]', or run with --workers 0"):
        pool_for(2, None).__enter__()
    with pytest.raises(NearbankError, match="--workers -1"):
        pool_for(-1, None)


def test_no_scheduler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(NearbankError, match=r"--scheduler nonsense: no Dask scheduler answers there"),
        pool_for(None, "nonsense") as cluster,
    ):
        run_points({"a": POINT}, Parts(tmp_path), silent, cluster)

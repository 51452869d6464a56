"""A search: the same seed chooses the same points, however often it was stopped; its points are the grid's points."""

from pathlib import Path
from typing import Any

import pytest

from nearbank.errors import NearbankError
from nearbank.study import Search, Study, StudyResults, load_results, pool, run
from nearbank.study import search as searching
from nearbank.study.point import simulate

BASE = {"model": "gpt2-small", "machine": "pim-gpt-ternary", "weights": "ternary", "tokens": 2}
AXES = {"lanes": [16, 32, 64, 128], "channels": [2, 4, 8, 16], "kv": ["bf16", "int8"]}
ASKED = Study(
    name="s", base=BASE, axes=AXES, search=Search(minimise=("time_ns_per_token", "mac_units_area_mm2"), trials=12)
)


def timeless(results: StudyResults) -> list[dict[str, Any]]:
    return [row | {"seconds": 0} for row in results.rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    return run(ASKED, tmp_path_factory.mktemp("whole"))


def test_trials_are_points_of_the_grid_each_once(whole: StudyResults) -> None:
    assert 4 < len(whole.rows) <= 12
    places = [tuple(row[axis] for axis in AXES) for row in whole.rows]
    assert len(set(places)) == len(places)
    assert set(places) <= {tuple(at.values()) for at in ASKED.grid()}
    assert [row["trial"] for row in whole.rows] == sorted(row["trial"] for row in whole.rows)
    assert whole.front() and whole.waiting == 0


def test_a_stopped_search_goes_on_as_if_nothing_had_happened(
    whole: StudyResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []

    def stop(point: Any, advance: Any) -> Any:
        if len(computed) == 6:
            raise KeyboardInterrupt
        computed.append(point.key)
        return simulate(point, advance)

    monkeypatch.setattr(pool, "simulate", stop)
    with pytest.raises(KeyboardInterrupt):
        run(ASKED, tmp_path)
    partial = load_results(tmp_path)
    assert 0 < len(partial.rows) <= 6 and partial.waiting > 0
    computed.append("")  # goes on
    again = run(ASKED, tmp_path)
    assert timeless(again) == timeless(whole)
    assert len(set(computed)) == len(computed)


def test_a_grid_takes_what_a_search_computed(whole: StudyResults, tmp_path: Path) -> None:
    run(ASKED, tmp_path / "search", parts=tmp_path / "parts")
    grid = run(Study(name="g", base=BASE, axes=AXES), tmp_path / "grid", parts=tmp_path / "parts")
    assert grid.reused == len(whole.rows)
    best = min(row["time_ns_per_token"] for row in grid.good)
    assert min(row["time_ns_per_token"] for row in whole.good) <= 3 * best
    assert load_results(tmp_path / "grid").rows == grid.rows


def test_one_objective_comes_near_the_best_of_the_grid(tmp_path: Path) -> None:
    asked = ASKED.model_copy(update={"search": Search(minimise="time_ns_per_token", trials=20, seed=1)})
    found = run(asked, tmp_path)
    grid = run(Study(name="g", base=BASE, axes=AXES), tmp_path / "grid", parts=tmp_path / "parts")
    times = sorted(row["time_ns_per_token"] for row in grid.good)
    assert found.front()[0]["time_ns_per_token"] <= times[2]  # among the best three of 32


def test_trials_that_fail_are_rows(tmp_path: Path) -> None:
    axes = {**AXES, "model": ["gpt3-175b", "gpt2-small"]}
    found = run(ASKED.model_copy(update={"axes": axes, "base": {**BASE}}), tmp_path)
    assert found.failed and found.good
    assert all("bytes" in row["error"] for row in found.failed)


def test_without_optuna_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "find_spec", lambda name: None)
    with pytest.raises(NearbankError, match=r"needs Optuna: pip install 'nearbank\[study\]'"):
        run(ASKED, tmp_path)

"""Studies: a point's key changes with what decides its outcome, parts are reused, a killed run resumes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest

from nearbank.models.shape import gpt_shape
from nearbank.replay import replay
from nearbank.sim.machine import load_machine
from nearbank.study import knobs, pool
from nearbank.study.compute import run_points
from nearbank.study.point import PRODUCTS, Outcome, Point, simulate
from nearbank.study.store import Parts

TINY = gpt_shape("tiny", 2, 64, 2, 128, 64)
BASE = load_machine("pim-gpt")
POINT = Point(TINY, BASE, 4)


def silent(what: str, done: int, total: int) -> None:
    pass


def test_a_key_changes_with_everything_that_decides_the_outcome() -> None:
    others = [
        replace(POINT, shape=replace(TINY, layers=3)),
        replace(POINT, machine=knobs.with_channels(BASE, 4)),
        replace(POINT, tokens=5),
        replace(POINT, prompt=2),
        replace(POINT, weights="ternary"),
        replace(POINT, kv="int8"),
        replace(POINT, stride=2),
    ]
    keys = {POINT.key, *(point.key for point in others)}
    assert len(keys) == 1 + len(others)
    assert Point(TINY, load_machine("pim-gpt"), 4).key == POINT.key


def test_an_outcome_is_that_of_the_replay_and_survives_the_file(tmp_path: Path) -> None:
    outcome = simulate(POINT, lambda done: None)
    done = replay(POINT.workload(), BASE)
    row = done.row
    assert (outcome.row_hit_rate, outcome.row_hit_rate_by_command) == (row.row_hit_rate, done.result.row_hit_rate)
    assert (outcome.time_ns, outcome.energy_pj, outcome.bytes_off_chip) == (
        row.time_ns,
        row.energy_pj,
        row.bytes_off_chip,
    )
    other = sum(ns for part, ns in (row.time_by_part_ns or {}).items() if part not in PRODUCTS)
    assert outcome.non_vmm_share == pytest.approx(other / row.time_ns, rel=1e-3)
    Parts(tmp_path).keep(POINT, outcome)
    assert Parts(tmp_path).find(POINT) == outcome


def test_names_and_unused_context_share_an_outcome(tmp_path: Path) -> None:
    other = replace(POINT, shape=replace(TINY, name="other", context=999))
    assert other.key == POINT.key
    outcome = simulate(POINT, lambda done: None)
    Parts(tmp_path).keep(POINT, outcome)
    assert Parts(tmp_path).find(other) == replace(outcome, model="other")
    assert simulate(other, lambda done: None).time_ns == outcome.time_ns


def test_a_stride_plays_whole_steps_of_the_run() -> None:
    run = replace(POINT, shape=replace(TINY, context=512), tokens=400)  # long enough for several refreshes
    steps = list(run.workload().steps())
    played = list(replace(run, stride=8).workload().steps())
    assert played == steps[4::8]
    assert replace(run, stride=8).workload().max_context == run.workload().max_context
    spread, whole = (simulate(p, lambda done: None) for p in (replace(run, stride=8), run))
    assert spread.tokens == 50
    assert spread.ns_per_token == pytest.approx(whole.ns_per_token, rel=0.02)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """The points that are really simulated from now on."""
    seen: list[Point] = []

    def count(point: Point, advance: Callable[[int], None]) -> Outcome:
        seen.append(point)
        return simulate(point, advance)

    monkeypatch.setattr(pool, "simulate", count)
    return seen


def test_nothing_is_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch)
    points = {"a": POINT, "same as a": POINT, "b": replace(POINT, tokens=3)}
    first = run_points(points, Parts(tmp_path), silent)
    assert (len(seen), first.reused) == (2, 1)
    again = run_points(points, Parts(tmp_path), silent)
    assert (len(seen), again.reused) == (2, 3)
    assert again.outcomes == first.outcomes


def test_ctrl_c_keeps_what_was_finished_and_the_next_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {str(n): replace(POINT, tokens=n) for n in (2, 3, 4)}

    def interrupt(point: Point, advance: Callable[[int], None]) -> Outcome:
        if point.tokens == 3:
            raise KeyboardInterrupt
        return simulate(point, advance)

    monkeypatch.setattr(pool, "simulate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_points(points, Parts(tmp_path), silent)
    assert [path.name for path in tmp_path.iterdir()] == [Parts(tmp_path).path(points["2"]).name]
    seen = counted(monkeypatch)
    run_points(points, Parts(tmp_path), silent)
    assert [point.tokens for point in seen] == [3, 4]


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"model": "tiny"}'])
def test_a_damaged_part_is_computed_again(tmp_path: Path, damage: str) -> None:
    parts = Parts(tmp_path)
    parts.path(POINT).write_text(damage, encoding="utf-8")
    run_points({"a": POINT}, parts, silent)
    assert parts.find(POINT) == replace(simulate(POINT, lambda done: None), seconds=ANY)


def test_a_point_that_does_not_fit_is_named_with_the_reason(tmp_path: Path) -> None:
    huge = Point(gpt_shape("huge", 96, 12288, 96, 50257, 2048), BASE, 2)
    ran = run_points({"huge": huge, "a": POINT}, Parts(tmp_path), silent)
    assert "huge" in ran.refused
    assert "bytes" in ran.refused["huge"]
    assert list(ran.outcomes) == ["a"]


def test_progress_reaches_the_total_of_all_tokens(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    points = {"a": POINT, "b": replace(POINT, tokens=2)}
    run_points(points, Parts(tmp_path), lambda what, done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)
    assert seen == sorted(seen)

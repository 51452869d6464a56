"""A search of a grid that is too large to play whole: Optuna proposes, the store answers.

Nothing of the search itself is stored. A sampler with a seed proposes the same points when it is told the same results,
and the store has the results of all finished trials. So a search that was killed goes through its trials again at once,
comes to where it was, and goes on as if nothing had happened. Trials are proposed `together` at a time, whatever the
number of processes, so that this changes nothing either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from math import isfinite
from typing import Any

from nearbank.errors import NearbankError
from nearbank.study.compute import Ran, Stage, run_points
from nearbank.study.point import Point
from nearbank.study.pool import EXTRA, Pool
from nearbank.study.results import At, Row, names_of, point_at, row_of
from nearbank.study.settings import Scalar
from nearbank.study.spec import Search, Study
from nearbank.study.store import Parts


def search(study: Study, parts: Parts, stage: Stage, pool: Pool) -> Iterator[tuple[list[Row], int, int]]:
    """After every few trials: rows of points that are new, how many points were in the store, how many trials are left.

    Raises `NearbankError` without Optuna, and for a study that asks for no search.
    """
    asked = _asked(study)
    optuna = _optuna()
    trials = optuna.create_study(
        directions=["minimize"] * len(asked.minimise),
        sampler=optuna.samplers.TPESampler(seed=asked.seed, n_startup_trials=min(10, max(asked.trials // 4, 1))),
    )
    seen: dict[str, Row] = {}
    for begin in range(0, asked.trials, asked.together):
        batch = [trials.ask() for _ in range(min(asked.together, asked.trials - begin))]
        ats = {trial.number: _proposed(trial, study) for trial in batch}
        rows, reused = _played(study, ats, parts, _counted(stage, begin, asked.trials), pool)
        for trial in batch:
            _tell(trials, trial, rows[trial.number], asked)
        new = {names_of(ats[number]): row for number, row in reversed(rows.items())}
        fresh = [row for name, row in new.items() if name not in seen]
        seen |= new
        yield sorted(fresh, key=lambda row: row["trial"]), reused, asked.trials - begin - len(batch)


def _asked(study: Study) -> Search:
    if study.search is None:
        raise NearbankError(f"study {study.name}: has no search; give one under 'search:'")
    return study.search


def _optuna() -> Any:
    if find_spec("optuna") is None:
        raise NearbankError(f"a study with a search needs Optuna: {EXTRA}, or leave out 'search:' to play the grid")
    optuna = import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _proposed(trial: Any, study: Study) -> At:
    return {axis: _value(trial, axis, list(choices)) for axis, choices in study.choices.items()}


def _value(trial: Any, axis: str, values: list[Scalar]) -> Scalar:
    """Numbers are proposed by their place in order, so that neighbours are near; texts as they are."""
    if not all(isinstance(value, int | float) for value in values):
        return str(trial.suggest_categorical(axis, values))
    place: int = trial.suggest_int(axis, 0, len(values) - 1)
    return sorted(values)[place]


def _played(study: Study, ats: Mapping[int, At], parts: Parts, stage: Stage, pool: Pool) -> tuple[dict[int, Row], int]:
    """The row of every trial, and how many points were in the store."""
    points = {number: point_at(study, at) for number, at in ats.items()}
    named = {names_of(ats[number]): point for number, point in points.items() if isinstance(point, Point)}
    ran = run_points(named, parts, stage, pool)
    return {
        n: row_of(study, at, points[n], _result(points[n], names_of(at), ran), n) for n, at in ats.items()
    }, ran.reused


def _result(point: Point | str, name: str, ran: Ran) -> Any:
    return point if isinstance(point, str) else ran.outcomes.get(name) or ran.refused[name]


def _tell(trials: Any, trial: Any, row: Row, asked: Search) -> None:
    values = [row[name] for name in asked.minimise]
    if all(value is not None and isfinite(value) for value in values):
        trials.tell(trial, values)
    else:
        trials.tell(trial, state=import_module("optuna").trial.TrialState.FAIL)


def _counted(stage: Stage, begin: int, total: int) -> Stage:
    """Progress in trials."""
    return lambda what, done, of: stage(f"trial {begin + 1}: {what}", begin, total)

"""A whole study run into a folder: its grid or its search, and the table of what came out, whatever stopped it."""

from __future__ import annotations

from pathlib import Path

from nearbank.study.compute import Stage, run_points
from nearbank.study.point import Point
from nearbank.study.pool import Pool, pool_for
from nearbank.study.results import Row, StudyResults, grid_points, names_of, present, row_of, save_study
from nearbank.study.search import search
from nearbank.study.spec import Study
from nearbank.study.store import Parts

PARTS = "parts"


def run(
    study: Study,
    folder: Path | str,
    *,
    workers: int = 0,
    scheduler: str | None = None,
    parts: Path | str | None = None,
    stage: Stage = lambda what, done, total: None,
) -> StudyResults:
    """Compute what the store lacks, and write the table into `folder`, also when Ctrl-C ends the run.

    workers: local processes; 0 is this one, the default here because a script that starts processes needs a guarded
    main. scheduler: a Dask scheduler's address. parts: the store, `folder`/parts when left out; studies that share one
    share their points.
    """
    folder = Path(folder)
    store = Parts(folder / PARTS if parts is None else Path(parts))
    save_study(study, folder, store)
    with pool_for(workers, scheduler) as pool:
        return (_searched if study.search else _played)(study, folder, store, stage, pool)


def _played(study: Study, folder: Path, parts: Parts, stage: Stage, pool: Pool) -> StudyResults:
    points = {names_of(at): (at, point) for at, point in grid_points(study)}
    good = {name: point for name, (_, point) in points.items() if isinstance(point, Point)}
    try:
        ran = run_points(good, parts, stage, pool)
    except BaseException:
        present(study, parts).save(folder)
        raise
    rows = []
    for name, (at, point) in points.items():
        result = point if isinstance(point, str) else ran.outcomes.get(name) or ran.refused[name]
        rows.append(row_of(study, at, point, result))
    results = StudyResults(study, rows, ran.reused)
    results.save(folder)
    return results


def _searched(study: Study, folder: Path, parts: Parts, stage: Stage, pool: Pool) -> StudyResults:
    """The table is written after every few trials, so that a killed search leaves one."""
    results = StudyResults(study, [])
    rows: list[Row] = []
    for new, reused, left in search(study, parts, stage, pool):
        rows = rows + new
        results = StudyResults(study, rows, results.reused + reused, left)
        results.save(folder)
    return results

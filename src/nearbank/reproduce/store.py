"""Outcomes on disk: one part-file for every point, named by the point's key.

A part appears whole or not at all, so a run that is killed leaves what it had finished, and the next one reads it
instead of computing it again. A part that cannot be read counts as absent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nearbank.errors import NearbankError
from nearbank.report.report import write_atomically
from nearbank.reproduce.point import Outcome, Point, simulate

Stage = Callable[[str, int, int], None]  # what is being done, how much is done, of how much


@dataclass(frozen=True)
class Parts:
    """A folder of part-files."""

    folder: Path

    def path(self, point: Point) -> Path:
        return self.folder / f"{point.key}.json"

    def find(self, point: Point) -> Outcome | None:
        """The outcome, if an earlier run left it here."""
        try:
            found = Outcome(**json.loads(self.path(point).read_text(encoding="utf-8")))
            return replace(found, model=point.shape.name)
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, point: Point, outcome: Outcome) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path(point), json.dumps(asdict(outcome), indent=1))


@dataclass(frozen=True)
class Study:
    """Outcomes by the names of their points, what did not fit and why, and how many were there before."""

    outcomes: Mapping[str, Outcome]
    refused: Mapping[str, str]
    reused: int


def run_study(points: Mapping[str, Point], parts: Parts, stage: Stage) -> Study:
    """Compute every point that has no part yet; equal points are computed once.

    A point that its machine refuses is reported, not fatal. Ctrl-C leaves the finished parts.
    """
    outcomes: dict[str, Outcome] = {}
    refused: dict[str, str] = {}
    reused = 0
    total = sum(point.tokens for point in points.values())
    before = 0
    for name, point in points.items():
        found = parts.find(point)
        reused += found is not None
        try:
            outcomes[name] = found or _compute(point, parts, _shifted(stage, name, before, total))
        except NearbankError as error:
            refused[name] = str(error)
        before += point.tokens
        stage(name, before, total)
    return Study(outcomes, refused, reused)


def _compute(point: Point, parts: Parts, advance: Callable[[int], None]) -> Outcome:
    outcome = simulate(point, advance)
    parts.keep(point, outcome)
    return outcome


def _shifted(stage: Stage, name: str, before: int, total: int) -> Callable[[int], None]:
    return lambda done: stage(name, before + done, total)

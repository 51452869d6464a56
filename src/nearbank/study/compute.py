"""Points are computed unless the store has them: once each, whatever stops the run and whoever else runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from nearbank.study.point import Outcome, Point
from nearbank.study.pool import Pool, Result, Serial
from nearbank.study.store import Parts, named

Stage = Callable[[str, int, int], None]  # what is being done, how much is done, of how much


@dataclass(frozen=True)
class Ran:
    """Outcomes by the names of their points, what failed and why, and how many points were there before."""

    outcomes: Mapping[str, Outcome]
    refused: Mapping[str, str]
    reused: int


def run_points(points: Mapping[str, Point], parts: Parts, stage: Stage, pool: Pool | None = None) -> Ran:
    """Compute every point that has no part yet; equal points are computed once.

    A point that fails is a line, not fatal, and is tried again by the next run. Ctrl-C leaves the finished parts.
    """
    names = {point.key: name for name, point in reversed(list(points.items()))}
    wanted = {point.key: point for point in points.values()}
    work = _Work(parts, pool or Serial(), _Progress(stage, names, sum(map(_steps, wanted.values()))))
    missing = [point for point in wanted.values() if not work.find(point)]
    work.compute(missing)
    absent = {point.key for point in missing}
    results = {name: work.results[point.key] for name, point in points.items()}
    return Ran(
        outcomes={name: named(points[name], found) for name, found in results.items() if isinstance(found, Outcome)},
        refused={name: found for name, found in results.items() if isinstance(found, str)},
        reused=sum(point.key not in absent or names[point.key] != name for name, point in points.items()),
    )


@dataclass
class _Work:
    """Results by the keys of their points, as they come in."""

    parts: Parts
    pool: Pool
    progress: _Progress
    results: dict[str, Result] = field(default_factory=dict)

    def find(self, point: Point) -> bool:
        """Take the outcome from the store, if it is there."""
        found = self.parts.find(point)
        if found is not None:
            self._take(point, found)
        return found is not None

    def compute(self, points: list[Point]) -> None:
        """What another run holds is left to the end. While that is waited for nothing is held: no circle can form."""
        held: dict[str, ExitStack] = {}
        left: list[Point] = []
        try:
            for point, result in self.pool.finished(self._claimed(points, held, left), self.progress.advance):
                self._keep(point, result)
                held.pop(point.key).close()
        finally:
            for claim in held.values():
                claim.close()
        for point in left:
            with self.parts.claim(point, wait=True):
                if not self.find(point):
                    for _, result in self.pool.finished(iter((point,)), self.progress.advance):
                        self._keep(point, result)

    def _claimed(self, points: list[Point], held: dict[str, ExitStack], left: list[Point]) -> Iterator[Point]:
        for point in points:
            claim = ExitStack()
            if not claim.enter_context(self.parts.claim(point)):
                left.append(point)
            elif not self.find(point):
                held[point.key] = claim
                yield point
                continue
            claim.close()

    def _keep(self, point: Point, result: Result) -> None:
        self.parts.keep(point, result)
        self._take(point, result)

    def _take(self, point: Point, result: Result) -> None:
        self.results[point.key] = result
        self.progress.finish(point)


@dataclass
class _Progress:
    """Adds up the played steps of points that are under way and of those that are finished."""

    stage: Stage
    names: Mapping[str, str]
    total: int
    done: int = 0
    under_way: dict[str, int] = field(default_factory=dict)

    def advance(self, point: Point, steps: int) -> None:
        self.under_way[point.key] = steps
        self._tell(point)

    def finish(self, point: Point) -> None:
        self.under_way.pop(point.key, None)
        self.done += _steps(point)
        self._tell(point)

    def _tell(self, point: Point) -> None:
        self.stage(self.names[point.key], self.done + sum(self.under_way.values()), self.total)


def _steps(point: Point) -> int:
    return len(range(point.tokens)[point.played])

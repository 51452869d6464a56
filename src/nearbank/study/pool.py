"""Where points are computed: in this process, on local processes, or on a Dask cluster. A failed point is a line.

A pool takes points from an iterator as it has room for them and yields each with its outcome as it finishes. Pools
touch no files: workers need the package, not this machine's disk.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from nearbank.errors import NearbankError
from nearbank.study.point import Outcome, Point, simulate, source_digest

Result = Outcome | str  # what came out, or why nothing did
Finished = Iterator[tuple[Point, Result]]
EXTRA = "pip install 'nearbank[study]'"
_AHEAD = 2  # points sent per worker thread, so that none waits for this process


class Pool(Protocol):
    """Computes points; `advance` is told of a point and how many of its steps are played, where that can be known."""

    def finished(self, points: Iterator[Point], advance: Callable[[Point, int], None]) -> Finished: ...

    def __enter__(self) -> Pool: ...

    def __exit__(self, *what: object) -> None: ...


class Serial:
    """One point after another, in this process."""

    def finished(self, points: Iterator[Point], advance: Callable[[Point, int], None]) -> Finished:
        for point in points:
            yield point, attempt(point, lambda done, point=point: advance(point, done))  # type: ignore[misc]

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *what: object) -> None:
        pass


@dataclass
class Dask:
    """Local processes, or the cluster at `scheduler`. Nothing is started before the first point comes."""

    workers: int = 1
    scheduler: str | None = None
    _open: list[Any] = field(default_factory=list)  # client and cluster, once there is something to do

    def finished(self, points: Iterator[Point], advance: Callable[[Point, int], None]) -> Finished:
        first = next(points, None)
        if first is None:
            return
        client = self._client()
        running = {_send(client, first): first}
        done = _distributed().as_completed(running)
        self._fill(client, points, running, done)
        for future in done:
            yield running.pop(future), _result(future)
            self._fill(client, points, running, done)

    def _fill(self, client: Any, points: Iterator[Point], running: dict[Any, Point], done: Any) -> None:
        room = _AHEAD * max(sum(client.nthreads().values()), 1)
        while len(running) < room and (point := next(points, None)) is not None:
            future = _send(client, point)
            running[future] = point
            done.add(future)

    def _client(self) -> Any:
        if not self._open:
            self._open = _connected(self.scheduler) if self.scheduler else _started(self.workers)
        return self._open[0]

    def __enter__(self) -> Dask:
        require_dask()
        return self

    def __exit__(self, *what: object) -> None:
        for part in self._open:
            part.close()


def pool_for(workers: int | None, scheduler: str | None) -> Pool:
    """The pool that options ask for; with none, a local process per core, or this process where Dask is missing.

    workers: local processes, 0 for this one. scheduler: a Dask scheduler's address, such as tcp://10.0.0.1:8786.
    """
    if scheduler is not None:
        return Dask(scheduler=scheduler)
    if workers is not None and workers < 0:
        raise NearbankError(f"--workers {workers}: expected 0 (this process) or more")
    count = default_workers() if workers is None else workers
    return Dask(count) if count else Serial()


def default_workers() -> int:
    """A process per core; 0, this process, with one core or without Dask."""
    cores = len(os.sched_getaffinity(0))
    return cores if cores > 1 and has_dask() else 0


def has_dask() -> bool:
    return find_spec("distributed") is not None


def require_dask() -> None:
    """`NearbankError` with what to install where Dask is missing."""
    if not has_dask():
        raise NearbankError(f"several processes and clusters need Dask: {EXTRA}, or run with --workers 0")


def attempt(point: Point, advance: Callable[[int], None]) -> Result:
    """The outcome, or one line that says why there is none."""
    try:
        return simulate(point, advance)
    except NearbankError as error:
        return " ".join(str(error).split())
    except Exception as error:  # one point must not end a study of thousands
        return _line(error)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _remote(point: Point, source: str) -> Result:
    """`attempt` on a worker, which must run the code that the point's key stands for."""
    if source_digest() != source:
        return f"the worker's nearbank ({source_digest()}) is not this one ({source}); install the same on both"
    return attempt(point, lambda done: None)


def _send(client: Any, point: Point) -> Any:
    return client.submit(_remote, point, source_digest(), key=f"nearbank-{point.key}-{os.urandom(4).hex()}")


def _result(future: Any) -> Result:
    error = future.exception()
    return _line(error) if error is not None else future.result()


def _distributed() -> Any:
    """Dask's package: slow to import, and not always there."""
    return import_module("distributed")


def _started(workers: int) -> list[Any]:
    cluster = _distributed().LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=logging.CRITICAL
    )
    client = _distributed().Client(cluster)
    client.run(_ignore_ctrl_c)
    return [client, cluster]


def _ignore_ctrl_c() -> None:
    """A terminal's Ctrl-C reaches every process; a worker leaves it to the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _connected(address: str) -> list[Any]:
    try:
        return [_distributed().Client(address, timeout="10s")]
    except (OSError, ValueError) as error:
        raise NearbankError(
            f"--scheduler {address}: no Dask scheduler answers there; expected one such as tcp://10.0.0.1:8786"
        ) from error

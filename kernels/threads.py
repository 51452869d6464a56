"""Worker threads for compiled functions that release the GIL, each pinned to a core.

Work is cut in parts that become smaller, and every thread takes the next one when it has finished one, so that all
end together. The calling thread starts at once and is never pinned; a worker that wakes late simply takes fewer. How
many threads is the process's choice: `set_threads`, or NEARBANK_THREADS, or every core the process may run on.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from queue import SimpleQueue

from nearbank.errors import NearbankError
from nearbank.kernels.arrays import checked_size

# Below this much memory touched per thread, waking another thread costs more than it saves.
BYTES_WORTH_A_THREAD = 256 * 1024
SHARE_TAKEN = 2 / 3  # of what is left for each thread: the rest evens out who started late or was interrupted


def usable_cores() -> list[int]:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def edges_of_parts(items: int, threads: int, least: int) -> list[int]:
    """0 … `items`: parts that become smaller down to `least` items."""
    edges = [0]
    while edges[-1] < items:
        left = items - edges[-1]
        edges.append(edges[-1] + min(left, max(least, int(left / threads * SHARE_TAKEN))))
    return edges


class Job:
    """run(first, last) over parts of `items`, shared by the threads that call `work`."""

    def __init__(self, run: Callable[[int, int], None], edges: list[int]) -> None:
        self._run = run
        self._left = list(pairwise(edges))[::-1]  # list.pop hands each part out once
        self._finished: list[BaseException | None] = []
        self._parts = len(edges) - 1

    def work(self) -> None:
        """Take parts until none is left."""
        while True:
            try:
                first, last = self._left.pop()
            except IndexError:
                return
            error: BaseException | None = None
            try:
                self._run(first, last)
            except BaseException as raised:  # handed to the caller of `wait`
                error = raised
            self._finished.append(error)

    def wait(self) -> None:
        """Return when all parts are finished; raise what one of them raised."""
        while len(self._finished) < self._parts:
            time.sleep(0)  # microseconds at most: every part has been taken
        for error in self._finished:
            if error is not None:
                raise error


class Workers:
    """Threads waiting for jobs, started when first needed."""

    def __init__(self) -> None:
        self._queues: list[SimpleQueue[Job]] = []
        self._owner = os.getpid()
        self._starting = threading.Lock()
        self.count = _threads_wanted()

    def share(self, job: Job, helpers: int) -> None:
        """Do the job here, with the help of so many workers."""
        for queue in self._started(helpers):
            queue.put(job)
        job.work()
        job.wait()

    def _started(self, helpers: int) -> list[SimpleQueue[Job]]:
        with self._starting:
            if self._owner != os.getpid():  # a fork copies no threads
                self._queues, self._owner = [], os.getpid()
            while len(self._queues) < helpers:
                self._start()
            return self._queues[:helpers]

    def _start(self) -> None:
        queue: SimpleQueue[Job] = SimpleQueue()
        cores = usable_cores()
        core = cores[(len(self._queues) + 1) % len(cores)]
        self._queues.append(queue)
        threading.Thread(target=_serve, args=(queue, core), daemon=True, name="nearbank-cpu").start()


def _threads_wanted() -> int:
    given = os.environ.get("NEARBANK_THREADS")
    if given is None:
        return len(usable_cores())
    if not given.isdecimal() or int(given) < 1:
        raise NearbankError(f"NEARBANK_THREADS={given}; expected a number of threads, 1 or more")
    return int(given)


def _serve(queue: SimpleQueue[Job], core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    while True:
        queue.get().work()


_workers = Workers()


def set_threads(count: int) -> None:
    """Threads that kernels may use from now on, the caller's among them."""
    checked_size(count, "threads")
    _workers.count = count


def thread_count() -> int:
    """Threads that kernels may use."""
    return _workers.count


def in_parts(run: Callable[[int, int], None], items: int, work: int) -> None:
    """run(first, last) over `items`, shared among threads when `work` bytes make that worth it."""
    count = max(1, min(_workers.count, items, work // BYTES_WORTH_A_THREAD))
    if count == 1:
        run(0, items)
        return
    least = max(1, items * BYTES_WORTH_A_THREAD // work)
    _workers.share(Job(run, edges_of_parts(items, count, least)), count - 1)

"""Worker threads for compiled functions that release the GIL, each pinned to a core.

The calling thread takes the last part itself and is never pinned. The number of threads is the process's
choice: `set_threads`, or NEARBANK_THREADS, or every core the process may run on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from queue import SimpleQueue

from nearbank.errors import NearbankError

# Below this much memory touched per thread, waking another thread costs more than it saves.
BYTES_WORTH_A_THREAD = 256 * 1024


def usable_cores() -> list[int]:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@dataclass
class Job:
    """One part of the work, and what became of it."""

    run: Callable[[], None]
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


class Workers:
    """Threads waiting for jobs, started when first needed."""

    def __init__(self) -> None:
        self._queues: list[SimpleQueue[Job]] = []
        self._owner = os.getpid()
        self._busy = threading.Lock()
        self.count = int(os.environ.get("NEARBANK_THREADS", "0")) or len(usable_cores())

    def resize(self, count: int) -> None:
        """Use `count` threads from now on, the caller's among them."""
        if count < 1:
            raise NearbankError(f"{count} threads; expected 1 or more")
        self.count = count

    def run_all(self, parts: list[Callable[[], None]]) -> None:
        """Run all parts, the last one here. One caller at a time; another one runs its parts by itself."""
        if len(parts) == 1 or not self._busy.acquire(blocking=False):
            for part in parts:
                part()
            return
        try:
            jobs = [self._send(i, part) for i, part in enumerate(parts[:-1])]
            try:
                parts[-1]()
            finally:
                for job in jobs:
                    job.done.wait()
        finally:
            self._busy.release()
        for job in jobs:
            if job.error is not None:
                raise job.error

    def _send(self, index: int, part: Callable[[], None]) -> Job:
        if self._owner != os.getpid():  # a fork copies no threads
            self._queues, self._owner = [], os.getpid()
        while len(self._queues) <= index:
            self._start()
        job = Job(part)
        self._queues[index].put(job)
        return job

    def _start(self) -> None:
        queue: SimpleQueue[Job] = SimpleQueue()
        core = usable_cores()[(len(self._queues) + 1) % len(usable_cores())]
        self._queues.append(queue)
        threading.Thread(target=_serve, args=(queue, core), daemon=True, name="nearbank-cpu").start()


def _serve(queue: SimpleQueue[Job], core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    while True:
        job = queue.get()
        try:
            job.run()
        except BaseException as error:  # handed to the caller, who raises it
            job.error = error
        job.done.set()


_workers = Workers()


def set_threads(count: int) -> None:
    """Threads that kernels may use from now on."""
    _workers.resize(count)


def thread_count() -> int:
    """Threads that kernels may use."""
    return _workers.count


def in_parts(run: Callable[[int, int], None], items: int, work: int) -> None:
    """run(first, last) over `items`, split among threads when `work` bytes make that worth it."""
    count = max(1, min(_workers.count, items, work // BYTES_WORTH_A_THREAD))
    edges = [items * i // count for i in range(count + 1)]
    _workers.run_all([_part(run, a, b) for a, b in pairwise(edges)])


def _part(run: Callable[[int, int], None], first: int, last: int) -> Callable[[], None]:
    return lambda: run(first, last)

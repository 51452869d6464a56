"""Systems of several parts: memories, ASIC, links, host and GPU as resources that jobs hold, in SimPy.

A job waits for the jobs it comes after, then for its resource (first come, first served; ties in the order given),
holds it, and ends. A job that is a Program goes to its memory's engine whole; between the points where something can
contend, SimPy sees nothing. Times are whole picoseconds, so the same jobs give the same bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import simpy

from nearbank.errors import NearbankError
from nearbank.sim.engine import Player
from nearbank.sim.program import Program, Start, Stream, Wait
from nearbank.units import ceil_div


@dataclass(frozen=True, slots=True)
class Unit:
    """A part that computes: ASIC, host or GPU; does `capacity` jobs at a time."""

    name: str
    capacity: int = 1


@dataclass(frozen=True, slots=True)
class Link:
    """Pins, CXL or PCIe: one transfer at a time at `bits_per_s`, each delivered `latency_ps` after its last bit."""

    name: str
    bits_per_s: int
    latency_ps: int = 0

    def occupied_ps(self, size_bytes: int) -> int:
        """How long a transfer keeps the link."""
        return ceil_div(8 * size_bytes * 10**12, self.bits_per_s)


@dataclass(frozen=True, slots=True)
class Memory:
    """A machine's channels; plays the programs given to it one after the other."""

    name: str
    player: Player


Resource = Unit | Link | Memory


@dataclass(frozen=True, slots=True)
class Job:
    """What one resource does after other jobs have ended: a duration, bytes over a link, or a program."""

    name: str
    resource: str
    work: int | Program
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """When a job could have begun, began, let its resource go, and had its result there."""

    job: Job
    ready_ps: int
    begin_ps: int
    free_ps: int
    end_ps: int

    @property
    def waited_ps(self) -> int:
        """Time lost to others on the same resource."""
        return self.begin_ps - self.ready_ps


@dataclass(frozen=True, slots=True)
class SystemResult:
    """All jobs in the order in which they ended."""

    spans: tuple[Span, ...]

    @property
    def time_ps(self) -> int:
        return max((span.end_ps for span in self.spans), default=0)

    def busy_ps(self) -> Counter[str]:
        """How long each resource was held; with a capacity above 1, summed over its jobs."""
        total: Counter[str] = Counter()
        for span in self.spans:
            total[span.job.resource] += span.free_ps - span.begin_ps
        return total

    def waited_ps(self) -> Counter[str]:
        """How long jobs waited for each resource while others held it."""
        total: Counter[str] = Counter()
        for span in self.spans:
            total[span.job.resource] += span.waited_ps
        return total


def run(resources: Sequence[Resource], jobs: Sequence[Job]) -> SystemResult:
    """Do all jobs; `NearbankError` names unknown resources and jobs, and jobs that wait for each other in a circle."""
    parts = {resource.name: resource for resource in resources}
    _check(parts, jobs)
    environment = simpy.Environment()
    held = {name: simpy.Resource(environment, _capacity(part)) for name, part in parts.items()}
    ended = {job.name: environment.event() for job in jobs}
    spans: list[Span] = []
    for job in jobs:
        environment.process(_do(environment, job, parts[job.resource], held[job.resource], ended, spans))
    environment.run()
    return SystemResult(tuple(spans))


def _capacity(part: Resource) -> int:
    return part.capacity if isinstance(part, Unit) else 1


def _do(
    environment: simpy.Environment,
    job: Job,
    part: Resource,
    held: simpy.Resource,
    ended: Mapping[str, simpy.Event],
    spans: list[Span],
) -> Generator[simpy.Event, object, None]:
    """One job's life."""
    yield environment.all_of([ended[name] for name in job.after])
    ready = int(environment.now)
    with held.request() as request:
        yield request
        begin = int(environment.now)
        occupied, delivery = _times(part, job, begin)
        yield environment.timeout(occupied)
        free = int(environment.now)
    yield environment.timeout(delivery)
    spans.append(Span(job, ready, begin, free, int(environment.now)))
    ended[job.name].succeed()


def _times(part: Resource, job: Job, begin_ps: int) -> tuple[int, int]:
    """How long the job keeps its resource from now on, and how long its result then takes to arrive."""
    if isinstance(part, Memory):
        assert isinstance(job.work, Program)
        return _play(part.player, job.work, begin_ps) - begin_ps, 0
    assert isinstance(job.work, int)
    return (part.occupied_ps(job.work), part.latency_ps) if isinstance(part, Link) else (job.work, 0)


def _play(player: Player, program: Program, begin_ps: int) -> int:
    """Play the program from the first clock edge at or after `begin_ps`; the memory refreshes while it idles."""
    tck = player.machine.tck_ps
    idle = ceil_div(begin_ps, tck) - player.cycle
    if idle > 0:
        channels = tuple(range(player.machine.organization.channels))
        pause = (Start("system", "idle", idle * tck), Wait("system"))
        player.play(Program("idle", (Stream(channels, pause),)))
    return player.play(program) * tck


def _check(parts: Mapping[str, Resource], jobs: Sequence[Job]) -> None:
    names = {job.name for job in jobs}
    if len(names) < len(jobs):
        twice = next(name for name, n in Counter(job.name for job in jobs).items() if n > 1)
        raise NearbankError(f"two jobs are named {twice!r}; give each its own name")
    for job in jobs:
        part = parts.get(job.resource)
        if part is None:
            raise NearbankError(f"job {job.name}: unknown resource {job.resource!r}; known: {', '.join(parts)}")
        wrong_kind = isinstance(part, Memory) != isinstance(job.work, Program)
        if wrong_kind or (isinstance(job.work, int) and job.work < 0):
            given = job.work if isinstance(job.work, int) else "a Program"
            raise NearbankError(f"job {job.name}: {job.resource} takes {_expected(part)}, not {given}")
        for other in job.after:
            if other not in names:
                raise NearbankError(f"job {job.name}: comes after {other!r}, which is no job")
    _check_order(jobs)


def _expected(part: Resource) -> str:
    if isinstance(part, Memory):
        return "a Program"
    return "bytes, 0 or more" if isinstance(part, Link) else "picoseconds, 0 or more"


def _check_order(jobs: Sequence[Job]) -> None:
    """Take away, again and again, what waits for nothing; what stays waits in a circle."""
    waiting = {job.name: set(job.after) for job in jobs}
    while free := {name for name, after in waiting.items() if not after}:
        waiting = {name: after - free for name, after in waiting.items() if name not in free}
    if waiting:
        raise NearbankError(f"jobs {', '.join(waiting)} wait for each other in a circle; none could ever begin")

"""One simulated point of a study: a model's shape on a machine for so many tokens, and what came out of it.

A point's key is a hash of everything that decides its outcome: shape, machine, formats, counts, the package's version
and the source of what places, lowers and plays it. Outcomes are plain values, so that they can lie in a file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from itertools import islice
from typing import Any

from nearbank import __version__
from nearbank.mapping import bounds
from nearbank.models.shape import Shape
from nearbank.models.sketch import check_counts, describe, sketch
from nearbank.replay import Replay, replay
from nearbank.sim.energy import energy
from nearbank.sim.machine import Machine
from nearbank.trace import Step
from nearbank.workload import Workload

# The parts of the package that an outcome depends on.
_SOURCES = ("formats.py", "units.py", "replay.py", "workload.py", "trace", "mapping", "sim", "models/sketch.py")

# Parts of the time in which the banks multiply; norms, activations, sampling and writing K and V are the others.
PRODUCTS = ("qkv", "proj", "fc1", "fc2", "lm_head", "score", "context")


@dataclass(frozen=True)
class Point:
    """What to simulate: a prompt of `prompt` tokens and `tokens` new ones, or every `stride`-th step of that.

    With a stride each step that is played is whole, at the context it has in the run; the others are left out, and
    the mean over the steps stands for the mean over the run. `also` are machines that differ from `machine` in what
    energy costs alone: the same commands are priced with their constants as well.
    """

    shape: Shape
    machine: Machine
    tokens: int
    prompt: int = 1
    weights: str = "bf16"
    kv: str = "bf16"
    stride: int = 1
    also: tuple[Machine, ...] = ()

    @property
    def key(self) -> str:
        """A name that points with another outcome do not have: the model's name and its longest context decide none."""
        shape = asdict(self.shape) | {"name": None, "context": None}
        also = [machine.digest for machine in self.also]
        about = asdict(self) | {"shape": shape, "machine": self.machine.digest, "also": also}
        about |= {"version": __version__, "source": source_digest()}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]

    def workload(self) -> Workload:
        """The steps of the run, from the shape alone."""
        check_counts(self.shape, self.prompt, self.tokens)

        def steps() -> Iterator[Step]:
            every = sketch(self.shape, self.prompt, self.tokens, weights=self.weights, kv=self.kv)
            return islice(every, self.stride // 2, None, self.stride)

        played = len(range(self.stride // 2, self.tokens, self.stride))
        before = self.prompt + self.tokens - played  # so that the cache has room for the whole run
        return Workload(describe(self.shape), before, played, self.weights, self.kv, steps)


@dataclass(frozen=True)
class Outcome:
    """What a point cost, in all steps that were played. `bound_ns`: the row-aware bound; `seconds`: our own time.

    Row hits are counted by bank, as in reports, and by command, where a MAC in all banks is one access.
    `energy_also_pj` has the energy with the constants of other machines, by their names.
    """

    model: str
    machine: str
    machine_digest: str
    tokens: int
    time_ns: int
    cycles: int
    energy_by_component_pj: dict[str, int | None]
    energy_also_pj: dict[str, int]
    row_hit_rate: float
    row_hit_rate_by_command: float
    bytes_off_chip: int
    time_by_part_ns: dict[str, int]
    utilisation: dict[str, float]
    bound_ns: float
    seconds: float

    @property
    def ns_per_token(self) -> float:
        return self.time_ns / self.tokens

    @property
    def energy_pj(self) -> int:
        """Sum of the known components."""
        return sum(pj for pj in self.energy_by_component_pj.values() if pj is not None)

    @property
    def non_vmm_share(self) -> float:
        """Share of the time in which no matrix or vector product runs."""
        total = sum(self.time_by_part_ns.values())
        return sum(ns for part, ns in self.time_by_part_ns.items() if part not in PRODUCTS) / total


def simulate(point: Point, advance: Callable[[int], None]) -> Outcome:
    """Play a point; `NearbankError` when it does not fit its machine."""
    begin = time.perf_counter()
    done = replay(point.workload(), point.machine, advance=advance)
    return Outcome(**_values(point, done), seconds=round(time.perf_counter() - begin, 2))


def _values(point: Point, done: Replay) -> dict[str, Any]:
    row = done.row
    context = point.prompt + (point.tokens - 1) / 2
    return {
        "model": point.shape.name,
        "machine": point.machine.name,
        "machine_digest": point.machine.digest,
        "tokens": row.tokens,
        "time_ns": row.time_ns,
        "cycles": row.cycles,
        "energy_by_component_pj": dict(row.energy_by_component_pj or {}),
        "energy_also_pj": {other.name: energy(done.result, other).total_fj // 1000 for other in point.also},
        "row_hit_rate": row.row_hit_rate,
        "row_hit_rate_by_command": done.result.row_hit_rate,
        "bytes_off_chip": row.bytes_off_chip,
        "time_by_part_ns": dict(row.time_by_part_ns or {}),
        "utilisation": dict(row.utilisation or {}),
        "bound_ns": bounds(done.plan, point.machine, context).row_aware_ns,
    }


@cache
def source_digest() -> str:
    """A short hash of the code that decides outcomes, so that a change to it makes new points."""
    digest = hashlib.sha256()
    for name, text in _source_texts():
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()[:16]


def _source_texts() -> Iterator[tuple[str, bytes]]:
    root = files("nearbank")
    for name in _SOURCES:
        found = root.joinpath(name)
        entries = [found] if found.is_file() else sorted(found.iterdir(), key=lambda entry: entry.name)
        for entry in entries:
            if entry.name.endswith(".py"):
                yield f"{name}/{entry.name}", entry.read_bytes()

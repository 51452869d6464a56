"""One simulated point of a study: a model's shape on a machine for so many tokens, and what came out of it.

A point's key is a hash of everything that decides its outcome: shape, machine, formats, mapping, counts, the package's
version and the source of what places, lowers and plays it. Names, titles and sources of constants decide nothing.
Outcomes are plain values, so that they can lie in a file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from nearbank import __version__
from nearbank.formats import format_named
from nearbank.mapping import bounds
from nearbank.models.shape import Shape
from nearbank.replay import MappingName, Replay, replay
from nearbank.sim.energy import energy
from nearbank.sim.machine import Machine
from nearbank.sim.result import SimResult
from nearbank.units import AREA
from nearbank.workload import Workload, shape_workload

# The parts of the package that an outcome depends on.
_SOURCES = (
    "formats.py", "cache_formats.py", "units.py", "compiled.py", "replay.py", "workload.py", "trace", "mapping", "sim",
    "sim/lanes", "sim/standards", "models/sketch.py", "models/operations.py", "models/llama.py", "study/point.py",
)  # fmt: skip

# Parts of the time in which the banks multiply; norms, activations, sampling and writing K and V are the others.
PRODUCTS = ("qkv", "proj", "fc1", "fc2", "lm_head", "score", "context")


@dataclass(frozen=True)
class Point:
    """What to simulate: `tokens` new tokens after a prompt of `prompt`, for `batch` sequences of `beams` each.

    `skip` steps at the beginning are not played, and of the others every `stride`-th alone: each step that is played is
    whole, at the context it has in the run, and the mean over the steps stands for the mean over the run. `also` are
    machines that differ from `machine` in what energy costs alone: the same commands are priced with their constants.
    """

    shape: Shape
    machine: Machine
    tokens: int
    prompt: int = 1
    weights: str = "bf16"
    kv: str = "bf16"
    batch: int = 1
    beams: int = 1
    mapping: MappingName = "pim-gpt"
    reuse: int | None = None
    skip: int = 0
    stride: int = 1
    also: tuple[Machine, ...] = ()

    @cached_property
    def key(self) -> str:
        """A name that points with another outcome do not have: the model's name and its longest context decide none."""
        about = {name: value for name, value in vars(self).items() if name not in ("shape", "machine", "also", "key")}
        about["shape"] = asdict(self.shape) | {"name": None, "context": None}
        about["machine"] = effect(self.machine)
        about["also"] = [(machine.name, effect(machine)) for machine in self.also]
        about |= {"version": __version__, "source": source_digest()}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]

    @property
    def played(self) -> slice:
        """Which steps of the run are simulated."""
        return slice(self.skip + self.stride // 2, None, self.stride)

    @property
    def mean_context(self) -> float:
        """Positions attended in the mean of the steps that are played."""
        steps = range(self.tokens)[self.played]
        return self.prompt + sum(steps) / len(steps)

    def workload(self) -> Workload:
        """The steps that are played, from the shape alone."""
        counts = (self.prompt, self.tokens, self.weights, self.kv)
        return shape_workload(self.shape, *counts, batch=self.batch, beams=self.beams, played=self.played)


@dataclass(frozen=True)
class Outcome:
    """What a point cost, in all steps that were played. `bound_ns`: the row-aware bound; `seconds`: our own time.

    `tokens` are those made in these steps by all sequences of the batch. Row hits are counted by bank, as in reports,
    and by command, where a MAC in all banks is one access. `energy_also_pj` has the energy with the constants of other
    machines, by their names. `idle_by_reason`: share of the command slots that stay empty, by what held the next
    command. Areas are those of the unit for the weights' format, derived, and None where the machine has none.
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
    idle_by_reason: dict[str, float]
    bound_ns: float | None
    mac_unit_area_um2: int | None
    mac_units_area_mm2: float | None
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
    done = replay(point.workload(), point.machine, mapping=point.mapping, reuse=point.reuse, advance=advance)
    return Outcome(**_values(point, done), seconds=round(time.perf_counter() - begin, 2))


def _values(point: Point, done: Replay) -> dict[str, Any]:
    row = done.row
    one_by_one = point.batch == point.beams == 1  # what bounds are for
    area_um2 = _area_um2(point)
    units = point.machine.organization.channels * point.machine.organization.banks
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
        "idle_by_reason": _idle(done.result),
        "bound_ns": bounds(done.plan, point.machine, point.mean_context).row_aware_ns if one_by_one else None,
        "mac_unit_area_um2": area_um2,
        "mac_units_area_mm2": None if area_um2 is None else area_um2 * units / 1e6,
    }


def _idle(result: SimResult) -> dict[str, float]:
    slots = sum(channel.cycles * len(channel.channels) for channel in result.channels)
    return {reason: cycles / slots for reason, cycles in result.stalls().most_common()}


def _area_um2(point: Point) -> int | None:
    """The area of one bank's unit for the weights; formats with scales are multiplied by the unit of their codes."""
    formats = point.machine.mac_unit.formats if point.machine.mac_unit else {}
    lanes = formats.get(format_named(point.weights).name)
    return AREA.parse(lanes.area.value) if lanes and lanes.area else None


def effect(machine: Machine) -> str:
    """A hash of the values that decide what a machine does: without its name, title and the sources of constants."""
    content = _without_words(machine.model_dump(mode="json", by_alias=True))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _without_words(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    return {key: _without_words(child) for key, child in node.items() if key not in _WORDS}


_WORDS = frozenset({"name", "title", "source", "verified"})


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

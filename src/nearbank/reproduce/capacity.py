"""Whether a model with its KV cache fits a machine, and by how many bytes. Nothing is simulated, only placed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nearbank.mapping import MappingOptions, plan
from nearbank.sim.machine import Machine
from nearbank.study.point import Point

_ROOM = 64  # rows to place in, times those that the machine has: enough for every model that is asked about


@dataclass(frozen=True)
class Capacity:
    """Bytes that a run's tensors take as placed, rows that are not full included, and bytes that the machine has."""

    model: str
    tokens: int
    needed_bytes: int
    machine_bytes: int

    @property
    def spare_bytes(self) -> int:
        """What is left; negative is missing."""
        return self.machine_bytes - self.needed_bytes

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "spare_bytes": self.spare_bytes}


def capacity(point: Point) -> Capacity:
    """What a point takes of its machine, also where it does not fit."""
    load, organization = point.workload(), point.machine.organization
    options = MappingOptions(weights=load.weights, kv=load.kv, max_context=load.max_context)
    rows = plan(load.model, _with_room(point.machine), options).placement.rows
    needed = rows * organization.total_bytes // organization.rows
    return Capacity(point.shape.name, point.tokens, needed, organization.total_bytes)


def _with_room(machine: Machine) -> Machine:
    larger = machine.organization.model_copy(update={"rows": _ROOM * machine.organization.rows})
    return machine.model_copy(update={"organization": larger})

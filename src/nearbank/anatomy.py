"""What a step of a model run is made of: multiply-accumulates and bytes, by kind of work, as the context grows.

It reads a workload's steps and prices nothing; machines and their times are `nearbank.replay`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from nearbank.trace import Operation, Step
from nearbank.trace.moved import kv_bytes, operation_bytes, weight_bytes
from nearbank.trace.operation import HEAD
from nearbank.workload import Workload

KINDS = ("block weights", "LM head", "K and V", "element-wise")


@dataclass(frozen=True)
class Share:
    """One kind of work in one step: its multiply-accumulates, what it reads of the model, and activations moved.

    `model_bytes` are weights or K and V, `activation_bytes` the 16-bit vectors between operations. `context` counts
    the positions that the step's last token attends.
    """

    step: int
    context: int
    kind: str
    macs: int
    model_bytes: int
    activation_bytes: int

    @property
    def macs_per_byte(self) -> float | None:
        """Multiply-accumulates per byte of weights or cache, None for work that reads neither."""
        return self.macs / self.model_bytes if self.model_bytes else None


def anatomy(load: Workload, *, weights: str | None = None, kv: str | None = None) -> list[Share]:
    """Every step of the workload, one `Share` per kind of `KINDS`; formats may be overridden as in `replay`."""
    return [share for step in load.steps(weights, kv) for share in step_shares(step)]


def step_shares(step: Step) -> list[Share]:
    """The step's work by kind, in the order of `KINDS`; the sums are the step's own."""
    macs: Counter[str] = Counter()
    model: Counter[str] = Counter()
    activations: Counter[str] = Counter()
    for count, operation in _counted(step):
        kind, stored = kind_of(operation), weight_bytes(operation) + kv_bytes(operation)
        macs[kind] += count * operation.macs
        model[kind] += count * stored
        activations[kind] += count * (operation_bytes(operation) - stored)
    context = max(operation.context or 0 for _, operation in _counted(step))
    return [Share(step.index, context, kind, macs[kind], model[kind], activations[kind]) for kind in KINDS]


def kind_of(operation: Operation) -> str:
    """Which of `KINDS` an operation belongs to."""
    if operation.op == "matmul":
        return "LM head" if operation.name == HEAD else "block weights"
    return "element-wise" if operation.kv is None else "K and V"


def _counted(step: Step) -> Iterable[tuple[int, Operation]]:
    return ((block.count, operation) for block in step.blocks for operation in block.operations)

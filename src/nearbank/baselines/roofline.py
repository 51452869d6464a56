"""What a run would cost on a modelled processor at its best: bandwidth or arithmetic, and no host at all.

An operation takes the longer of moving its bytes at peak bandwidth and doing its multiply-accumulates at peak rate.
This is the idealised runtime of "Cheaply Evaluating Inference Efficiency Metrics": uniform hardware, no contention.
What an eager framework adds is in `nearbank.baselines.eager`. Energy is board power times time, an upper bound for a
processor that mostly waits for memory.
"""

from __future__ import annotations

from functools import lru_cache

from nearbank.baselines.processor import Processor
from nearbank.formats import format_named
from nearbank.report.row import MachineRow
from nearbank.trace import Operation, Step
from nearbank.units import ceil_div
from nearbank.workload import Workload

_ACTIVATION_BYTES = 2  # activations between operations are 16-bit


def roofline_row(processor: Processor, load: Workload, weights: str | None = None) -> MachineRow:
    """The workload with its block matrices in `weights`, at the processor's peaks."""
    steps = list(load.steps(weights))
    times_ps = [_step_ps(processor, step) for step in steps]
    total_ps = sum(times_ps)
    return MachineRow(
        machine=f"{processor.name} (roofline)",
        kind="modelled",
        weights=weights or load.weights,
        kv=load.kv,
        tokens=load.tokens,
        time_ns=ceil_div(total_ps, 1000),
        energy_by_component_pj={"board": processor.power_nw * total_ps // 10**9},
        bytes_off_chip=sum(_step_bytes(step) for step in steps),
        token_time_ns=tuple(ceil_div(t, 1000) for t in times_ps),
        note=f"{processor.title}: bytes at {processor.memory_bandwidth.value} or MACs at peak, whichever is longer; "
        f"energy at board power {processor.board_power.value}",
    )


def _step_ps(processor: Processor, step: Step) -> int:
    return sum(b.count * sum(_operation_ps(processor, o) for o in b.operations) for b in step.blocks)


def _operation_ps(processor: Processor, operation: Operation) -> int:
    moving = ceil_div(operation_bytes(operation) * 8 * 10**12, processor.bits_per_s)
    computing = ceil_div(operation.macs * 1000, processor.peak_macs_per_ns)
    return max(moving, computing)


def _step_bytes(step: Step) -> int:
    return sum(b.count * sum(operation_bytes(o) for o in b.operations) for b in step.blocks)


@lru_cache(maxsize=1 << 16)
def operation_bytes(operation: Operation) -> int:
    """Bytes an operation reads and writes in the processor's memory: weights, the KV cache, activations."""
    return weight_bytes(operation) + kv_bytes(operation) + _activation_bytes(operation)


def weight_bytes(operation: Operation) -> int:
    """Bytes of the operation's matrix as stored, scales included; 0 for operations without one."""
    if operation.op != "matmul":
        return 0
    assert operation.weights and operation.n and operation.k
    return format_named(operation.weights).bytes_for(operation.n, operation.k)


def kv_bytes(operation: Operation) -> int:
    """Bytes of the KV cache read (score, context) or written (append: K and V), scales included."""
    if operation.kv is None:
        return 0
    assert operation.kv_heads and operation.m and operation.context
    heads = operation.kv_heads
    head_dim, tokens = {
        "append": ((operation.n or 0) // heads, 2 * operation.m),
        "score": (operation.k or 0, operation.context),
        "context": (operation.n or 0, operation.context),
    }[operation.op]
    return format_named(operation.kv).for_cache().bytes_for(tokens * heads, head_dim)


def _activation_bytes(operation: Operation) -> int:
    m, heads = operation.m or 0, operation.heads or 0
    values = {
        "embed": 2 * m * (operation.n or 0),
        "norm": 2 * m * (operation.n or 0),
        "matmul": m * ((operation.n or 0) + (operation.k or 0)),
        "score": m * heads * (operation.k or 0) + heads * (operation.pairs or 0),
        "softmax": 2 * heads * (operation.pairs or 0),
        "context": m * heads * (operation.n or 0) + heads * (operation.pairs or 0),
        "activation": 2 * m * (operation.n or 0),
        "residual": 3 * m * (operation.n or 0),
        "sample": m * (operation.n or 0),
    }
    return _ACTIVATION_BYTES * values.get(operation.op, 0)

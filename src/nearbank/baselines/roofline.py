"""What a run would cost on a modelled processor at its best: bandwidth or arithmetic, and no host at all.

An operation takes the longer of moving its bytes at peak bandwidth and doing its multiply-accumulates at peak rate.
This is the idealised runtime of "Cheaply Evaluating Inference Efficiency Metrics": uniform hardware, no contention.
What an eager framework adds is in `nearbank.baselines.eager`. Energy is board power times time, an upper bound for a
processor that mostly waits for memory.
"""

from __future__ import annotations

from nearbank.baselines.processor import Processor
from nearbank.report.row import MachineRow
from nearbank.trace import Operation, Step
from nearbank.trace.moved import operation_bytes
from nearbank.units import ceil_div
from nearbank.workload import Workload


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
        tokens=load.all_tokens,
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

"""What a run would cost in an eager framework: a host that issues one operation after another, and slow GEMVs.

The host's time per layer and outside the layers is measured (`benchmarks/eager_overhead.py`) and carried over as it
is. A processor that computes in the host's place adds a launch per kernel and runs beside the host, in order, until
the token is read back; one that is the host itself does both in turn. Bytes are those of the roofline, at the width of
the framework's values, moved at the bandwidth that an eager GEMV was measured to reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from nearbank.baselines.processor import EagerPath, Framework, Processor
from nearbank.errors import NearbankError
from nearbank.report.row import MachineRow
from nearbank.trace import Operation, Step
from nearbank.trace.moved import operation_bytes
from nearbank.units import ceil_div
from nearbank.workload import Workload

_TRACE_VALUE_BYTES = 2


def eager_rows(
    processor: Processor,
    framework: Framework,
    load: Workload,
    weights: str | None = None,
    *,
    host_slowdown: int = 1,
) -> list[MachineRow]:
    """One row for each way the framework may run on the processor, the block matrices in `weights`, a 16-bit format.

    `host_slowdown` asks what a host would do that is so many times slower than the one that was measured.
    """
    weights = weights or load.weights
    if {weights, load.kv} - {"bf16", "fp16"}:
        raise NearbankError(f"eager baselines take 16-bit workloads, not {weights} weights and a {load.kv} cache")
    steps = list(load.steps(weights))
    runs = {name: _Run.of(framework, path, host_slowdown) for name, path in processor.eager.items()}
    return [_row(processor, name, [run.token_ps(step) for step in steps], load, weights) for name, run in runs.items()]


def _row(processor: Processor, name: str, times_ps: list[int], load: Workload, weights: str) -> MachineRow:
    path = processor.eager[name]
    total_ps = sum(times_ps)
    return MachineRow(
        machine=f"{processor.name} (eager, {name})",
        kind="modelled",
        weights=weights,
        kv=load.kv,
        tokens=load.all_tokens,
        time_ns=ceil_div(total_ps, 1000),
        energy_by_component_pj={"processor": path.power_nw * total_ps // 10**9},
        token_time_ns=tuple(ceil_div(t, 1000) for t in times_ps),
        note=f"{processor.title}, {path.title}, eager; GEMV's share of the bandwidth: {path.gemv_share.source}",
    )


@dataclass(frozen=True)
class _Run:
    """A framework on a path, in picoseconds. `beside`: the host only issues, and the processor runs beside it."""

    layer_ps: int
    outside_ps: int
    ps_per_byte: float
    ps_per_mac: float
    beside: bool

    @classmethod
    def of(cls, framework: Framework, path: EagerPath, host_slowdown: int) -> _Run:
        launch = path.launch_ps or 0
        return cls(
            host_slowdown * (framework.layer_ps + framework.kernels_per_layer * launch),
            host_slowdown * (framework.outside_ps + framework.kernels_outside_layers * launch),
            8e12 / path.bits_per_s * path.value_bytes / _TRACE_VALUE_BYTES,
            1000 / path.peak_macs_per_ns,
            path.launch_ps is not None,
        )

    def token_ps(self, step: Step) -> int:
        """One forward pass, until the token is read back."""
        host = device = 0
        outside = sum(block.first < 0 for block in step.blocks)
        for block in step.blocks:
            issue = self.layer_ps if block.first >= 0 else self.outside_ps // outside
            work = round(sum(self._work_ps(operation) for operation in block.operations))
            for _ in range(block.count):
                host, device = self._after(host, device, issue, work)
        return max(host, device)

    def _work_ps(self, operation: Operation) -> float:
        return max(_bytes(operation) * self.ps_per_byte, operation.macs * self.ps_per_mac)

    def _after(self, host: int, device: int, issue: int, work: int) -> tuple[int, int]:
        """Times at which host and device are done with one more part."""
        if not self.beside:
            return host + issue + work, host + issue + work
        # The device may begin with the part's first kernel, and ends no earlier than the host has issued all of it.
        return host + issue, max(max(device, host) + work, host + issue)


@lru_cache(maxsize=1 << 16)
def _bytes(operation: Operation) -> int:
    return operation_bytes(operation)

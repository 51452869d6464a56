"""Requests per second of the compiled controllers: reads in sequence and at random."""

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from nearbank.sim.machine import load_machine
from nearbank.sim.requests import Trace, serve

COUNT = 200_000


@pytest.mark.parametrize("machine", ["ddr4", "gddr6", "hbm2", "ddr4-dramsim3", "hbm2-dramsim3"])
@pytest.mark.parametrize("kind", ["stream", "random"])
def test_requests(benchmark: BenchmarkFixture, machine: str, kind: str) -> None:
    device = load_machine(machine)
    block = device.organization.column_bytes
    blocks = np.arange(COUNT) if kind == "stream" else np.random.default_rng(1).integers(0, (1 << 29) // block, COUNT)
    trace = Trace.at_once(blocks.astype(np.uint64) * np.uint64(block))
    serve(device, Trace.at_once(trace.addresses[:10]))
    result = benchmark.pedantic(lambda: serve(device, trace), rounds=3)
    benchmark.extra_info["requests_per_s"] = COUNT / benchmark.stats.stats.min if benchmark.stats else None
    assert result.reads_done == COUNT

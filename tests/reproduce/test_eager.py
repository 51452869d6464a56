"""The eager baselines follow their description, counted here by hand, and their constants are the measured ones."""

import json
from pathlib import Path

import pytest

from nearbank.baselines.eager import eager_rows
from nearbank.baselines.processor import (
    EagerPath,
    Framework,
    Processor,
    framework_names,
    load_framework,
    load_processor,
)
from nearbank.baselines.roofline import operation_bytes
from nearbank.errors import NearbankError
from nearbank.units import TIME
from nearbank.workload import sketch_workload

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MEASURED = json.loads((RESULTS / "eager_overhead.json").read_text(encoding="utf-8"))
FRAMEWORK = load_framework("gpt2-eager")


def processor(**changes: object) -> Processor:
    constant = {"source": "test"}
    path = {
        "title": "test",
        "value_bytes": 2,
        "format_source": "test",
        "peak_macs_per_ns": 10**6,
        "read_bandwidth": {"value": "100 GB/s", **constant},
        "gemv_share": {"value": 0.5, **constant},
        "power": {"value": "10 W", **constant},
        **changes,
    }
    t4 = load_processor("t4").model_dump(mode="json")
    return Processor.model_validate({**t4, "eager": {"test": EagerPath.model_validate(path)}})


def moved_ns(gb_per_s: float, tokens: int) -> float:
    """Time to move all bytes of GPT2-small's first steps."""
    steps = sketch_workload("gpt2-small", 1, tokens).steps()
    moved = sum(b.count * sum(map(operation_bytes, b.operations)) for step in steps for b in step.blocks)
    return moved / gb_per_s


def host_ns(framework: Framework, launch_ns: float) -> float:
    """Host's time for a token of GPT2-small's 12 layers."""
    kernels = 12 * framework.kernels_per_layer + framework.kernels_outside_layers
    return (12 * framework.layer_ps + framework.outside_ps) / 1000 + kernels * launch_ns


def test_a_host_that_computes_does_both_in_turn() -> None:
    load = sketch_workload("gpt2-small", 1, 3)
    (row,) = eager_rows(processor(), FRAMEWORK, load)
    assert row.time_ns == pytest.approx(moved_ns(50, 3) + 3 * host_ns(FRAMEWORK, 0), rel=1e-4)
    assert row.energy_pj == pytest.approx(row.time_ns * 10_000, rel=1e-4)


def test_values_of_four_bytes_move_twice_as_much() -> None:
    load = sketch_workload("gpt2-small", 1, 3)
    (row,) = eager_rows(processor(value_bytes=4), FRAMEWORK, load)
    assert row.time_ns == pytest.approx(2 * moved_ns(50, 3) + 3 * host_ns(FRAMEWORK, 0), rel=1e-4)


def test_beside_the_host_the_slower_of_the_two_decides() -> None:
    load = sketch_workload("gpt2-small", 1, 3)
    launch = {"value": "4 us", "source": "test"}
    endless = {"value": "1000 TB/s", "source": "test"}
    (bound_by_host,) = eager_rows(processor(launch=launch, read_bandwidth=endless), FRAMEWORK, load)
    assert bound_by_host.time_ns == pytest.approx(3 * host_ns(FRAMEWORK, 4000), rel=1e-3)
    crawl = {"value": "2 GB/s", "source": "test"}
    (bound_by_memory,) = eager_rows(processor(launch=launch, read_bandwidth=crawl), FRAMEWORK, load)
    assert bound_by_memory.time_ns == pytest.approx(moved_ns(1, 3), rel=0.01)


def test_a_long_prompt_is_bound_by_arithmetic() -> None:
    load = sketch_workload("gpt2-small", 1000, 1)
    (row,) = eager_rows(processor(peak_macs_per_ns=100), FRAMEWORK, load)
    macs = sum(step.macs for step in load.steps())
    assert row.time_ns == pytest.approx(macs / 100 + host_ns(FRAMEWORK, 0), rel=0.05)


def test_low_bit_workloads_are_refused_but_their_shape_may_run_in_16_bits() -> None:
    load = sketch_workload("gpt2-small", 1, 2, weights="ternary")
    with pytest.raises(NearbankError, match="ternary"):
        eager_rows(processor(), FRAMEWORK, load)
    (row,) = eager_rows(processor(), FRAMEWORK, load, "bf16")
    assert row.time_ns == eager_rows(processor(), FRAMEWORK, sketch_workload("gpt2-small", 1, 2))[0].time_ns


def test_an_unknown_framework_lists_the_known_ones() -> None:
    with pytest.raises(NearbankError, match="gpt2-eager"):
        load_framework("gpt3-eager")


@pytest.mark.parametrize("name", framework_names())
def test_a_frameworks_constants_are_the_measured_ones(name: str) -> None:
    framework, measured = load_framework(name), MEASURED[load_framework(name).measured_as]
    assert TIME.parse(framework.layer.value) == round(measured["us_per_layer"]) * 10**6
    assert TIME.parse(framework.outside_layers.value) == round(measured["us_outside_layers"]) * 10**6
    assert framework.kernels_per_layer == measured["computing_per_layer"]
    assert framework.kernels_outside_layers == measured["computing_outside_layers"]
    versions = [measured["torch"], measured.get("transformers", "")]
    assert all(".".join(version.split(".")[:2]) in framework.title for version in versions)


def test_a_gemvs_share_is_the_measured_one() -> None:
    gemv = MEASURED["gemv"]
    threads = sorted((name for name in gemv if name.endswith("threads")), key=lambda name: int(name.split()[0]))
    for path, name in (("one core", threads[0]), ("all cores", threads[-1])):
        share = load_processor("xeon-6154").eager[path].gemv_share.value
        assert share == pytest.approx(gemv[name]["float32_share"], abs=0.0005)

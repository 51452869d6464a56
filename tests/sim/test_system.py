"""Systems: overlap where resources differ, queues where they do not, and the engine's own time for memories."""

from __future__ import annotations

import pytest
from tests.sim.strategies import machine_with

from nearbank.errors import NearbankError
from nearbank.sim.engine import Player, simulate
from nearbank.sim.program import Builder, Program, Stream
from nearbank.sim.system import Job, Link, Memory, SystemResult, Unit, run

GPU, HOST = Unit("gpu"), Unit("host", capacity=2)
PCIE = Link("pcie", bits_per_s=64 * 10**9, latency_ps=1000)


def rows(count: int) -> Program:
    b = Builder()
    with b.loop(count) as r:
        b.command("ACT16", row=r)
        with b.loop(64) as c:
            b.command("MACAB", row=r, column=c)
        b.command("PREA")
    return Program("rows", (Stream(tuple(range(8)), b.body()),))


def ends(result: SystemResult) -> dict[str, int]:
    return {span.job.name: span.end_ps for span in result.spans}


def test_different_resources_overlap_and_one_resource_queues() -> None:
    jobs = [Job("a", "gpu", 100), Job("b", "gpu", 50), Job("c", "host", 70), Job("d", "host", 70), Job("e", "host", 70)]
    result = run([GPU, HOST], jobs)
    assert ends(result) == {"c": 70, "d": 70, "a": 100, "e": 140, "b": 150}
    assert result.waited_ps() == {"gpu": 100, "host": 70}
    assert result.busy_ps() == {"gpu": 150, "host": 210}


def test_a_link_is_kept_for_the_bits_and_delivers_after_its_latency() -> None:
    result = run([PCIE, GPU], [Job("x", "pcie", 8000), Job("y", "pcie", 8000), Job("z", "gpu", 5, after=("x",))])
    assert ends(result) == {"x": 1_001_000, "z": 1_001_005, "y": 2_001_000}


def test_a_chain_on_a_memory_is_the_engines_time() -> None:
    machine = machine_with()
    alone = simulate(machine, [rows(500), rows(300)])
    jobs = [Job("first", "pim", rows(500)), Job("second", "pim", rows(300), after=("first",))]
    result = run([Memory("pim", Player(machine))], jobs)
    assert result.time_ps == alone.time_ps


def test_a_memory_refreshes_while_the_gpu_keeps_it_waiting() -> None:
    machine = machine_with()
    memory = Memory("pim", Player(machine))
    result = run([memory, GPU], [Job("prompt", "gpu", 10**8 + 1), Job("token", "pim", rows(10), after=("prompt",))])
    span = result.spans[-1]
    assert span.begin_ps == 10**8 + 1
    assert memory.player.cycle * machine.tck_ps == span.end_ps
    assert memory.player.result().refreshes == 8 * (memory.player.cycle // machine.cycles("tREFI"))


def test_same_jobs_same_bits() -> None:
    jobs = [
        Job(f"j{i}", ("gpu", "host", "pcie")[i % 3], 37 * i + 1, tuple(f"j{k}" for k in range(i % 4)))
        for i in range(4, 60)
    ]
    jobs = [Job(f"j{i}", "gpu", 3) for i in range(4)] + jobs
    assert run([GPU, HOST, PCIE], jobs) == run([GPU, HOST, PCIE], jobs)


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([Job("a", "tpu", 1)], "job a: unknown resource 'tpu'; known: gpu, pcie"),
        ([Job("a", "gpu", 1, ("b",))], "job a: comes after 'b', which is no job"),
        ([Job("a", "gpu", 1), Job("a", "gpu", 1)], "two jobs are named 'a'"),
        ([Job("a", "gpu", 1, ("b",)), Job("b", "gpu", 1, ("a",))], "jobs a, b wait for each other in a circle"),
        ([Job("a", "gpu", rows(1))], "job a: gpu takes picoseconds, 0 or more, not a Program"),
        ([Job("a", "pcie", -1)], "job a: pcie takes bytes, 0 or more, not -1"),
    ],
)
def test_faults_are_named(jobs: list[Job], message: str) -> None:
    with pytest.raises(NearbankError) as error:
        run([GPU, PCIE], jobs)
    assert str(error.value).startswith(message)

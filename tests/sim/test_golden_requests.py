"""Ordinary requests against DRAMsim3 and Ramulator 2.1: cycles, commands and row hits."""

import csv
import json
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nearbank.sim.machine import load_machine
from nearbank.sim.requests import RequestResult, Trace, serve

DATA = Path(__file__).parent / "data"
DRAMSIM3 = {"DDR4_8Gb_x8_2400": "ddr4-dramsim3", "HBM2_8Gb_x128": "hbm2-dramsim3"}


@cache
def dramsim3_trace(kind: str) -> Trace:
    """1 M reads in sequence or at random over 512 MiB, or 100 k requests of which a third write; 64 B each."""
    if kind == "stream":
        return Trace.at_once(np.arange(1_000_000, dtype=np.uint64) * np.uint64(64))
    if kind == "random":
        return Trace.at_once(at_random(512 << 20, 64, 1_000_000))
    rng = random.Random(7)
    pairs = [(rng.randrange(0, (512 << 20) // 64) * 64, rng.random() < 1 / 3) for _ in range(100_000)]
    return Trace.at_once(np.array([p[0] for p in pairs], np.uint64), np.array([p[1] for p in pairs]))


@cache
def at_random(size: int, block: int, count: int) -> NDArray[np.uint64]:
    rng = random.Random(42)
    return np.array([rng.randrange(0, size // block) * block for _ in range(count)], np.uint64)


def dramsim3_rows() -> list[dict[str, str]]:
    with (DATA / "dramsim3.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", dramsim3_rows(), ids=lambda r: f"{r['config']}-{r['trace']}")
def test_dramsim3_exactly(row: dict[str, str]) -> None:
    machine = load_machine(DRAMSIM3[row["config"]])
    got = serve(machine, dramsim3_trace(row["trace"].split("_")[0]), until="answered")
    expected = {"ACT": "acts", "PRE": "pres", "RD": "reads", "WR": "writes", "REFab": "refs"}
    assert got.cycles == int(row["cycles"])
    assert got.row_hits == int(row["row_hits"])
    assert {name: got.commands.get(name, 0) for name in expected} == {n: int(row[c]) for n, c in expected.items()}
    if machine.organization.channels == 1:  # the peer's latency is that of its first channel
        assert got.read_latency_cycles == pytest.approx(float(row["avg_read_lat_ch0"]), abs=1e-9)


def ramulator_rows() -> list[dict[str, int | str]]:
    return [json.loads(line) for line in (DATA / "ramulator.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("row", ramulator_rows(), ids=lambda r: f"{r['name']}-{r['trace']}")
def test_ramulator_exactly(row: dict[str, int | str]) -> None:
    block, count = int(row["txB"]), int(row["n"])
    stream = np.arange(count, dtype=np.uint64) * np.uint64(block)
    addresses = stream if row["trace"] == "stream" else at_random(1 << 30, block, count)
    got: RequestResult = serve(load_machine(str(row["name"]).lower()), Trace.at_once(addresses), until="accepted")
    assert got.cycles == row["cycles"]
    assert (got.row_hits, got.row_misses, got.row_conflicts) == (
        row["row_hits"],
        row["row_misses"],
        row["row_conflicts"],
    )
    peer = dict(line.split(", ") for line in str(row["cmds"]).splitlines())
    names = {"PREpb": "PRE", "PREab": "PREA"}
    assert got.commands == {names.get(name, name): int(n) for name, n in peer.items() if int(n)}

"""What the CPU benchmarks share: the machine's bandwidth, timing a case, and the file of results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from nearbank.kernels import set_threads, thread_count
from nearbank.kernels.bench.bandwidth import read_gb_per_s
from nearbank.kernels.bench.cases import Case
from nearbank.kernels.bench.run import machine, row_of, versions
from nearbank.kernels.bench.timing import PERCENTILE
from nearbank.kernels.threads import usable_cores

RESULTS = Path(__file__).parent / "results"
PASSES = (1, 2)
KEYS = ("kernel", "backend", "threads", "m", "n", "k", "format", "cold")
ROWS: dict[tuple[object, ...], dict[str, object]] = {}  # by KEYS
LIMITS: dict[tuple[int, int], float] = {}  # read bandwidth, GB/s, by pass and threads


@pytest.fixture(params=PASSES, ids=lambda n: f"pass-{n}")
def turn(request: pytest.FixtureRequest) -> int:
    """Every case is timed twice, minutes apart: what else a shared machine does seldom lasts that long."""
    return int(request.param)


COUNTS = sorted({1, len(usable_cores())})


@pytest.fixture(params=COUNTS, ids=lambda n: f"{n}-threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One thread, then all."""
    before = thread_count()
    set_threads(request.param)
    yield request.param
    set_threads(before)


@pytest.fixture
def limit(turn: int, threads: int) -> float:
    """The machine's read bandwidth with so many threads in this pass, GB/s."""
    if (turn, threads) not in LIMITS:
        LIMITS[turn, threads] = read_gb_per_s()
    return LIMITS[turn, threads]


@pytest.fixture
def timed(turn: int, benchmark: object, limit: float) -> Callable[[Case], dict[str, object]]:
    """Time a case over its operands one after the other, keep the faster pass's row for the file of results."""

    def run(case: Case, rounds: int = 100) -> dict[str, object]:
        operands = case.operands()
        operand = cycle(operands)
        rounds = max(rounds, len(operands))
        benchmark.pedantic(lambda: case.call(next(operand)), rounds=rounds, warmup_rounds=len(operands))  # type: ignore[attr-defined]
        if benchmark.disabled:  # type: ignore[attr-defined]
            return {}
        times_s = benchmark.stats.stats.data  # type: ignore[attr-defined]
        row = row_of(case, limit, float(np.percentile(times_s, PERCENTILE)) * 1e6)
        benchmark.extra_info.update(row)  # type: ignore[attr-defined]
        key = tuple(row[name] for name in KEYS)
        ROWS[key] = min(row, ROWS.get(key, row), key=lambda one: one["time_us"])
        return row

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The passes after each other; in each a case with one thread, then with all, so that both find one machine."""
    places: dict[str, int] = {}
    items.sort(key=lambda item: places.setdefault(re.sub(r"\d+-threads", "", item.nodeid), len(places)))
    items.sort(key=lambda item: "pass-2" in item.nodeid)


def _beside_fastest_read(row: dict[str, object]) -> dict[str, object]:
    limit = max(speed for (_, threads), speed in LIMITS.items() if threads == row["threads"])
    return {**row, "limit_gb_per_s": limit, "fraction_of_limit": row["gb_per_s"] / limit}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what this run measured, with what made it: a file for each kind of CPU, by its best path."""
    if not ROWS:
        return
    RESULTS.mkdir(exist_ok=True)
    date, here = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), machine()
    result = {
        "machine": here,
        "versions": versions(),
        "date": date,
        "passes": len(PASSES),
        "rows": [_beside_fastest_read(row) for row in ROWS.values()],
    }
    path = RESULTS / f"cpu-{here['paths'][0]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")

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
ROWS: list[dict[str, object]] = []


COUNTS = sorted({1, len(usable_cores())})


@pytest.fixture(params=COUNTS, ids=lambda n: f"{n}-threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One thread, then all."""
    before = thread_count()
    set_threads(request.param)
    yield request.param
    set_threads(before)


@pytest.fixture(scope="session")
def limits() -> dict[int, float]:
    """The machine's read bandwidth by the number of threads, GB/s."""
    before, found = thread_count(), {}
    for count in COUNTS:
        set_threads(count)
        found[count] = read_gb_per_s()
    set_threads(before)
    return found


@pytest.fixture
def limit(threads: int, limits: dict[int, float]) -> float:
    """The machine's read bandwidth with so many threads, GB/s."""
    return limits[threads]


@pytest.fixture
def timed(benchmark: object, limit: float) -> Callable[[Case], dict[str, object]]:
    """Time a case over its operands in turn, keep its row for the file of results, and return it."""

    def run(case: Case, rounds: int = 100) -> dict[str, object]:
        operands = case.operands()
        turn = cycle(operands)
        rounds = max(rounds, len(operands))
        benchmark.pedantic(lambda: case.call(next(turn)), rounds=rounds, warmup_rounds=len(operands))  # type: ignore[attr-defined]
        if benchmark.disabled:  # type: ignore[attr-defined]
            return {}
        times_s = benchmark.stats.stats.data  # type: ignore[attr-defined]
        row = row_of(case, limit, float(np.percentile(times_s, PERCENTILE)) * 1e6)
        benchmark.extra_info.update(row)  # type: ignore[attr-defined]
        ROWS.append(row)
        return row

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A case with one thread and with all in a row: a machine whose speed drifts is the same one for both."""
    places: dict[str, int] = {}
    items.sort(key=lambda item: places.setdefault(re.sub(r"\d+-threads", "", item.nodeid), len(places)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what this run measured, with what made it: a file for each kind of CPU, by its best path."""
    if not ROWS:
        return
    RESULTS.mkdir(exist_ok=True)
    date, here = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), machine()
    result = {"machine": here, "versions": versions(), "date": date, "rows": ROWS}
    path = RESULTS / f"cpu-{here['paths'][0]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")

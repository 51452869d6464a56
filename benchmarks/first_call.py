"""What the first call of each compiled part costs, in CPU seconds, and what it costs in a later process:

    python benchmarks/first_call.py

Each part runs in two processes, one after the other, whose compiled code is kept in a fresh folder: the first compiles,
the second loads. Seconds are CPU time of one small call, after the imports. Writes `benchmarks/results/first_call.json`
and the table in `docs/simulator.md`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import engine_growth
import numpy as np

from nearbank.kernels import PackedMatrix, linear, prepare
from nearbank.models.zoo import find_shape
from nearbank.replay import replay
from nearbank.workload import shape_workload

RESULTS = engine_growth.ROOT / "benchmarks" / "results" / "first_call.json"
PAGE = engine_growth.PAGE
BEGIN, END = "<!-- made by benchmarks/first_call.py -->", "<!-- end of first calls -->"


def generation() -> object:
    """Two tokens on a machine with several streams, which also looks for lanes that are alike."""
    return replay(shape_workload(find_shape("gpt2-small"), 1, 2), "pim-gpt")


def kernel() -> object:
    weights = np.ones((64, 256), np.float32)
    return linear(weights[:1], prepare(PackedMatrix.quantise(weights, "ternary"), "numba"))


PARTS: dict[str, Callable[[], object]] = {
    "engine, one stream": engine_growth.engine(1000, True),
    "engine, a generation": generation,
    "requests, shared queues": engine_growth.controller("ddr4", "stream", 1000),
    "requests, queues per bank": engine_growth.controller("ddr4-dramsim3", "stream", 1000),
    "ternary product on the CPU": kernel,
}


def seconds(part: str, folder: str) -> float:
    """CPU seconds of the part's call in a new process, whose compiled code lies in the folder."""
    command = [sys.executable, __file__, "--here", part]
    environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
    return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure(part: str) -> dict[str, Any]:
    """One row."""
    with tempfile.TemporaryDirectory() as folder:
        row = {"part": part, "first_s": seconds(part, folder), "later_s": seconds(part, folder)}
    print(f"{part}: {row['first_s']:.1f} s, later {row['later_s']:.2f} s", flush=True)
    return row


def table(found: list[dict[str, Any]]) -> str:
    """A line per part."""
    lines = ["| first call of | first process, CPU s | later processes, CPU s |", "|---|---:|---:|"]
    return "\n".join(lines + [f"| {row['part']} | {row['first_s']:.1f} | {row['later_s']:.2f} |" for row in found])


def call(part: str) -> float:
    """CPU seconds of the part's call, here."""
    started = time.process_time()
    PARTS[part]()
    return time.process_time() - started


def main() -> None:
    result = {
        "machine": engine_growth.cpu_name(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "rows": [measure(part) for part in PARTS],
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    parts = (BEGIN, table(result["rows"]), f"{result['machine']}, {result['date']}.", END)
    PAGE.write_text(before + "\n\n".join(parts) + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        print(call(sys.argv[2]))
    else:
        main()

"""Running the cases and describing the machine they ran on."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nearbank.kernels.bench.bandwidth import read_gb_per_s
from nearbank.kernels.bench.cases import Case, all_cases
from nearbank.kernels.bench.timing import time_us
from nearbank.kernels.cpu.paths import available_paths
from nearbank.kernels.threads import set_threads, thread_count, usable_cores

Progress = Callable[[str, int, int], None]
QUICK, FULL = (40, 0.5), (100, 5.0)  # calls of a case, and seconds for all of them
PACKAGES = ("nearbank", "numpy", "numba", "llvmlite", "torch")


def run(quick: bool = False, threads: list[int] | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Time every case with 1 thread and with all; `progress` is told each case's name, its number and of how many.

    Returns {"machine", "versions", "date", "complete", "rows"}; a row's time is in µs, its bandwidths in GB/s of
    packed weights or cache read, `limit_gb_per_s` the machine's own read bandwidth in this run. After Ctrl-C the
    rows are those measured so far.
    """
    before, rows = thread_count(), []
    made = _rows(quick, threads or sorted({1, len(usable_cores())}), progress or (lambda *_: None))
    try:
        for row in made:
            rows.append(row)
        complete = True
    except KeyboardInterrupt:
        complete = False
    finally:
        set_threads(before)
    return {
        "machine": machine(),
        "versions": versions(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "complete": complete,
        "rows": rows,
    }


def _rows(quick: bool, threads: list[int], progress: Progress) -> Iterator[dict[str, Any]]:
    limits: dict[int, float] = {}
    jobs = [(count, make) for count in threads for make in all_cases(quick, count)]
    for done, (count, make) in enumerate(jobs):
        set_threads(count)
        if count not in limits:
            limits[count] = read_gb_per_s()
        case = make()
        progress(f"{case.kernel} {case.format} {case.n} × {case.k}, {case.backend}, threads {count}", done, len(jobs))
        taken_us = time_us(case.call, case.operands(), *(QUICK if quick else FULL))
        yield row_of(case, limits[count], taken_us)


def row_of(case: Case, limit_gb_per_s: float, taken_us: float) -> dict[str, Any]:
    """A case and its time as a row of the results."""
    speed = case.nbytes / taken_us / 1000
    return {
        "kernel": case.kernel,
        "backend": case.backend,
        "threads": case.threads,
        "m": case.m,
        "n": case.n,
        "k": case.k,
        "format": case.format,
        "cold": case.cold,
        "time_us": taken_us,
        "gb_per_s": speed,
        "limit_gb_per_s": limit_gb_per_s,
        "fraction_of_limit": speed / limit_gb_per_s,
    }


def machine() -> dict[str, Any]:
    """The processor, its cores, and the instruction paths it can run."""
    return {
        "cpu": _cpu_name(),
        "cores": len(usable_cores()),
        "system": f"{platform.system()} {platform.machine()}",
        "paths": available_paths(),
        "memory_bytes": _memory_bytes(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory_bytes() -> int | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def versions() -> dict[str, str]:
    """Python's version and those of the installed packages that matter."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

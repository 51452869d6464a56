"""Compiled kernels lie on disk after the first call, and know all files they were made from."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

from nearbank import compiled

CALL = """
import numpy as np
from nearbank.kernels import PackedMatrix, linear, prepare
from nearbank.kernels.cpu import matmul, quantise
w = np.ones((40, 64), np.float32)
linear(w[:1], prepare(PackedMatrix.quantise(w, "ternary"), "numba"))
stats = [f.stats for f in (matmul._multiply_row, quantise._quantise)]
print(sum(sum(s.cache_hits.values()) for s in stats), sum(sum(s.cache_misses.values()) for s in stats))
"""


def test_a_later_process_starts_from_the_cache(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", CALL]
    runs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    assert [run.stdout.split() for run in runs] == [["0", "2"], ["2", "0"]]


@pytest.mark.parametrize("part", ["dot", "dot_avx2", "dot_wide", "vectors", "paths"])
def test_a_change_in_what_they_call_is_seen(part):
    importlib.import_module("nearbank.kernels.cpu.matmul")
    found: set[str] = set()
    compiled._collect("nearbank.kernels.cpu.matmul", found)
    assert f"nearbank.kernels.cpu.{part}" in found

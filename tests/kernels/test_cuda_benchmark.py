"""The GPU benchmark where there is no GPU: one clear line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nearbank.kernels.cuda.device import device_problem

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.skipif(device_problem() is None, reason="a GPU is at hand")
def test_without_a_gpu_it_says_so_in_one_line():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr == f"no GPU benchmark here: {device_problem()}\n"

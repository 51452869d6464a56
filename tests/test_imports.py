"""What a light installation can import: no torch, no CuPy, and quickly."""

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "cupy", "transformers")


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "nearbank",
        "nearbank.sim.machine",
        "nearbank.sim.engine",
        "nearbank.mapping",
        "nearbank.kernels",
        "nearbank.models",
        "nearbank.replay",
        "nearbank.demo",
        "nearbank.cli.app",
    ],
)
def test_no_module_of_the_main_job_loads_torch_or_a_gpu(module: str) -> None:
    assert not loaded_after(f"import {module}") & set(HEAVY)


def test_sim_and_mapping_work_where_torch_and_cupy_are_missing() -> None:
    block = "import sys\nfor name in ('torch', 'cupy'): sys.modules[name] = None\n"
    assert "nearbank.mapping" in loaded_after(f"{block}import nearbank.sim, nearbank.mapping, nearbank.sim.engine")


def test_importing_nearbank_is_quick() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import nearbank"], check=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5

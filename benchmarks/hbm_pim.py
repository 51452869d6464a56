"""Cycles of HBM-PIM and AttAcc beside those of their own simulators, row by row.

python benchmarks/hbm_pim.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.sim import test_golden_attacc as attacc
from tests.sim import test_golden_hbm_pim as pim

from nearbank.sim.hbm_pim import elementwise, gemv
from nearbank.sim.machine import load_machine


def main() -> None:
    machine = load_machine("hbm-pim")
    print(f"{'case':36s} {'ours':>9s} {'peer':>9s}")
    for outputs, inputs, cycles in pim.gemv_rows("pim_cycles"):
        _show(f"HBM-PIM GEMV {outputs} x {inputs}", pim.after_half_an_interval(gemv(machine, outputs, inputs)), cycles)
    for kernel, numbers, cycles in pim.elementwise_rows():
        program = elementwise(machine, numbers, 1 if kernel == "relu" else 2)
        _show(f"HBM-PIM {kernel} {numbers}", pim.after_half_an_interval(program), cycles)
    for outputs, inputs, cycles in pim.gemv_rows("host_cycles"):
        _show(f"HBM2 GEMV {outputs} x {inputs}", pim.plain_cycles(outputs, inputs), cycles)
    for level, spacing, cycles in attacc.CASES:
        _show(f"AttAcc {level}, MAC every {spacing}", attacc.attention_cycles(level, spacing), cycles)


def _show(case: str, ours: int, peer: int) -> None:
    print(f"{case:36s} {ours:9d} {peer:9d} {ours / peer - 1:+8.2%}")


if __name__ == "__main__":
    main()

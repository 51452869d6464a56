"""The estimate of the attention's time: loops found in machine code, and bounds that follow formulas."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from nearbank.kernels.cuda import cubin, loops, sources
from nearbank.kernels.cuda.loops import Instruction

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_issue_bound.py"
LISTING = """
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_1:
        /*0010*/                   LDG.E.64 R2, desc[UR6][R2.64] ;
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*0030*/              @!P1 BRA `(.L_x_2) ;
        /*0040*/                   FMUL R4, R4, R9 ;
        /*0050*/                   SHFL.BFLY PT, R5, R4, 0x1, 0x1f ;
.L_x_2:
        /*0060*/              @!P2 BRA `(.L_x_3) ;
        /*0070*/                   LDG.E.64 R2, desc[UR6][R2.64] ;
.L_x_3:
        /*0080*/              @!UPT UIADD3 URZ, URZ, URZ, URZ ;
        /*0090*/               @P0 BRA `(.L_x_1) ;
.L_x_4:
        /*00a0*/               @P3 BRA `(.L_x_4) ;
        /*00b0*/                   EXIT ;
"""


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_issue_bound", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_loop_and_its_usual_path():
    code = loops.parse(LISTING)
    assert code[9].guard == "P0" and code[8].guard == "!UPT"
    assert loops.main_loop(code) == range(1, 10)
    path = loops.common_path(code, range(1, 10))
    assert [one.name for one in path if one.name != "BRA"] == ["LDG.E.64", "HMMA.16816.F32.BF16", "LDG.E.64", "UIADD3"]
    assert loops.by_class(path) == {"loads": 2, "matrix": 1, "integers": 4}
    assert not loops.main_loop((Instruction("EXIT"),))


def tile_of(script, matrix, other):
    kinds = [Instruction("HMMA")] * matrix + [Instruction("IADD3")] * other
    return script.Built("int4", 128, 128, tuple(kinds), 300, 500)


def test_bounds_are_those_of_the_formulas(script):
    chip, one = script.H200, tile_of(script, 34, 266)
    case = script.case_of(one, chip, 8, 1, 32768)
    found = script.bounds(one, case, chip)
    assert (case.splits, case.grid, case.waves(chip), case.tiles()) == (33, 264, 1, 8)
    assert found.memory_us == pytest.approx(8 * 32768 * 2 * (64 + 4) / 4.3e6)
    # 16 warps of a multiprocessor, 8 tiles each, on 4 schedulers
    assert found.issue_us == pytest.approx(4 * 8 * 300 / 1755)
    assert found.matrix_us == pytest.approx(4 * 8 * 34 * 8 / 1755)
    assert case.balance(chip) == pytest.approx(8 * 2048 / (264 * 8 * 8))
    assert found.total_us == pytest.approx(found.memory_us + found.begin_us + found.end_us)


@pytest.mark.parametrize("context", [1024, 4096, 131072])
def test_no_context_has_more_than_one_wave_or_a_balance_above_one(script, context):
    one = tile_of(script, 34, 266)
    for group in (1, 8, 9, 64):
        case = script.case_of(one, script.H200, 8, group, context)
        assert case.waves(script.H200) == 1
        assert 0 < case.balance(script.H200) <= 1


def test_the_tables_of_real_machine_code(script):
    pytest.importorskip("cupy")
    if cubin.disassembler() is None:
        pytest.skip("nvdisasm is not installed")
    one = script.built("int4", 128)
    # 8 steps of q · k for two eights of tokens, 8 tiles of p · v and the bias in two halves each
    assert loops.by_class(one.tile)["matrix"] == 2 * 8 + 2 * 8 + 2
    assert loops.by_class(one.tile)["loads"] == 2 + 4 + 2 + 2
    assert len(one.tile) < 300
    lines = list(script.instance_lines([one], script.H200, 8, 1, 32768))
    assert f"| int4 × 128 | {len(one.tile)} | 34 | 10 |" in lines[4]
    assert lines[-1].startswith("| int4 × 128 | 264 | 1 | 0.97 | 8.3 |")
    assert len(list(script.balance_lines(one, script.H200, 8))) == 10
    assert sources.attend_resident("int4", 128) == script.resident(one, script.H200)

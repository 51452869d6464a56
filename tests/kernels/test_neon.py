"""The Arm path on any machine: it becomes SDOT as Arm code, and with SDOT written out in LLVM it gives right sums."""

from __future__ import annotations

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from numba import njit

from nearbank.kernels.cpu import dot_wide
from nearbank.kernels.cpu import vectors as v
from nearbank.kernels.cpu.paths import PATHS, available_paths, cpu_features

SDOT = "llvm.aarch64.neon.sdot.v4i32.v16i8"


def arm_assembly(rows: int, bits: int) -> str:
    """The tile's loop compiled for 64-bit Arm with dot products."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    kind = ir.FunctionType(ir.VoidType(), [v.BYTE_POINTER, v.BYTE_POINTER, v.I64, v.BYTE_POINTER])
    function = ir.Function(module, kind, "tile")
    weights, x, blocks, out = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    members = [v.at(builder, x, 1024 * m) for m in range(rows)]
    dot_wide._emit(builder, dot_wide.NEON[bits], bits, members, weights, blocks, out)
    builder.ret_void()
    target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    machine = target.create_target_machine(opt=3, features="+neon,+dotprod")
    parsed = llvm.parse_assembly(str(module).replace(f'"{ir.Module().triple}"', '"aarch64-unknown-linux-gnu"'))
    return str(machine.emit_assembly(parsed))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_it_becomes_dot_products_of_arm(rows, bits):
    lines = [line.split() for line in arm_assembly(rows, bits).splitlines()]
    names = [words[0] for words in lines if words]
    quarters, places = 8, 8 // bits
    assert names.count("sdot") == rows * quarters * places * (3 if bits == 8 else 1)
    assert ("prfm" in names) == (rows == 1)


def written_out(builder, total, a, b):
    """SDOT in instructions of every machine."""
    wide = ir.VectorType(v.I32, 16)
    product = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    for i in range(4):
        lanes = ir.Constant(ir.VectorType(v.I32, 4), list(range(i, 16, 4)))
        total = builder.add(total, builder.shuffle_vector(product, product, lanes))
    return total


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_its_sums_are_exact(monkeypatch, rows, bits):
    real = v.call

    def call(builder, name, result, arguments):
        return written_out(builder, *arguments) if name == SDOT else real(builder, name, result, arguments)

    monkeypatch.setattr(v, "call", call)
    dot = dot_wide.make_neon(rows, bits)

    @njit
    def run(w, x, blocks, out):
        dot(w, 0, x, 0, x.size // rows, blocks, out)

    rng = np.random.default_rng(bits)
    blocks, places = 6, 8 // bits
    w = rng.integers(0, 256, blocks * 128, dtype=np.uint8)
    x = rng.integers(-128, 128, (rows, blocks * 4 * places)).astype(np.int8)
    w[:128], x[:, : 4 * places] = 255, -128  # the extremes
    out = np.zeros((rows, 32), np.int32)
    run(w, x.reshape(-1), blocks, out.reshape(-1))
    shifts = np.arange(places)[:, None, None] * bits
    codes = (w.reshape(blocks, 1, 32, 4) >> shifts) & ((1 << bits) - 1)  # [blocks, places, 32, 4]
    right = np.einsum("bprk,mbpk->mr", codes.astype(np.int64), x.reshape(rows, blocks, places, 4).astype(np.int64))
    np.testing.assert_array_equal(out, right)


def test_the_path_is_there_where_the_cpu_reports_it():
    assert ("neon" in available_paths()) == (PATHS["neon"][1] <= cpu_features())

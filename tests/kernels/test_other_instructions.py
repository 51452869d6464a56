"""The Arm and AVX-512 paths on any machine: they become the instructions meant, and with those written out in LLVM they
give right sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from numba import njit

from nearbank.kernels import PackedMatrix
from nearbank.kernels.backends import backend_named
from nearbank.kernels.cpu import dot_wide, matmul
from nearbank.kernels.cpu import vectors as v
from nearbank.kernels.cpu.paths import PATHS, Avx512Vnni, NeonDot, available_paths, cpu_features
from nearbank.kernels.cpu.tiles import tile


def sdot(builder, total, a, b):
    """SDOT in instructions of every machine."""
    return _fours(builder, total, builder.sext(a, _wide(a)), builder.sext(b, _wide(b)))


def vpdpbusd(builder, total, codes, x):
    """VPDPBUSD in instructions of every machine: the first factor unsigned."""
    codes, x = (builder.bitcast(part, ir.VectorType(v.I8, 64)) for part in (codes, x))
    return _fours(builder, total, builder.zext(codes, _wide(codes)), builder.sext(x, _wide(x)))


def _wide(part):
    return ir.VectorType(v.I32, part.type.count)


def _fours(builder, total, a, b):
    product = builder.mul(a, b)
    for i in range(4):
        lanes = list(range(i, product.type.count, 4))
        picked = builder.shuffle_vector(product, product, ir.Constant(ir.VectorType(v.I32, len(lanes)), lanes))
        total = builder.add(total, picked)
    return total


@dataclass(frozen=True)
class Kind:
    """A path: where it is compiled to, its instruction as LLVM and the assembler name it, and its sums at once."""

    path: Any
    triple: str
    features: str
    intrinsic: str
    instruction: str
    written_out: Callable[..., Any]
    way: Callable[[int], dot_wide.Way]
    at_once: int


KINDS = {
    "neon": Kind(
        NeonDot, "aarch64-unknown-linux-gnu", "+neon,+dotprod", "llvm.aarch64.neon.sdot.v4i32.v16i8", "sdot", sdot,
        dot_wide.NEON.__getitem__, 4,
    ),
    "avx512vnni": Kind(
        Avx512Vnni, "x86_64-unknown-linux-gnu", "+avx512f,+avx512bw,+avx512vl,+avx512vnni,+evex512",
        "llvm.x86.avx512.vpdpbusd.512", "vpdpbusd", vpdpbusd, lambda bits: dot_wide.VNNI, 16,
    ),
}  # fmt: skip


def assembly(kind: Kind, rows: int, bits: int) -> str:
    """The tile's loop compiled for a machine that has the instruction."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    signature = ir.FunctionType(ir.VoidType(), [v.BYTE_POINTER, v.BYTE_POINTER, v.I64, v.BYTE_POINTER])
    function = ir.Function(module, signature, "tile")
    weights, x, blocks, out = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    members = [v.at(builder, x, 1024 * m) for m in range(rows)]
    dot_wide._emit(builder, kind.way(bits), bits, members, weights, blocks, out)
    builder.ret_void()
    machine = llvm.Target.from_triple(kind.triple).create_target_machine(opt=3, features=kind.features)
    return str(machine.emit_assembly(llvm.parse_assembly(str(module).replace(ir.Module().triple, kind.triple))))


@pytest.mark.parametrize("rows", [1, 4, 8])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_it_becomes_the_instruction(kind, rows, bits):
    lines = [line.split() for line in assembly(kind, rows, bits).splitlines()]
    names = [words[0] for words in lines if words]
    vectors, places = 32 // kind.at_once, 8 // bits
    thrice = 3 if kind.path is NeonDot and bits == 8 else 1
    assert names.count(kind.instruction) == rows * vectors * places * thrice
    assert any(name.startswith(("prf", "prefetch")) for name in names) == (rows == 1)


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def emulated(request, monkeypatch):
    """A path whose instruction is a call from now on, of a function that writes it out."""
    real, kind = v.call, request.param

    def call(builder, name, result, arguments):
        if name != kind.intrinsic:
            return real(builder, name, result, arguments)
        return builder.call(_function(builder.module, kind, result, arguments), arguments)

    monkeypatch.setattr(v, "call", call)
    return kind


def _function(module, kind, result, arguments):
    name = f"emulated_{kind.instruction}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(result, [a.type for a in arguments]), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(kind.written_out(builder, *function.args))
    return function


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_its_sums_are_exact(emulated, rows, bits):
    dot = dot_wide.make(emulated.way(bits), rows, bits)

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


@pytest.mark.parametrize("emulated", [KINDS["avx512vnni"]], indirect=True, ids=["avx512vnni"])
def test_whole_products_are_exact(emulated, monkeypatch):
    """Rows in eights, fours and padded to four; groups and tails."""
    uncached = njit(matmul._multiply_rows.py_func)  # what is compiled here must not be found by others
    monkeypatch.setattr(matmul, "_multiply_rows", uncached)
    rng = np.random.default_rng(5)
    for name in ("binary", "ternary", "int4", "int8"):
        packed = PackedMatrix.quantise(rng.normal(size=(37, 300)).astype(np.float32), name)
        tiles = tile(packed)
        state = matmul.CpuMatrix(emulated.path(tiles.bits), tiles)
        for m in (2, 4, 13):
            codes = rng.integers(-128, 128, (m, 300)).astype(np.int8)
            args = codes, rng.random(m).astype(np.float32), codes.sum(axis=1, dtype=np.int32)
            np.testing.assert_array_equal(matmul.matmul_codes(*args, state), numpy_product(*args, packed))


def numpy_product(codes, scales, sums, packed):
    """By the definition."""
    numpy = backend_named("numpy")
    return numpy.matmul_codes(codes, scales, sums, numpy.prepare(packed))


@pytest.mark.parametrize("name", KINDS)
def test_the_path_is_there_where_the_cpu_reports_it(name):
    assert (name in available_paths()) == (PATHS[name][1] <= cpu_features())

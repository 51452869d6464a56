"""The CUDA sources as machine code for named GPUs: they compile, use the instructions meant, and spill nothing."""

from __future__ import annotations

import importlib.util
import os

import pytest

from nearbank.kernels.cuda import cubin, sources, window


def compiler_problem() -> str | None:
    """Why machine code cannot be made and read here, or None."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy (with NVRTC) is not installed"
    if cubin.disassembler() is None:
        return "nvdisasm is not installed (pip install nvidia-cuda-nvdisasm)"
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except Exception as error:  # a missing libnvrtc shows as any of several errors
        return f"NVRTC does not load: {error}"
    return None


PROBLEM = compiler_problem()
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))

ARCHS = ("sm_80", "sm_90a")
STREAMED = ("LDG.E.NA.128", "LDG.E.128")  # 16-byte loads, past the first cache or through it

# kernel → instructions that its machine code must hold (each entry: any one of the prefixes)
MEANT = {
    sources.gemv_stream(2, 1): (("IMMA.16832.S8.S8",), STREAMED),
    sources.gemv_stream(1, 2): (("IMMA.16832.S8.S8",), STREAMED),
    sources.gemv_rows(2, 1, sources.ROWS_TWO): (("IMMA.16832.S8.S8",), STREAMED),
    sources.gemv_one(2, 3, False): (("IMMA.16832.S8.S8",), STREAMED, ("LDS.128",)),
    sources.gemv_groups(4, 1): (("IMMA.16832.S8.S8",), STREAMED),
    sources.gemm(2, 1, 4, False): (("IMMA.16832.S8.S8",), ("LDGSTS.E.BYPASS.128",), ("LDS.128",)),
    sources.gemv_dot4(2): (("IDP.4A.S8.S8",), STREAMED),
    sources.binary_gemm(4, True): (("BMMA.168256.AND.POPC",), STREAMED),
    sources.attend("int4", 128): (("HMMA.16816.F32.BF16",), STREAMED, ("PRMT",), ("MUFU.EX2",)),
    sources.attend("int4", 128, paged=True): (("HMMA.16816.F32.BF16",), STREAMED),
    sources.attend("int8", 128): (("HMMA.16816.F32.BF16",), STREAMED),
    sources.attend("fp16", 64): (("HMMA.16816.F32",), STREAMED),
    sources.quantise(0, 0): (("IDP.4A",),),
    sources.append_rows("int4", 1): (("SHFL.BFLY",),),
    sources.append_rows("int4", 1, paged=True): (("SHFL.BFLY",),),
    sources.exact_pages("int4"): (("FADD",), ("FMUL",)),
    sources.floats_by_floats(2): (STREAMED, ("FADD",), ("FMUL",)),
}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kernel", MEANT, ids=lambda kernel: kernel.expression)
def test_meant_instructions_are_there_and_nothing_spills(kernel, arch):
    compiled = cubin.compile_kernel(kernel, arch)
    assert compiled.spill_bytes == 0
    found = cubin.instructions(compiled)
    assert not [name for name in found if name.startswith(("STL", "LDL"))]
    for choices in MEANT[kernel]:
        assert any(name.startswith(choices) for name in found), f"none of {choices} in {sorted(found)}"


@pytest.mark.parametrize("bits", [2, 8])
def test_the_warpgroup_kernel_uses_hopper_instructions(bits):
    compiled = cubin.compile_kernel(sources.gemm_wide(bits), "sm_90a")
    found = cubin.instructions(compiled)
    assert compiled.spill_bytes == 0
    assert sum(count for name, count in found.items() if name.startswith("IGMMA.64x128x32.S8.S8")) == 16


def test_hopper_kernels_start_early():
    found = cubin.instructions(cubin.compile_kernel(sources.gemv_one(2, 3, False), "sm_90a"))
    assert found["ACQBULK"] == 1  # griddepcontrol.wait
    assert found["PREEXIT"] == 1  # griddepcontrol.launch_dependents


def test_machine_code_is_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("NEARBANK_CACHE", str(tmp_path))
    path, name = cubin.stored(sources.STAGE_CODES, "sm_80")
    assert path.read_bytes()[:4] == b"\x7fELF"
    assert "stage_codes" in name
    written = path.stat().st_mtime_ns
    assert cubin.stored(sources.STAGE_CODES, "sm_80") == (path, name)
    assert path.stat().st_mtime_ns == written
    assert cubin.stored(sources.STAGE_CODES, cubin.arch_of(90))[0] != path
    assert not list(tmp_path.glob("**/tmp*"))


@pytest.mark.skipif(not os.environ.get("NEARBANK_ALL_CUBINS"), reason="set NEARBANK_ALL_CUBINS=1 to compile all")
def test_every_instance_compiles_without_spills():
    spilled = []
    for kernel in (*sources.all_kernels(), *window.kernels()):
        for arch in ARCHS if kernel.file != "gemm_wide.cuh" else ("sm_90a",):
            compiled = cubin.compile_kernel(kernel, arch)
            spilled += [(kernel.expression, arch, compiled.spill_bytes)] if compiled.spill_bytes else []
    assert not spilled

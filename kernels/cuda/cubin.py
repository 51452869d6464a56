"""Compiles the CUDA sources to machine code for a named architecture, and reads it back: no GPU needed.

Needs CuPy with NVRTC; `sass` also needs nvdisasm (PyPI: nvidia-cuda-nvdisasm). Used by tests, and to inspect
what a kernel became.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from nearbank.errors import NearbankError
from nearbank.kernels.cuda.sources import Kernel, source_of

OPTIONS = ("--std=c++17",)
_OPCODE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]+)", re.MULTILINE)
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Compiled:
    """One kernel's machine code with what the assembler said of it."""

    kernel: Kernel
    name: str
    arch: str
    cubin: bytes
    registers: int
    stack_bytes: int
    spill_bytes: int


def compile_kernel(kernel: Kernel, arch: str) -> Compiled:
    """Machine code for `arch` ("sm_80", "sm_90a"). Raises NearbankError with the compiler's words."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(source_of(kernel.file), kernel.file, (), ())
    nvrtc.addNameExpression(program, kernel.expression)
    try:
        nvrtc.compileProgram(program, (*OPTIONS, f"-arch={arch}", "--ptxas-options=-v"))
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise NearbankError(f"{kernel.expression} does not compile for {arch}: {log[:2000]}") from error
    name = nvrtc.getLoweredName(program, kernel.expression)
    # getCUBIN leaves off the last byte, which is zero padding.
    cubin = nvrtc.getCUBIN(program) + b"\0"
    stack, stores, loads, registers = _resources(nvrtc.getProgramLog(program), name)
    return Compiled(kernel, name, arch, cubin, registers, stack, stores + loads)


def _resources(log: str, name: str) -> tuple[int, int, int, int]:
    for part in log.split("Compiling entry function ")[1:]:
        stack, registers = _STACK.search(part), _REGISTERS.search(part)
        if part.startswith(f"'{name}'") and stack and registers:
            return int(stack[1]), int(stack[2]), int(stack[3]), int(registers[1])
    raise NearbankError(f"the assembler said nothing of {name}; its log began: {log[:200]}")


def arch_of(capability: int) -> str:
    """The architecture for a compute capability × 10; Hopper's with its own instructions."""
    return "sm_90a" if capability == 90 else f"sm_{capability}"


def stored(kernel: Kernel, arch: str) -> tuple[Path, str]:
    """A file with the kernel's machine code and the kernel's name in it; compiled when it is not there yet.

    Files lie in NEARBANK_CACHE, else in the user's cache folder, named by a hash of all that made them.
    """
    from cupy.cuda import nvrtc

    made_of = (source_of(kernel.file), kernel.expression, arch, *OPTIONS, str(nvrtc.getVersion()))
    key = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:32]
    base = os.environ.get("NEARBANK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "nearbank"
    folder = Path(base).expanduser() / "cubins"
    code, name = folder / f"{key}.cubin", folder / f"{key}.name"
    if not (code.exists() and name.exists()):
        compiled = compile_kernel(kernel, arch)
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in ((code, compiled.cubin), (name, compiled.name.encode())):
            _write_whole(path, data)
    return code, name.read_text()


def _write_whole(path: Path, data: bytes) -> None:
    """So that another process sees all of the file or none."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)


def disassembler() -> str | None:
    """nvdisasm's path, or None."""
    packaged = sorted(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/*/bin/nvdisasm"))
    return str(packaged[-1]) if packaged else shutil.which("nvdisasm")


def sass(compiled: Compiled) -> str:
    """The machine code as text."""
    found = disassembler()
    if found is None:
        raise NearbankError("reading machine code needs nvdisasm; pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.cubin)
        file.flush()
        done = subprocess.run([found, "-c", file.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NearbankError(f"nvdisasm: {done.stderr.strip()[:500]}")
    return done.stdout


def instructions(compiled: Compiled) -> Counter[str]:
    """How often each instruction stands in the machine code, modifiers included ("IMMA.16832.S8.S8")."""
    _, _, rest = sass(compiled).partition(f"\t.section\t.text.{compiled.name},")
    return Counter(_OPCODE.findall(rest.partition("\n\t.section\t")[0]))

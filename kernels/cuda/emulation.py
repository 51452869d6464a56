"""Runs the CUDA sources on the CPU through `emulation.cuh`: for tests, and for a debugger without a GPU.

Exact and slow. Needs g++ (or the C++ compiler that CXX names).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.kernels.cuda.sources import FOLDER, Kernel, all_kernels

Array = npt.NDArray[Any]
FLAGS = (
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-w",
)
GUARD = 64  # bytes before and after every array, checked after each launch


def compiler() -> str | None:
    """The C++ compiler's path, or None."""
    return shutil.which(os.environ.get("CXX", "g++"))


@cache
def build(kernels: tuple[Kernel, ...]) -> ctypes.CDLL:
    """Compile the kernels into one library; a build of the same sources and flags is used again."""
    found = compiler()
    if found is None:
        raise NearbankError("emulating CUDA kernels needs a C++ compiler; install g++ or set CXX")
    files = sorted({kernel.file for kernel in kernels})
    table = ",\n    ".join(f"EMULATED({kernel.expression})" for kernel in kernels)
    source = "\n".join(f'#include "{name}"' for name in files) + f"\nEMULATED_LIBRARY(\n    {table})\n"
    key = hashlib.sha256(source.encode())
    for path in sorted(FOLDER.glob("*.cuh")):
        key.update(path.read_bytes())
    target = Path(tempfile.gettempdir()) / f"nearbank-emulated-{os.getuid()}" / f"{key.hexdigest()[:24]}.so"
    if not target.exists():
        _compile(found, source, target)
    library = ctypes.CDLL(str(target))
    library.nb_error.restype = ctypes.c_char_p
    return library


def _compile(found: str, source: str, target: Path) -> None:
    target.parent.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        text, made = Path(folder) / "library.cpp", Path(folder) / "library.so"
        text.write_text(source)
        command = [found, *FLAGS, f"-I{FOLDER}", "-o", str(made), str(text)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NearbankError(f"the CUDA sources do not compile for the CPU: {done.stderr.strip()[:2000]}")
        made.replace(target)


class EmulatedRuntime:
    """A device whose memory is NumPy's. `multiprocessors` is only what launch plans believe."""

    xp: Any = np

    def __init__(self, kernels: Iterable[Kernel] = (), multiprocessors: int = 3, capability: int = 90) -> None:
        self._kernels = tuple(kernels) or all_kernels()
        self.multiprocessors, self.capability = multiprocessors, capability
        self._guarded: list[tuple[Array, Array]] = []

    def asarray(self, array: Array) -> Array:
        """A guarded copy."""
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy

    def asnumpy(self, array: Array) -> Array:
        """A copy on the host."""
        return np.array(array)

    def empty(self, shape: tuple[int, ...] | int, dtype: Any) -> Array:
        """Poisoned memory between two guards that every launch checks."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(size + 2 * GUARD + 16, 0xA5, np.uint8)
        start = GUARD + -(memory.ctypes.data + GUARD) % 16
        inside: Array = memory[start : start + size].view(dtype).reshape(shape)
        self._guarded.append((memory[:start], memory[start + size :]))
        return inside

    def zeros(self, shape: tuple[int, ...] | int, dtype: Any) -> Array:
        """Guarded zeros."""
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def kernel(self, kernel: Kernel) -> Callable[..., None]:
        """kernel(grid, threads, shared_bytes, arguments): runs every block, one after the other."""
        library, index = build(self._kernels), self._kernels.index(kernel)

        def launch(grid: tuple[int, ...], threads: int, shared_bytes: int, arguments: tuple[Any, ...]) -> None:
            values = [_as_c(argument) for argument in arguments]
            pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
            sizes = (ctypes.c_uint * 3)(*(*grid, 1, 1)[:3])
            if library.nb_run(index, sizes, threads, shared_bytes, pointers):
                raise NearbankError(f"{kernel.expression}: {library.nb_error().decode()}")
            self._check_guards(kernel)

        return launch

    def has_wide(self) -> bool:
        """Hopper's warpgroup instructions are emulated too."""
        return self.capability == 90

    def _check_guards(self, kernel: Kernel) -> None:
        for before, after in self._guarded:
            if (before != 0xA5).any() or (after != 0xA5).any():
                raise NearbankError(f"{kernel.expression}: wrote outside an array")

    def forget(self) -> None:
        """Stop guarding what was allocated so far."""
        self._guarded.clear()


def _as_c(argument: Any) -> Any:
    if argument is None:
        return ctypes.c_void_p(0)
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    kinds: dict[Any, Any] = {np.int32: ctypes.c_int32, np.int64: ctypes.c_int64, np.float32: ctypes.c_float}
    return kinds[type(argument)](argument.item())

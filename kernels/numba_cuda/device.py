"""What the kernels here share: Numba's CUDA compiler, arithmetic that never fuses, sums by a tree."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from nearbank.errors import NearbankError

# Untyped on purpose: what this name holds depends on the simulator and on the package numba-cuda.
cuda: Any = import_module("numba.cuda")
SIMULATED = bool(import_module("numba.core.config").ENABLE_CUDASIM)
LANES = 16
THREADS = 4 if SIMULATED else 128  # of a block; the simulator's threads are Python's
f32, i32 = np.float32, np.int32

# The compiler may turn a · b + c into one instruction with one rounding. These five never fuse.
# In the simulator they are plain functions: it searches the module of every device function at every call.
if SIMULATED:

    def mul(a: Any, b: Any) -> Any:
        return f32(a) * f32(b)

    def add(a: Any, b: Any) -> Any:
        return f32(a) + f32(b)

    def div(a: Any, b: Any) -> Any:
        return f32(np.divide(f32(a), f32(b)))

    def as_bits(a: Any) -> Any:
        return int(f32(a).view(np.int32))

    def as_float(bits: Any) -> Any:
        return np.int64(bits).astype(np.int32).view(np.float32)
else:
    libdevice: Any = import_module("numba.cuda.libdevice")
    mul, add, div = libdevice.fmul_rn, libdevice.fadd_rn, libdevice.fdiv_rn
    as_bits, as_float = libdevice.float_as_int, libdevice.int_as_float


@cuda.jit(device=True)
def fold(values, width):  # type: ignore[no-untyped-def]
    """The sum of values[0 … width) by a tree, over the threads of a block; right in values[0]."""
    t, half = cuda.threadIdx.x, width // 2
    while half > 0:
        cuda.syncthreads()
        if t < half:
            values[t] = values[t] + values[t + half]
        half //= 2
    cuda.syncthreads()


def check_device() -> None:
    """Raise NearbankError, saying what is missing, where Numba cannot compile for or reach a device."""
    if SIMULATED:
        return
    problem = _problem()
    if problem:
        raise NearbankError(
            f"backend 'numba-cuda': {problem}; set NUMBA_ENABLE_CUDASIM=1 to simulate, "
            "or use backend 'numba' or 'numpy'"
        )


def _problem() -> str | None:
    try:
        if cuda.is_available():
            return None
        compiler = import_module("numba.cuda.cudadrv.nvvm").is_available()
    except Exception as error:  # a library that Numba does not find is an exception of that library's finder
        return f"Numba finds no CUDA compiler ({str(error).splitlines()[0]}); install nvidia-nvvm or set CUDA_HOME"
    if not compiler:
        return "Numba finds no libnvvm; install nvidia-nvvm of the driver's CUDA version or set CUDA_HOME"
    return "Numba finds no CUDA device"

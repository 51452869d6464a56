"""Launches that begin while the kernel before them still runs (programmatic dependent launch, Hopper and later).

A kernel so launched must call `wait_for_previous` (portable.cuh) before it touches what another kernel writes. Its
weights can be on their way by then, which hides most of a launch's cost. Works in captured graphs too. CuPy has no
call for it, so this one goes to the driver.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from nearbank.errors import NearbankError

CAPABILITY = 90  # the first that can
_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_C_TYPES: dict[type, Any] = {np.int32: ctypes.c_int32, np.int64: ctypes.c_int64, np.float32: ctypes.c_float}


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_uint), ("pad", ctypes.c_uint), ("value", ctypes.c_int * 16))


class _Config(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def launch(
    function: int,
    stream: int,
    grid: tuple[int, ...],
    threads: int,
    shared_bytes: int,
    arguments: tuple[Any, ...],
) -> None:
    """Start the driver's function handle on a stream. Arguments: device arrays, NumPy scalars, None for a null."""
    values = [_as_c(argument) for argument in arguments]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    attribute = _Attribute(_SERIALIZATION, 0, (ctypes.c_int * 16)(1))
    sizes = (*grid, 1, 1)[:3]
    config = _Config(*sizes, threads, 1, 1, shared_bytes, stream, ctypes.pointer(attribute), 1)
    code = _driver().cuLaunchKernelEx(ctypes.byref(config), ctypes.c_void_p(function), pointers, None)
    if code:
        raise NearbankError(
            f"the CUDA driver refused a launch: error {code}, grid {sizes}, {shared_bytes} shared bytes"
        )


def _as_c(argument: Any) -> Any:
    if argument is None:
        return ctypes.c_void_p(0)
    found = _C_TYPES.get(type(argument))
    return ctypes.c_void_p(argument.data.ptr) if found is None else found(argument.item())

"""Whether this machine has a CUDA device: asks the driver alone, so it is quick and imports nothing."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def device_problem() -> str | None:
    """Why no CUDA device can be used, or None."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA driver (libcuda.so.1) was found"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the CUDA driver reports no device"
    return None


def pci_bus_id(ordinal: int = 0) -> str | None:
    """The PCI address of a visible device, by which other libraries find it; None without one."""
    if device_problem() is not None:
        return None
    driver = ctypes.CDLL("libcuda.so.1")
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(32)
    if driver.cuDeviceGet(ctypes.byref(device), ordinal) != 0:
        return None
    return name.value.decode("ascii") if driver.cuDeviceGetPCIBusId(name, len(name), device) == 0 else None

"""Energy of processor and GPU while something ran: the counters that Linux shows (RAPL) and NVIDIA's driver (NVML).

Counters cover whole processor packages and the whole board of the GPU: other programs that ran at the same time are in
them. NVML needs the package pynvml (nvidia-ml-py) and a GPU from Volta on; its counter moves every 20 to 100 ms, so
short runs are measured coarsely. What cannot be read is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearbank.kernels.backends import ON_CUDA
from nearbank.kernels.cuda.device import pci_bus_id

POWERCAP = Path("/sys/class/powercap")
LARGEST_UJ = 2**64 * 1000 - 1  # NVML counts millijoules in 64 bits


@dataclass(frozen=True)
class Counter:
    """A package's or board's energy counter: its reading and the value it wraps around at, in microjoules."""

    reading_uj: int
    range_uj: int


@dataclass(frozen=True)
class Reading:
    """All counters at one time, by name."""

    processor: Mapping[str, Counter] = field(default_factory=dict)
    gpu: Mapping[str, Counter] = field(default_factory=dict)


@dataclass(frozen=True)
class Energy:
    """Microjoules of the processor packages and of the GPU's board; None where there are no counters or no GPU ran."""

    processor_uj: int | None = None
    gpu_uj: int | None = None


def read_energy(backend: str) -> Reading:
    """The counters now; the GPU's only where `backend` runs on one."""
    return Reading(read_counters(), read_gpu_counter() if backend in ON_CUDA else {})


def spent(before: Reading, after: Reading) -> Energy:
    """What was used between two readings."""
    return Energy(spent_uj(before.processor, after.processor), spent_uj(before.gpu, after.gpu))


def read_counters(root: Path = POWERCAP) -> dict[str, Counter]:
    """The counters of all packages, by name; empty where there are none or they may not be read."""
    found = {}
    for domain in sorted(root.glob("*-rapl:*")):
        if domain.name.count(":") == 1:  # a package; its parts (cores, memory) have one more number
            try:
                found[domain.name] = Counter(_number(domain / "energy_uj"), _number(domain / "max_energy_range_uj"))
            except (OSError, ValueError):
                return {}
    return found


def read_gpu_counter() -> dict[str, Counter]:
    """The counter of the GPU that the kernels run on, by its PCI address; empty where it cannot be read."""
    try:
        import pynvml
    except ImportError:
        return {}
    address = pci_bus_id()
    return {} if address is None else _board(pynvml, address)


def _board(nvml: Any, address: str) -> dict[str, Counter]:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return {}
    try:
        board = nvml.nvmlDeviceGetHandleByPciBusId(address.encode())
        return {address: Counter(nvml.nvmlDeviceGetTotalEnergyConsumption(board) * 1000, LARGEST_UJ)}
    except nvml.NVMLError:  # older than Volta, or not allowed to
        return {}
    finally:
        nvml.nvmlShutdown()


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def spent_uj(before: Mapping[str, Counter], after: Mapping[str, Counter]) -> int | None:
    """Microjoules between two readings, a wrap of each counter allowed for; None without counters."""
    if not before or before.keys() != after.keys():
        return None
    return sum((after[name].reading_uj - before[name].reading_uj) % (before[name].range_uj + 1) for name in before)

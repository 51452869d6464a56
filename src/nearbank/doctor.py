"""What works on this computer, and what to install for the rest."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

CORE = ("numpy", "numba", "simpy", "pydantic", "ruamel.yaml", "pyarrow", "matplotlib", "rich", "typer", "safetensors")
EXTRAS = {
    "torch": "pip install 'nearbank[models]' to train and to load other checkpoints",
    "transformers": "pip install 'nearbank[models]' to compare with Hugging Face models",
    "cupy": "pip install 'nearbank[cuda13]' (or cuda12) for the GPU kernels",
    "numba_cuda": "pip install 'nearbank[cuda13]' (or cuda12) for the readable GPU kernels",
    "jupytext": "pip install 'nearbank[notebooks]' to open the notebooks",
}
CPU_FEATURES = ("avx2", "avx512_vnni", "avx512_bf16", "asimd", "asimddp", "sve")
_RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


@dataclass(frozen=True)
class Finding:
    """One thing looked at: whether it works, what was found, what to do if it is wanted."""

    what: str
    works: bool
    found: str
    advice: str = ""


def findings() -> list[Finding]:
    """Everything, in the order a reader wants it."""
    return [_python(), _cpu(), _memory(), *map(_core, CORE), *map(_extra, EXTRAS), _gpu(), _cpu_energy()]


def as_dicts(found: list[Finding]) -> list[dict[str, object]]:
    """Plain values for JSON."""
    return [asdict(f) for f in found]


def _python() -> Finding:
    from nearbank import __version__

    return Finding("nearbank", True, f"{__version__} on Python {platform.python_version()}, {platform.platform()}")


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def _cpu() -> Finding:
    from nearbank.models.record import cpu_name

    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    features = [f for f in CPU_FEATURES if f in flags]
    fast = bool(features)
    advice = "" if fast else "the portable kernels are used"
    return Finding(
        "CPU", fast, f"{cpu_name()}, {os.cpu_count()} cores, {', '.join(features) or 'no SIMD seen'}", advice
    )


def _memory() -> Finding:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Finding("memory", True, f"{pages * size / 2**30:.1f} GiB")


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _core(package: str) -> Finding:
    found = _installed(package)
    return Finding(package, found is not None, found or "missing", "" if found else "pip install nearbank")


def _extra(package: str) -> Finding:
    works = find_spec(package) is not None
    found = _first_version(package) if works else "not installed"
    return Finding(package, works, found, "" if works else EXTRAS[package])


def _first_version(package: str) -> str:
    distributions = (package, package.replace("_", "-"), "cupy-cuda13x", "cupy-cuda12x")
    return next((v for v in map(_installed, distributions) if v), "installed")


def _gpu() -> Finding:
    driver = Path("/proc/driver/nvidia/version")
    if not driver.exists():
        return Finding("GPU", False, "no NVIDIA driver here", "GPU kernels need one; everything else runs without")
    return _guarded("GPU", _cupy_device, "pip install 'nearbank[cuda13]' (or cuda12)")


def _guarded(what: str, look: Callable[[], str], advice: str) -> Finding:
    try:
        return Finding(what, True, look())
    except Exception as error:  # whatever a broken driver raises is the finding
        return Finding(what, False, " ".join(str(error).split())[:120], advice)


def _cupy_device() -> str:
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    return f"{properties['name'].decode()}, sm_{properties['major']}{properties['minor']}"


def _cpu_energy() -> Finding:
    works = os.access(_RAPL, os.R_OK)
    found = "RAPL counter readable" if works else "no readable RAPL counter"
    return Finding("CPU energy", works, found, "" if works else "measured CPU rows carry no energy")

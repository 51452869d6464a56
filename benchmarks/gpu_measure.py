"""Measuring on a GPU: time of captured graphs by events, copy bandwidth, energy by NVML, and who the device is."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

COLD_BYTES = 180_000_000  # three times the second-level cache of an H200
SAMPLES, WARM_UP = 30, 5
ENERGY_SECONDS = 1.0
PACKAGES = ("nearbank", "numpy", "cupy-cuda13x", "cupy-cuda12x", "torch", "nvidia-ml-py")


class Captured:
    """`calls` launches as one CUDA graph, captured from `work` on a stream of its own. Keeps what it uses alive."""

    def __init__(self, cupy: Any, work: Callable[[], Any], calls: int) -> None:
        self._cupy, self.calls = cupy, calls
        self.stream = cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.runtime.deviceSynchronize()  # what `work` uses was made on other streams
        with self.stream:
            work()  # compiles and fills CuPy's memory pool, which must not grow while capturing
            self.stream.synchronize()
            self.stream.begin_capture()
            self.kept = work()
            self.graph = self.stream.end_capture()

    def replay(self) -> None:
        """One replay, without waiting."""
        self.graph.launch(self.stream)

    def wait(self) -> None:
        """Until every replay is done."""
        self.stream.synchronize()

    def elapsed_us(self) -> float:
        """Microseconds of one replay between two events."""
        begin, end = (self._cupy.cuda.Event() for _ in range(2))
        begin.record(self.stream)
        self.replay()
        end.record(self.stream)
        end.synchronize()
        return 1000 * float(self._cupy.cuda.get_elapsed_time(begin, end))


class TorchCaptured:
    """The same for torch's operations."""

    def __init__(self, torch: Any, work: Callable[[], Any], calls: int) -> None:
        self._torch, self.calls = torch, calls
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.kept = work()

    def replay(self) -> None:
        self.graph.replay()

    def wait(self) -> None:
        self._torch.cuda.synchronize()

    def elapsed_us(self) -> float:
        begin, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self.replay()
        end.record()
        end.synchronize()
        return 1000 * float(begin.elapsed_time(end))


def time_us(captured: Captured | TorchCaptured) -> float:
    """Microseconds per call: the median replay over its calls."""
    for _ in range(WARM_UP):
        captured.replay()
    captured.wait()
    return statistics.median(captured.elapsed_us() for _ in range(SAMPLES)) / captured.calls


def energy_mj(captured: Captured | TorchCaptured, per_call_us: float, device: int = 0) -> float | None:
    """Millijoules per call by the device's energy counter over about a second, or None where it has none."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(device)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no package, no library or no counter: three ways to have no figure
        return None
    replays = max(1, int(ENERGY_SECONDS * 1e6 / (per_call_us * captured.calls)))
    captured.wait()
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    for _ in range(replays):
        captured.replay()
    captured.wait()
    return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before) / (replays * captured.calls)


# 16 bytes a thread, four on their way: a copy as fast as the memory, which a library's element-wise copy is not.
COPY = r"""
extern "C" __global__ void copy_vectors(const uint4* from, uint4* to, long long count) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += 4 * step) {
        uint4 v[4];
        #pragma unroll
        for (int j = 0; j < 4; ++j) if (i + j * step < count) v[j] = from[i + j * step];
        #pragma unroll
        for (int j = 0; j < 4; ++j) if (i + j * step < count) to[i + j * step] = v[j];
    }
}"""


def copy_gb_per_s(cupy: Any, multiprocessors: int, nbytes: int = 4 << 30) -> float:
    """Device-to-device copy, bytes read plus bytes written, per second: the best of three grids."""
    source = cupy.random.randint(0, 2**31, nbytes // 8, dtype=cupy.int64)
    target, kernel = cupy.empty_like(source), cupy.RawKernel(COPY, "copy_vectors")

    def speed(blocks: int) -> float:
        arguments = (source, target, cupy.int64(nbytes // 16))
        return 2 * nbytes / time_us(Captured(cupy, lambda: kernel((blocks,), (512,), arguments), 1)) / 1000

    best = max(speed(multiprocessors * many) for many in (4, 8, 16))
    if not bool((source == target).all()):
        raise RuntimeError("the copy that measures the memory's speed copied wrongly")
    return best


def copies_for(nbytes: int) -> int:
    """How many copies of operands of `nbytes` make a rotation that the cache cannot hold."""
    return max(1, -(-COLD_BYTES // nbytes) + 1)


def describe(runtime: Any) -> dict[str, Any]:
    """The device, its driver and the packages."""
    properties = runtime.xp.cuda.runtime.getDeviceProperties(runtime.device)
    return {
        "machine": {
            "gpu": runtime.name,
            "multiprocessors": runtime.multiprocessors,
            "compute_capability": runtime.capability / 10,
            "l2_bytes": int(properties["l2CacheSize"]),
            "memory_bytes": int(properties["totalGlobalMem"]),
            "cuda_driver": runtime.xp.cuda.runtime.driverGetVersion(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": sys.version.split()[0], **_versions()},
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def log(text: str) -> None:
    """A line at once, with the time since the start."""
    print(f"[{time.perf_counter() - _START:7.1f} s] {text}", flush=True)


_START = time.perf_counter()

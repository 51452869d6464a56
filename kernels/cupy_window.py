"""Windowed KV caches on a GPU, through CuPy: for NumPy callers (`open_window`) and for arrays on the GPU.

The kernels are in `kernels/cuda/window.cuh`, their launches in `nearbank.kernels.cuda.window`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.cache_formats import SCHEMES, Scheme
from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels import cupy_backend
from nearbank.kernels.cache import copy_pages
from nearbank.kernels.cuda import host, window
from nearbank.kernels.cuda.cache import AttendScratch
from nearbank.kernels.cuda.callers_cache import OneSequence
from nearbank.kernels.packed import as_format
from nearbank.kernels.window import Channels, Sizes, per_layer

Floats = npt.NDArray[np.float32]


class DeviceWindow:
    """`nearbank.kernels.window.WindowMemory` in GPU memory, NumPy arrays in and out: the bits of the definition."""

    def __init__(self, runtime: Any, memory: window.WindowMemory) -> None:
        self._runtime, self.memory = runtime, memory

    @property
    def nbytes(self) -> int:
        """Bytes allocated, the exact tokens of this moment included."""
        return self.memory.nbytes

    def clear(self) -> None:
        """Forget all tokens; the pages stay."""
        self.memory.pages.lengths.fill(0)

    def copy_from(self, other: DeviceWindow, tokens: int) -> None:
        """Hold what another of the same sizes, format and scheme holds."""
        copy_pages(self.memory.pages, other.memory.pages, tokens)
        self.memory.pages.lengths[...] = other.memory.pages.lengths
        copied = self._runtime.asarray
        for layer, ring in enumerate(other.memory.rings):
            self.memory.rings[layer] = window.Ring(ring.rows, copied(ring.keys.copy()), copied(ring.values.copy()))

    def write(self, layer: int, start: int, k: Floats, v: Floats) -> None:
        """Keep k, v exact and round what is due."""
        self.memory.pages.lengths[layer] = start
        on_device = self._runtime.asarray(k), self._runtime.asarray(v)
        window.append(self._runtime, self.memory, layer, *on_device, host.KIND["fp32"])

    def read(self, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
        """Attention of q [T, heads, D] at positions start …."""
        on_device = self._runtime.asarray(q)
        context: Floats = self._runtime.asnumpy(
            window.attend_exact(self._runtime, self.memory, layer, start, on_device, scale)
        )
        return context


def open_window(sizes: Sizes, scheme: Scheme, channels: tuple[Channels, ...]) -> DeviceWindow:
    """Memory of a windowed cache on the current GPU."""
    runtime = cupy_backend.current_runtime()
    return DeviceWindow(runtime, window.allocate(runtime, *sizes, scheme, channels))


class WindowedDeviceCache(OneSequence):
    """A windowed KV cache for arrays on the GPU: CuPy, torch CUDA tensors, or anything with `__cuda_array_interface__`.

    Runs on the caller's stream and waits for nothing. Everything is rounded once, and the newest tokens stay exact by a
    scheme of `nearbank.cache_formats`. `attend` is the fast attention for int4 and int8 with head dimension 64 or 128
    and int2 with 128, otherwise the one whose sums have the order of the definition. Lengths live on the device too, so
    a captured decode step can be replayed.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        format: Format | str = "int4",  # noqa: A002 - as in KVCache
        scheme: str = "past",
        channels: Channels | Sequence[Channels] | None = None,
    ) -> None:
        if scheme not in SCHEMES:
            raise NearbankError(f"unknown cache scheme '{scheme}'; known: {', '.join(SCHEMES)}")
        runtime = cupy_backend.current_runtime()
        sizes = as_format(format).for_cache(), layers, kv_heads, head_dim, capacity
        every = per_layer(channels, SCHEMES[scheme], layers, kv_heads, head_dim)
        self.memory = window.allocate(runtime, *sizes, SCHEMES[scheme], every)
        super().__init__(runtime, self.memory.pages, self.memory.resident)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, the exact tokens of this moment and scratch included."""
        return self.memory.nbytes + self._scratch_bytes

    def _append(self, layer: int, k: Any, v: Any, kind: int) -> None:
        window.append(self._runtime, self.memory, layer, k, v, kind)

    def _fast(self) -> bool:
        return self.memory.fast()

    def _attend_exact(self, layer: int, start: int, q: Any, scale: float) -> Any:
        return window.attend_exact(self._runtime, self.memory, layer, start, q, np.float32(scale))

    def _attend_fast(self, layer: int, q: Any, scale: float, scratch: AttendScratch, out: Any) -> Any:
        return window.attend(self._runtime, self.memory, layer, q, scale, scratch, out)

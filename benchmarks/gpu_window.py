"""Caches with exact newest tokens on the GPU: that their attention is right, and one to time. Used by gpu.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from nearbank.cache_formats import SCHEMES, cache_format
from nearbank.kernels import Channels, WindowedKVCache
from nearbank.kernels.cuda import sources
from nearbank.kernels.cuda.callers_cache import AttendingCache
from nearbank.kernels.cupy_backend import DeviceCache
from nearbank.kernels.cupy_window import WindowedDeviceCache


def opened(name: str, layers: int, kv_heads: int, dim: int, capacity: int) -> AttendingCache:
    """A cache on the GPU by the names of `nearbank.cache_formats`: "int4", "int4-past", "int4-kivi" …"""
    chosen, sizes = cache_format(name), (layers, kv_heads, dim, capacity)
    if chosen.scheme is None:
        return DeviceCache(*sizes, chosen.format)
    return WindowedDeviceCache(*sizes, chosen.format, chosen.scheme.name)


def check_windows(runtime: Any) -> None:
    """The fast attention of a prompt's last tokens and of a step after it, to a thousandth of the values' size."""
    rng = np.random.default_rng(4)
    for name, dims in sources.WINDOW_DIMS.items():
        for scheme in SCHEMES:
            for fitted in (False, True):
                k, v, q = (rng.standard_normal((701, heads, dims[-1])).astype(np.float32) for heads in (2, 2, 8))
                made = 1, 2, dims[-1], 701, name, scheme, Channels.of(k, v) if fitted else None
                twin, cache = WindowedKVCache(*made, "numpy"), WindowedDeviceCache(*made)
                for part, asked in ((slice(0, 700), slice(697, 700)), (slice(700, 701),) * 2):
                    twin.append(0, k[part], v[part])
                    cache.append(0, runtime.asarray(k[part]), runtime.asarray(v[part]))
                    got = runtime.asnumpy(cache.attend(0, runtime.asarray(q[asked])))
                    np.testing.assert_allclose(got, twin.attend(0, q[asked]), atol=1e-3, err_msg=f"{name} {scheme}")

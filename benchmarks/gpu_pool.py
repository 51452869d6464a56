"""Sequences of one pool of pages on the GPU: that they are right, and a step of many to time. Used by gpu.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gpu_measure import copies_for

from nearbank.kernels import KVCache
from nearbank.kernels.cupy_pool import DevicePagePool
from nearbank.kernels.store import PAGE

Sizes = tuple[int, int, int]  # KV heads, query heads, head dimension


def check_pool(runtime: Any) -> None:
    """Forks of different lengths, appended to and attended with together, to a thousandth of the values' size."""
    rng = np.random.default_rng(3)
    for fmt in ("int4", "int8", "bf16", "fp16"):
        pool, twins = DevicePagePool(1, 2, 128, 12, fmt), [KVCache(1, 2, 128, 900, fmt, "numpy") for _ in range(3)]
        sequences = [pool.sequence()]
        for tokens in (300, 7, 250):
            k, v = (rng.standard_normal((tokens, 2, 128)).astype(np.float32) for _ in "kv")
            sequences[-1].append(0, runtime.asarray(k), runtime.asarray(v))
            for twin in twins[len(sequences) - 1 :]:
                twin.append(0, k, v)
            sequences += [sequences[-1].fork()] if len(sequences) < len(twins) else []
        for _ in range(2):
            k, v, q = (rng.standard_normal((3, heads, 128)).astype(np.float32) for heads in (2, 2, 8))
            pool.append_many(0, runtime.asarray(k), runtime.asarray(v), sequences)
            got = runtime.asnumpy(pool.attend_many(0, runtime.asarray(q), sequences))
            for i, twin in enumerate(twins):
                twin.append(0, k[i : i + 1], v[i : i + 1])
                np.testing.assert_allclose(got[i], twin.attend(0, q[i : i + 1])[0], atol=1e-3, err_msg=f"{fmt} {i}")


def many(runtime: Any, fmt: str, sizes: Sizes, sequences: int, context: int) -> tuple[Callable[[], Any], int, int]:
    """A query of each of `sequences` sequences of `context` tokens; the layers of the pool are the rotation.

    Returns (work to capture, calls in it, bytes that a call must read).
    """
    xp, (kv_heads, heads, dim) = runtime.xp, sizes
    pages = sequences * -(-context // PAGE)
    page = DevicePagePool(1, kv_heads, dim, 1, fmt, 1).memory
    rows = (page.keys, page.values, page.key_params, page.value_params)
    nbytes = sum(int(part.nbytes) for part in rows) // PAGE * sequences * context
    layers = copies_for(nbytes)
    pool = DevicePagePool(layers, kv_heads, dim, pages, fmt, sequences)
    batch = [pool.sequence() for _ in range(sequences)]
    for one in batch:
        for layer in range(layers):
            k, v = (xp.random.standard_normal((context, kv_heads, dim), dtype=xp.float32) for _ in "kv")
            one.append(layer, k, v)
    q = xp.random.standard_normal((sequences, heads, dim), dtype=xp.float32)
    out, calls = xp.empty_like(q), max(layers, 20)

    def work() -> Any:
        for i in range(calls):
            pool.attend_many(i % layers, q, batch, out=out)
        return pool, batch, q, out

    return work, calls, nbytes

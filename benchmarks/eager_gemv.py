"""How fast an eager framework's GEMV reads memory: GPT-2's own linear layer on one token, beside plain reads.

    python benchmarks/eager_gemv.py

Weights never come from the cache. `benchmarks/eager_overhead.py` runs this for the eager baselines.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

REPEATS = 9
SHAPE = (1600, 6400)  # GPT2-XL's first matrix of the MLP
ROTATED_BYTES = 400 * 2**20
FORMATS = ("read", "float32", "bfloat16")  # GB/s, the first of plain reads


def gemv_rates() -> dict[str, Any]:
    """GB/s of weights through GPT-2's linear layer on one token, and of plain reading, by threads and format.

    All are timed in turn and the best of each is taken: other work on the machine only ever slows them down.
    """
    import torch

    works = {"read": _reads(), **{name: _products(name) for name in FORMATS[1:]}}
    found: dict[str, Any] = {"shape": list(SHAPE), "rotated_bytes": ROTATED_BYTES}
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        best = dict.fromkeys(works, 0.0)
        for _ in range(3 * REPEATS):
            for name, work in works.items():
                best[name] = max(best[name], work())
        found[f"{threads} threads"] = _with_shares(best)
    return found


def best_rates(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two results as one: the highest rates of both."""
    rates = {key: value for key, value in one.items() if key.endswith("threads")}
    best = {key: {name: max(of[name], other[key][name]) for name in FORMATS} for key, of in rates.items()}
    return {**other, **{key: _with_shares(of) for key, of in best.items()}}


def _with_shares(gb_per_s: dict[str, float]) -> dict[str, Any]:
    """GB/s, and the shares of the plain read's."""
    shares = {f"{name}_share": round(gb_per_s[name] / gb_per_s["read"], 3) for name in FORMATS[1:]}
    return {**{name: round(gb_per_s[name], 2) for name in FORMATS}, **shares}


def _reads() -> Callable[[], float]:
    """GB/s at which the threads read memory: the better of a sum and a maximum."""
    import torch

    data = torch.ones(ROTATED_BYTES // 4)
    return lambda: ROTATED_BYTES / min(_seconds(data.sum), _seconds(data.max)) / 1e9


def _products(dtype: str) -> Callable[[], float]:
    """GB/s of weights that one token's product reads in GPT-2's linear layer, cold."""
    import torch
    from transformers.pytorch_utils import Conv1D

    kind = getattr(torch, dtype)
    inputs, outputs = SHAPE
    count = ROTATED_BYTES // (inputs * outputs * kind.itemsize) + 1
    layers = [Conv1D(outputs, inputs).to(kind) for _ in range(count)]
    token = torch.ones((1, 1, inputs), dtype=kind)

    def run() -> None:
        with torch.inference_mode():
            for layer in layers:
                layer(token)

    return lambda: count * inputs * outputs * kind.itemsize / _seconds(run) / 1e9


def _seconds(work: Callable[[], Any]) -> float:
    """Processor time per thread: what other work keeps the threads from running does not count."""
    import torch

    begin = time.process_time()
    work()
    return (time.process_time() - begin) / torch.get_num_threads()


if __name__ == "__main__":
    print(json.dumps(gemv_rates()))

"""Calibrate the eager baselines: what one operation costs a framework's host, and how fast its GEMV reads memory.

    python benchmarks/eager_overhead.py --out benchmarks/results/eager_overhead.json

Three measurements, with Hugging Face's GPT-2 in eager attention, on whatever machine runs this:

1. Time per generated token of networks so narrow that arithmetic is free, against depth: the slope is a layer's
   overhead, the intercept that of everything outside the layers. Processor time of one thread, so that other work on
   the machine does not count.
2. Dispatched operations of one decode step, and how many of them compute (each is a kernel on a GPU) rather than
   only change a tensor's view.
3. GPT-2's own linear layer (`Conv1D`) on one token with weights that never come from the cache, beside the rate at
   which the same threads can read memory: the share of read bandwidth that an eager GEMV reaches.

With --without-bf16 the process hides bf16 instructions from the libraries, as on processors that have none.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DEPTHS = (2, 6, 12, 24)
TOKENS = 48
REPEATS = 9
SHAPE = (1600, 6400)  # GPT2-XL's first matrix of the MLP
ROTATED_BYTES = 400 * 2**20
WITHOUT_BF16 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512"}


def main() -> None:
    options = _options()
    if options.rates_only:
        print(json.dumps(gemv_rates()))
        return
    result = {
        "measured": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "overhead": overhead(),
        "operations": operations(),
        "gemv": gemv_rates(),
        "gemv_without_bf16_instructions": _rates_in_another_process(WITHOUT_BF16),
    }
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Calibrate the eager baselines on this machine.")
    parser.add_argument("--out", type=Path, help="write the result into this file as well")
    parser.add_argument("--rates-only", action="store_true", help="only the GEMV and read rates")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """What ran this: processor, cores, versions."""
    import torch
    import transformers

    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_name() -> str:
    found = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    family, model = found.get("cpu family"), found.get("model")
    return f"{found.get('model name', platform.processor())}, family {family} model {model}, {found.get('cpu MHz')} MHz"


def _network(layers: int, attention: str = "eager") -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64,
        n_positions=128,
        n_embd=16,
        n_layer=layers,
        n_head=2,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation=attention,
    )
    return GPT2LMHeadModel(config).eval()


def overhead() -> dict[str, Any]:
    """Microseconds of processor time per token by depth, and the line through them."""
    import torch

    torch.set_num_threads(1)
    networks = {layers: _network(layers) for layers in DEPTHS}
    for network in networks.values():
        _generate_us(network)
    per_token: dict[int, list[float]] = {layers: [] for layers in DEPTHS}
    for _ in range(REPEATS):
        for layers, network in networks.items():
            per_token[layers].append(_generate_us(network))
    least = {layers: min(times) for layers, times in per_token.items()}  # other work only ever adds
    slope, intercept = statistics.linear_regression(list(least), list(least.values()))
    return {
        "us_per_token_by_layers": {str(k): round(v, 1) for k, v in least.items()},
        "spread_us": {str(k): [round(min(v), 1), round(max(v), 1)] for k, v in per_token.items()},
        "us_per_layer": round(slope, 2),
        "us_outside_layers": round(intercept, 2),
        "tokens": TOKENS,
        "repeats": REPEATS,
    }


def _generate_us(network: Any) -> float:
    import torch

    prompt = torch.zeros((1, 1), dtype=torch.long)
    mask = torch.ones_like(prompt)
    begin = time.process_time()
    with torch.inference_mode():
        network.generate(
            prompt, attention_mask=mask, min_new_tokens=TOKENS, max_new_tokens=TOKENS, do_sample=False, use_cache=True
        )
    return 1e6 * (time.process_time() - begin) / TOKENS


def operations() -> dict[str, int]:
    """Dispatched operations of one decode step: in a layer and outside, all of them and those that compute."""
    small, large = (_count(layers) for layers in (2, 3))
    per_layer = {kind: large[kind] - small[kind] for kind in small}
    return {f"{kind}_per_layer": n for kind, n in per_layer.items()} | {
        f"{kind}_outside_layers": small[kind] - 2 * per_layer[kind] for kind in small
    }


def _count(layers: int) -> dict[str, int]:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.all = self.computing = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            self.all += 1
            self.computing += not _only_a_view(func)
            return result

    network = _network(layers)
    token = torch.zeros((1, 1), dtype=torch.long)
    with torch.no_grad():
        past = network(token, use_cache=True).past_key_values
        with Counter() as counter:
            network(token, past_key_values=past, use_cache=True).logits[:, -1].argmax(-1)
    return {"dispatched": counter.all, "computing": counter.computing}


def _only_a_view(func: Any) -> bool:
    returns = func._schema.returns
    aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    return aliases or func._schema.name in ("aten::_unsafe_view", "aten::empty", "aten::_reshape_alias")


def gemv_rates() -> dict[str, Any]:
    """GB/s of weights through GPT-2's linear layer on one token, and of plain reading, by threads and format.

    All are timed in turn and the best of each is taken: other work on the machine only ever slows them down.
    """
    import torch

    works = {"read": _reads(), "float32": _products("float32"), "bfloat16": _products("bfloat16")}
    found: dict[str, Any] = {"shape": list(SHAPE), "rotated_bytes": ROTATED_BYTES}
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        best = dict.fromkeys(works, 0.0)
        for _ in range(3 * REPEATS):
            for name, work in works.items():
                best[name] = max(best[name], work())
        rates: dict[str, float] = {f"{name}_gb_per_s": round(rate, 2) for name, rate in best.items()}
        shares = {f"{name}_share": round(best[name] / best["read"], 3) for name in ("float32", "bfloat16")}
        found[f"{threads} threads"] = rates | shares
    return found


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


def _rates_in_another_process(environment: dict[str, str]) -> dict[str, Any]:
    """The libraries read these variables once, when they are loaded."""
    done = subprocess.run(
        [sys.executable, __file__, "--rates-only"],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return {"environment": environment, **json.loads(done.stdout)}


if __name__ == "__main__":
    main()

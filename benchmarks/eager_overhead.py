"""Calibrate the eager baselines: what one layer costs a framework's host, and how fast its GEMV reads memory.

    python benchmarks/eager_overhead.py --also OTHER/bin/python --out benchmarks/results/eager_overhead.json

Networks so narrow that arithmetic is free generate tokens; time per token against depth is a line, its slope a layer's
overhead and its intercept that of everything outside the layers. Processor time of one thread is counted, and of many
short runs the least is taken, as other work on the machine only ever adds. For the same reason `--best-of` takes an
earlier result of the same machine and versions and keeps the least disturbed figures of both. Three hosts:

1. Hugging Face transformers' GPT-2 with eager attention and a cache, `generate` and all, in this interpreter;
2. the same in OTHER, an interpreter with other versions, such as those of the year of a published measurement;
3. the same network as bare torch operators: what is left when the framework's own Python is taken away.

Beside the times stand the dispatched operations of one decode step, and how many of them compute (each is a kernel on
a GPU) rather than only change a tensor's view. `benchmarks/eager_gemv.py` measures the GEMV.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eager_gemv import best_rates, gemv_rates

DEPTHS = (2, 6, 12, 24)
TOKENS = 13  # the first is not counted: it has the prompt and what is set up once
REPEATS = 60
WIDTH, HEADS, VOCABULARY = 16, 2, 64
HOSTS = ("transformers", "transformers_then", "bare_operators")

Run = Callable[["Clock"], None]  # generates `TOKENS` tokens and tells the clock after each


def main() -> None:
    options = _options()
    if options.framework_only:
        print(json.dumps(framework()))
        return
    result = {
        "measured": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "transformers": framework(),
        "transformers_then": _of_another(options.also) if options.also else None,
        "bare_operators": {"torch": _version("torch"), **bare()},
        "gemv": gemv_rates(),
    }
    if options.best_of:
        result = least_disturbed(json.loads(options.best_of.read_text(encoding="utf-8")), result)
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Calibrate the eager baselines on this machine.")
    parser.add_argument("--out", type=Path, help="write the result into this file as well")
    parser.add_argument("--also", type=Path, help="an interpreter with other versions of torch and transformers")
    parser.add_argument("--best-of", type=Path, help="an earlier result of this machine, to keep the better figures of")
    parser.add_argument("--framework-only", action="store_true", help="only transformers, in this interpreter")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """The processor that ran this."""
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "kernel": platform.release().split("-")[0]}


def _cpu_name() -> str:
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    family, model = found.get("cpu family"), found.get("model")
    return f"{found.get('model name', platform.processor())}, family {family} model {model}, {found.get('cpu MHz')} MHz"


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def framework() -> dict[str, Any]:
    """Overhead and operations of transformers' GPT-2 in this interpreter."""
    versions = {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
    }
    return {**versions, **overhead({layers: _generating(layers) for layers in DEPTHS}), **_operations(_one_step)}


def bare() -> dict[str, Any]:
    """Overhead and operations of the same network as bare operators."""
    return {**overhead({layers: _bare_loop(layers) for layers in DEPTHS}), **_operations(_one_bare_step)}


class Clock:
    """Processor time after every token; a streamer to transformers' `generate`, which announces the prompt as well."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, token: Any) -> None:
        self.times.append(time.process_time())

    def end(self) -> None:
        pass

    @property
    def us_per_token(self) -> float:
        """The median over the last tokens."""
        ends = self.times[-TOKENS:]
        return 1e6 * statistics.median(b - a for a, b in itertools.pairwise(ends))


def overhead(runs: dict[int, Run]) -> dict[str, Any]:
    """Microseconds of processor time per token by depth, and the line through them."""
    import torch

    torch.set_num_threads(1)
    per_token: dict[int, list[float]] = {layers: [] for layers in runs}
    for _ in range(REPEATS):
        for layers, run in runs.items():
            clock = Clock()
            with torch.inference_mode():
                run(clock)
            per_token[layers].append(clock.us_per_token)
    least = {str(layers): round(min(times), 1) for layers, times in per_token.items()}
    return {**_line(least), "tokens": TOKENS, "repeats": REPEATS}


def _line(least: dict[str, float]) -> dict[str, Any]:
    """What a layer costs, and what all else does."""
    slope, intercept = statistics.linear_regression([int(layers) for layers in least], list(least.values()))
    return {
        "us_per_layer": round(slope, 2),
        "us_outside_layers": round(intercept, 2),
        "us_per_token_by_layers": least,
    }


def least_disturbed(earlier: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Both results as one: the least times and the highest rates."""
    merged = {**now, "runs": earlier.get("runs", 1) + 1}
    for host in HOSTS:
        if earlier.get(host) and now.get(host):
            times = [result[host]["us_per_token_by_layers"] for result in (earlier, now)]
            merged[host] = {**now[host], **_line({layers: min(t[layers] for t in times) for layers in times[0]})}
    merged["gemv"] = best_rates(earlier["gemv"], now["gemv"])
    return merged


def _network(layers: int) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=2 * VOCABULARY,
        n_embd=WIDTH,
        n_layer=layers,
        n_head=HEADS,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="eager",
    )
    return GPT2LMHeadModel(config).eval()


def _generating(layers: int) -> Run:
    import torch

    network = _network(layers)
    prompt = torch.zeros((1, 1), dtype=torch.long)
    mask = torch.ones_like(prompt)
    how = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS, "do_sample": False, "use_cache": True}
    return lambda clock: network.generate(prompt, attention_mask=mask, streamer=clock, **how)


def _one_step(layers: int) -> Callable[[], Any]:
    """One decode step of transformers' GPT-2, the cache holding one position."""
    import torch

    network = _network(layers)
    token = torch.zeros((1, 1), dtype=torch.long)
    past = network(token, use_cache=True).past_key_values
    return lambda: network(token, past_key_values=past, use_cache=True).logits[:, -1].argmax(-1)


class Bare:
    """GPT-2 as bare operators: one token in, one token out, a cache that grows."""

    def __init__(self, layers: int) -> None:
        import torch

        torch.manual_seed(0)
        d = WIDTH
        shapes = ((d,), (d,), (3 * d,), (d, 3 * d), (d,), (d, d), (d,), (d,), (4 * d,), (d, 4 * d), (d,), (4 * d, d))
        self.layers = [[torch.randn(shape) for shape in shapes] for _ in range(layers)]
        self.table, self.places = torch.randn(VOCABULARY, d), torch.randn(2 * VOCABULARY, d)
        self.last = (torch.randn(d), torch.randn(d))
        self.cache: list[tuple[Any, Any]] = []

    def start(self) -> None:
        """Empty the cache."""
        import torch

        empty = torch.empty(HEADS, 0, WIDTH // HEADS)
        self.cache = [(empty, empty) for _ in self.layers]

    def step(self, token: Any) -> Any:
        """The next token."""
        import torch

        position = self.cache[0][0].shape[1]
        x = self.table[token] + self.places[position : position + 1]  # [1, D]
        for at in range(len(self.layers)):
            x = self._layer(at, x)
        logits = torch.layer_norm(x, (WIDTH,), *self.last) @ self.table.T
        return logits.argmax(-1)

    def _layer(self, at: int, x: Any) -> Any:
        import torch

        g1, b1, b_qkv, w_qkv, b_proj, w_proj, g2, b2, b_up, w_up, b_down, w_down = self.layers[at]
        qkv = torch.addmm(b_qkv, torch.layer_norm(x, (WIDTH,), g1, b1), w_qkv)
        q, k, v = qkv.view(1, 3, HEADS, -1).permute(1, 2, 0, 3)  # each [H, 1, D / H]
        keys, values = torch.cat((self.cache[at][0], k), 1), torch.cat((self.cache[at][1], v), 1)
        self.cache[at] = keys, values
        weights = torch.softmax(q @ keys.mT / math.sqrt(WIDTH // HEADS), -1)
        x = x + torch.addmm(b_proj, (weights @ values).transpose(0, 1).reshape(1, WIDTH), w_proj)
        up = torch.addmm(b_up, torch.layer_norm(x, (WIDTH,), g2, b2), w_up)
        return x + torch.addmm(b_down, torch.nn.functional.gelu(up, approximate="tanh"), w_down)


def _bare_loop(layers: int) -> Run:
    import torch

    network = Bare(layers)

    def run(clock: Clock) -> None:
        network.start()
        token = torch.zeros(1, dtype=torch.long)
        for _ in range(TOKENS):
            token = network.step(token)
            clock.put(token.item())  # a host reads every token, as `generate` does

    return run


def _one_bare_step(layers: int) -> Callable[[], Any]:
    import torch

    network = Bare(layers)
    network.start()
    token = network.step(torch.zeros(1, dtype=torch.long))
    return lambda: network.step(token)


def _operations(step_of: Callable[[int], Callable[[], Any]]) -> dict[str, int]:
    """Dispatched operations of one decode step: in a layer and outside, all of them and those that compute."""
    small, large = (_count(step_of, layers) for layers in (2, 3))
    per_layer = {kind: large[kind] - small[kind] for kind in small}
    return {f"{kind}_per_layer": n for kind, n in per_layer.items()} | {
        f"{kind}_outside_layers": small[kind] - 2 * per_layer[kind] for kind in small
    }


def _count(step_of: Callable[[int], Callable[[], Any]], layers: int) -> dict[str, int]:
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

    with torch.no_grad():
        step = step_of(layers)
        with Counter() as counter:
            step()
    return {"dispatched": counter.all, "computing": counter.computing}


def _only_a_view(func: Any) -> bool:
    returns = func._schema.returns
    aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    return aliases or func._schema.name in ("aten::_unsafe_view", "aten::empty", "aten::_reshape_alias")


def _of_another(python: Path) -> dict[str, Any]:
    done = subprocess.run([str(python), __file__, "--framework-only"], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()

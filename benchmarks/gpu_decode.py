"""Whole decoding steps on the GPU at hand: first that the tokens are right, then how fast they come.

    PYTHONPATH=src python benchmarks/gpu_decode.py [--out FOLDER] [--tokens 128]

The bundled model is decoded exactly (tokens must be those of the CPU backend), fast, and as one CUDA graph per step
(whose tokens must be those of the fast launches). Then a random model of BitNet b1.58 2B4T's shape, in which a position
of the cache is as good as any other: milliseconds per token as a graph, one step's operations timed one by one with
CUDA events, and energy by NVML where it can be read. Writes gpu-decode.json; a check that fails says so in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gpu import random_tiles
from gpu_measure import describe, log

from nearbank.formats import format_named
from nearbank.kernels import cupy_backend
from nearbank.kernels.cuda.decode import Angles, Norm
from nearbank.kernels.cuda.host import FloatRows
from nearbank.models.device import DeviceDecoder, decoder_for
from nearbank.models.device_weights import DeviceBlock, DeviceWeights, Part
from nearbank.models.energy import read_energy, spent
from nearbank.models.generate import generate
from nearbank.models.load import load_model
from nearbank.models.sampling import Sampling
from nearbank.models.shape import Shape
from nearbank.models.zoo import find_shape

PROMPT = "ROMEO:\nBut, soft! what light"
SAMPLED = Sampling(temperature=0.8, top_k=40, seed=1)
GOAL_MS = 0.6  # per token of the BitNet-2B shape, on an H200
CONTEXT = 1024  # tokens in that model's cache
REPEATS = 5


class Session:
    """A GPU, a stream of our own, and the rows measured."""

    def __init__(self, tokens: int) -> None:
        self.runtime = cupy_backend.current_runtime()
        self.xp, self.tokens = self.runtime.xp, tokens
        self.stream = self.xp.cuda.Stream(non_blocking=True)
        self.rows: dict[str, Any] = {}

    def timed_ms(self, work: Callable[[], Any]) -> float:
        """Milliseconds between two events around `work`, the median of some repeats."""
        found = []
        for _ in range(REPEATS):
            begin, end = self.xp.cuda.Event(), self.xp.cuda.Event()
            begin.record(self.stream)
            work()
            end.record(self.stream)
            end.synchronize()
            found.append(float(self.xp.cuda.get_elapsed_time(begin, end)))
        return statistics.median(found)

    def operations_us(self, decoder: DeviceDecoder) -> dict[str, dict[str, float]]:
        """Every operation of one step by its name: how often, and microseconds in all, by CUDA events."""
        marks: list[tuple[str, Any]] = []

        def note(name: str) -> None:
            event = self.xp.cuda.Event()
            event.record(self.stream)
            marks.append((name, event))

        decoder.step(note=note)
        note("")
        self.stream.synchronize()
        found: dict[str, dict[str, float]] = {}
        for (name, begin), (_, end) in pairwise(marks):
            if name:
                one = found.setdefault(name, {"count": 0, "us": 0.0})
                one["count"] += 1
                one["us"] += 1000 * float(self.xp.cuda.get_elapsed_time(begin, end))
        return {name: {"count": one["count"], "us": round(one["us"], 2)} for name, one in found.items()}


# ---------------------------------------------------------------- the bundled model


def bundled(session: Session) -> dict[str, Any]:
    """Tokens against the CPU's, then the speed of each way."""
    plain, there = load_model("shakespeare-ternary"), load_model("shakespeare-ternary", backend="cupy")
    prompt, count = [int(token) for token in plain.encode(PROMPT)], session.tokens
    capacity = len(prompt) + count
    wanted, drawn = generate(plain, PROMPT, count), generate(plain, PROMPT, count, SAMPLED)
    exact, fast = decoder_for(there, capacity, exact=True), decoder_for(there, capacity)
    found = {
        "tokens": count,
        "exact_greedy_equal": _equal(exact.generate(prompt, count), wanted.tokens),
        "exact_sampled_equal": _equal(exact.generate(prompt, count, SAMPLED), drawn.tokens),
    }
    log(f"bundled, exact: {found}")
    launched = fast.generate(prompt, count)
    found["fast_greedy_equal"] = _equal(launched, wanted.tokens)
    found["logits_off_by"] = _logits_off(fast, plain, prompt, launched)
    fast.capture()
    found["graph_equals_launches"] = _equal(fast.generate(prompt, count), launched)
    found["graph_sampled_equal"] = _equal(fast.generate(prompt, count, SAMPLED), drawn.tokens)
    found["graph_tokens_per_s"] = _tokens_per_s(session, fast, prompt)
    found["exact_tokens_per_s"] = _tokens_per_s(session, exact, prompt)
    found["operations"] = session.operations_us(_held(fast, prompt))
    return found


def _equal(found: list[int], wanted: Any) -> str:
    """How many tokens are the same, and where the first difference is."""
    same = [one == other for one, other in zip(found, wanted, strict=True)]
    return f"{sum(same)} of {len(same)}" + ("" if all(same) else f", first difference at {same.index(False)}")


def _logits_off(decoder: DeviceDecoder, plain: Any, prompt: list[int], made: list[int]) -> float:
    """The largest difference of the last logits from the CPU's, over their largest."""
    exact = plain.logits([*prompt, *made[:-1]])[-1]
    found = decoder.runtime.asnumpy(decoder.logits)[0]
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def _held(decoder: DeviceDecoder, prompt: list[int]) -> DeviceDecoder:
    """With the prompt in its cache and one step done."""
    decoder.clear()
    decoder.prefill(prompt)
    decoder.choose()
    decoder.step()
    return decoder


def _tokens_per_s(session: Session, decoder: DeviceDecoder, prompt: list[int]) -> float:
    """Greedy tokens after the first, by wall time."""
    count = session.tokens
    rates = []
    for _ in range(REPEATS):
        _held(decoder, prompt)
        session.stream.synchronize()
        begun = time.perf_counter()
        for _ in range(count - 2):
            decoder.step()
        session.stream.synchronize()
        rates.append((count - 2) / (time.perf_counter() - begun))
    return round(statistics.median(rates), 1)


# ---------------------------------------------------------------- BitNet b1.58 2B4T's shape


def bitnet(session: Session) -> dict[str, Any]:
    """Random ternary weights, int4 cache, bf16 head; a step at 1,024 tokens of context."""
    shape = find_shape("bitnet-b1.58-2b4t")
    decoder = random_decoder(session, shape, "int4", CONTEXT + 512)
    decoder.prefill([1, 2, 3])
    fill_cache(decoder, CONTEXT)
    decoder.choose()
    decoder.step()
    launched_ms = session.timed_ms(decoder.step)
    operations = session.operations_us(decoder)
    decoder.capture()
    decoder.step()

    def many() -> None:
        for _ in range(20):
            decoder.step()

    fill_cache(decoder, CONTEXT)
    per_token_ms = session.timed_ms(many) / 20
    fill_cache(decoder, CONTEXT)
    before, begun = read_energy("cupy"), time.perf_counter()
    steps = 0
    while time.perf_counter() - begun < 1.0:
        fill_cache(decoder, CONTEXT)
        many()
        session.stream.synchronize()
        steps += 20
    energy = spent(before, read_energy("cupy")).gpu_uj
    weights = decoder.weights
    parts = [part for block in weights.blocks for part in (*block.qkv, block.proj, *block.wide, block.down)]
    nbytes = sum(int(part.weights.words.nbytes) for part in parts) + int(weights.head.words.nbytes)
    return {
        "shape": shape.name,
        "context": CONTEXT,
        "weight_bytes": nbytes,
        "launched_ms_per_token": round(launched_ms, 4),
        "graph_ms_per_token": round(per_token_ms, 4),
        "goal_ms": GOAL_MS,
        "weight_gb_per_s": round(nbytes / per_token_ms / 1e6, 1),
        "gpu_mj_per_token": None if energy is None else round(energy / steps / 1000, 3),
        "operations": operations,
    }


def fill_cache(decoder: DeviceDecoder, held: int) -> None:
    """Say that every layer holds so many tokens; what lies there is as good as any."""
    decoder.held = held
    decoder.pages.lengths.fill(held)
    decoder._steps.fill(0)


def random_decoder(session: Session, shape: Shape, kv: str, capacity: int) -> DeviceDecoder:
    """A decoder of the shape with random weights made on the device: q, k, v and gate, up are one matrix each."""
    runtime, xp = session.runtime, session.xp

    def part(rows: int, cols: int) -> Part:
        tiles = random_tiles(runtime, "ternary", rows, cols)
        tiles.scales[...] *= 2 / cols**0.5
        return Part(tiles, rows, None, True)

    def norm(width: int) -> Norm:
        return Norm(1, xp.ones(width, xp.float32), None, 1e-5)

    def block() -> DeviceBlock:
        qkv, wide = shape.q_width + 2 * shape.kv_width, 2 * shape.hidden
        return DeviceBlock(
            norm(shape.width), (part(qkv, shape.width),), norm(shape.q_width), part(shape.width, shape.q_width),
            norm(shape.width), (part(wide, shape.width),), norm(shape.hidden), part(shape.width, shape.hidden),
        )  # fmt: skip

    half = shape.head_dim // 2
    angles = xp.arange(capacity, dtype=xp.float32)[:, None] / 500000.0 ** (xp.arange(half, dtype=xp.float32) / half)
    words = xp.random.randint(0, 1 << 14, (shape.vocabulary, shape.width // 128, 16, 8), dtype=xp.uint16)
    weights = DeviceWeights(
        shape,
        xp.random.standard_normal((shape.vocabulary, shape.width), dtype=xp.float32),
        None,
        1.0,
        Angles(xp.cos(angles).astype(xp.float32), xp.sin(angles).astype(xp.float32), half),
        tuple(block() for _ in range(shape.layers)),
        norm(shape.width),
        FloatRows(format_named("bf16"), (shape.vocabulary, shape.width), words),
        shape.head_dim**-0.5,
        shape.activation,
    )
    return DeviceDecoder(weights, format_named(kv).for_cache(), capacity, runtime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build"))
    parser.add_argument("--tokens", type=int, default=128, help="of the bundled model")
    arguments = parser.parse_args()
    session = Session(arguments.tokens)
    found: dict[str, Any] = describe(session.runtime)
    with session.stream:
        for name, part in (("bundled", bundled), ("bitnet", bitnet)):
            try:
                found[name] = part(session)
            except Exception as error:  # the other part goes on
                found[name] = {"failed": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
            log(f"{name}: {json.dumps(found[name])}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "gpu-decode.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

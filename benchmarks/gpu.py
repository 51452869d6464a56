"""The CUDA kernels on the GPU at hand: first that they are right, then how fast, beside cuBLAS and torch.

    python benchmarks/gpu.py [--quick] [--out benchmarks/results]

Every time is per call inside a CUDA graph. "cold" rotates over more memory than the second-level cache holds.
`limit_gb_per_s` is this session's copy bandwidth. Writes one JSON file; nothing is written when a check fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gpu_measure import (
    Captured,
    TorchCaptured,
    copies_for,
    copy_gb_per_s,
    describe,
    energy_mj,
    log,
    time_us,
)
from gpu_pool import check_pool, many
from gpu_window import check_windows, opened

from nearbank.cache_formats import cache_format
from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.kernels import KVCache, ladder, reference
from nearbank.kernels import cupy_backend as ours
from nearbank.kernels.cuda import cache as device_cache
from nearbank.kernels.cuda import host, layout
from nearbank.kernels.cuda.host import Tiles
from nearbank.kernels.packed import PackedMatrix

SHAPES = ((4096, 4096), (4096, 14336), (8192, 28672), (2560, 2560), (13824, 2560), (2560, 6912))
FORMATS = ("ternary", "binary", "int4", "int8")
PREFILL = ((8192, 8192, 2048), (14336, 4096, 4096))
KV_HEADS, HEADS, HEAD_DIM = 8, 32, 128
CONTEXTS = (1024, 8192, 32768, 131072)
CACHES = ("int4", "int8", "bf16")
WINDOWS = ("int4-past", "int4-kivi")
# What to reach on an H200, µs at most: (kernel, n, k, format, m).
GOALS_US = {
    ("gemv", 8192, 28672, "ternary", 1): 16.5,
    ("gemv", 4096, 14336, "ternary", 1): 5.5,
    ("gemv", 4096, 4096, "ternary", 1): 3.2,
    ("attend", 32768, KV_HEADS * HEAD_DIM, "int4", 1): 13.0,
    ("bitnet-2b step", 1, 1, "ternary", 1): 600.0,
}


# ---------------------------------------------------------------- checks


def check_matrices(runtime: Any) -> None:
    """Every path against the definition, twice, into poisoned outputs."""
    rng = np.random.default_rng(0)
    specs = ("ternary", "binary", "int8", "int4", "int2", "ternary-g64", "int8-g128")
    for spec in specs:
        for rows, cols, tokens in ((1, 1, 1), (257, 1031, 3), (4096, 4096, 1), (2560, 6912, 8), (513, 2049, 300)):
            packed = PackedMatrix.quantise(rng.standard_normal((rows, cols)).astype(np.float32), spec)
            x = rng.standard_normal((tokens, cols)).astype(np.float32)
            codes, scales, sums = reference.quantise_rows(x)
            expected = reference.matmul_codes(codes, scales, sums, reference.prepare(packed))
            weights, given = ours.prepare(packed), runtime.asarray(x)
            for _ in range(2):
                out = runtime.xp.full((tokens, rows), np.nan, np.float32)
                ours.linear(given, weights, out=out)
                np.testing.assert_array_equal(runtime.asnumpy(out), expected, err_msg=f"{spec} {rows}×{cols}, {tokens}")


def check_bits(runtime: Any) -> None:
    """One-bit activations against the definition."""
    rng = np.random.default_rng(1)
    packed = PackedMatrix.quantise(rng.standard_normal((300, 5000)).astype(np.float32), "binary")
    codes = (rng.integers(0, 2, (40, 5000)) * 2 - 1).astype(np.int8)
    scales = rng.random(40).astype(np.float32)
    got = host.matmul_bits(runtime, runtime.asarray(codes), runtime.asarray(scales), ours.prepare(packed), True)
    expected = reference.matmul_codes(codes, scales, codes.sum(axis=1, dtype=np.int32), reference.prepare(packed))
    np.testing.assert_array_equal(runtime.asnumpy(got), expected)


def check_caches(runtime: Any) -> None:
    """Append bit for bit, exact attention bit for bit, fast attention to a thousandth of the values' size."""
    rng = np.random.default_rng(2)
    for fmt in (*CACHES, "fp16"):
        twin, cache = KVCache(1, 2, 128, 1500, fmt, backend="numpy"), ours.DeviceCache(1, 2, 128, 1500, fmt)
        for tokens in (1300, 1):
            k, v, q = (rng.standard_normal((tokens, heads, 128)).astype(np.float32) for heads in (2, 2, 8))
            twin.append(0, k, v)
            cache.append(0, runtime.asarray(k), runtime.asarray(v))
        for name in ("keys", "values", "key_params", "value_params"):
            stored = runtime.asnumpy(getattr(cache.pages, name))
            np.testing.assert_array_equal(stored, getattr(twin.store, name), err_msg=f"{fmt} {name}")
        expected = twin.attend(0, q)
        given, scale = runtime.asarray(q), np.float32(128**-0.5)
        exact = device_cache.attend_exact(runtime, cache.pages, 0, 1300, given, scale)
        np.testing.assert_array_equal(runtime.asnumpy(exact), expected, err_msg=fmt)
        fast = [runtime.asnumpy(cache.attend(0, given)) for _ in range(2)]
        np.testing.assert_allclose(fast[0], expected, atol=1e-3, err_msg=fmt)
        np.testing.assert_allclose(fast[1], expected, atol=1e-3, err_msg=fmt)


# ---------------------------------------------------------------- cases


def random_tiles(runtime: Any, spec: str, rows: int, cols: int) -> Tiles:
    """Weights made on the device: any bits do for timing, as long as they are not all alike."""
    xp, fmt = runtime.xp, format_named(spec)
    shape = layout.shape_of(fmt, rows, cols)
    size = shape.row_tiles * shape.columns * 2 * shape.bits
    words = xp.random.randint(0, 256, size, dtype=xp.uint8).reshape(shape.row_tiles, -1, 512)
    if fmt.name == "ternary":
        words &= 0xAA  # codes 0 and 2 only: code 3 does not exist
    scales = xp.random.rand(*fmt.scaling.shape(rows, cols)).astype(xp.float32)
    zeros = xp.full(scales.shape, 7, xp.uint8) if fmt.stores_zeros else None
    row_blocks = shape.row_tiles * 16 // layout.ROW_BLOCK
    partial = runtime.zeros(row_blocks * layout.ROW_BLOCK * host.GEMV_TOKENS, np.int32)
    return Tiles(fmt, shape, words, scales, zeros, None, partial, runtime.zeros(row_blocks, np.int32))


class Bench:
    """Collects rows; each case builds, measures and lets go of its memory."""

    def __init__(self, runtime: Any, quick: bool) -> None:
        self.runtime, self.quick, self.rows = runtime, quick, list[dict[str, Any]]()
        self.limit = copy_gb_per_s(runtime.xp, runtime.multiprocessors)
        log(f"copy bandwidth {self.limit:.0f} GB/s")

    def add(
        self, captured: Any, kernel: str, backend: str, sizes: tuple[int, int, int], fmt: str, nbytes: int, cold: bool
    ) -> None:
        """Measure one case: sizes are m, n, k; nbytes must move through memory in a call."""
        per_call = time_us(captured)
        energy = None if self.quick else energy_mj(captured, per_call, self.runtime.device)
        m, n, k = sizes
        goal = GOALS_US.get((kernel, n, k, fmt, m)) if backend == "cupy" and cold else None
        speed = nbytes / per_call / 1000
        row: dict[str, Any] = {"kernel": kernel, "backend": backend, "threads": 0, "m": m, "n": n, "k": k}
        row |= {"format": fmt, "cold": cold, "time_us": per_call, "gb_per_s": speed, "limit_gb_per_s": self.limit}
        row |= {"fraction_of_limit": speed / self.limit, "tera_ops_per_s": 2e-6 * m * n * k / per_call}
        row |= {"energy_mj": energy, "goal_us": goal}
        self.rows.append(row)
        log(
            f"{kernel:14} {backend:6} {m:5}×{n:6}×{k:6} {fmt:8} {'cold' if cold else 'hot ':4} {per_call:9.2f} µs "
            f"{speed:7.0f} GB/s {100 * speed / self.limit:5.1f} %" + (f"  goal {goal} µs" if goal else "")
        )
        del captured
        self.runtime.xp.get_default_memory_pool().free_all_blocks()

    def gemv(self, spec: str, rows: int, cols: int, tokens: int, cold: bool) -> None:
        """int8 activations, already rounded, times packed weights."""
        nbytes = int(random_tiles(self.runtime, spec, rows, cols).words.nbytes)
        copies = copies_for(nbytes) if cold else 1
        tiles = [random_tiles(self.runtime, spec, rows, cols) for _ in range(copies)]
        xp, shape = self.runtime.xp, tiles[0].shape
        staged = host.quantise(self.runtime, xp.random.standard_normal((tokens, cols), dtype=xp.float32), 0, shape)
        y = self.runtime.empty((tokens, rows), np.float32)
        calls = max(copies, 20)

        def work() -> Any:
            for i in range(calls):
                host.matmul(self.runtime, staged, tiles[i % copies], y)
            return tiles, staged, y

        kernel = "gemv" if tokens <= host.GEMV_TOKENS else "gemm"
        self.add(Captured(xp, work, calls), kernel, "cupy", (tokens, rows, cols), spec, nbytes, cold)

    def torch_gemv(self, torch: Any, rows: int, cols: int, tokens: int, cold: bool) -> None:
        """cuBLAS in bf16 through torch."""
        torch.cuda.empty_cache()
        nbytes = 2 * rows * cols
        copies = copies_for(nbytes) if cold else 1
        weights = [torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
        x = torch.randn(tokens, cols, device="cuda", dtype=torch.bfloat16)
        calls = max(copies, 20)

        def work() -> Any:
            return [torch.nn.functional.linear(x, weights[i % copies]) for i in range(calls)][-1]

        kernel = "gemv" if tokens <= host.GEMV_TOKENS else "gemm"
        self.add(TorchCaptured(torch, work, calls), kernel, "torch", (tokens, rows, cols), "bf16", nbytes, cold)

    def attend(self, fmt: str, context: int) -> None:
        """One query token over `context` tokens; the layers of the cache are the rotation."""
        xp = self.runtime.xp
        nbytes = cache_format(fmt).bytes_per_token(KV_HEADS, HEAD_DIM) * context
        layers = copies_for(nbytes)
        cache = opened(fmt, layers, KV_HEADS, HEAD_DIM, context)
        part = min(context, 4096)
        for layer in range(layers):
            for _ in range(context // part):
                k, v = (xp.random.standard_normal((part, KV_HEADS, HEAD_DIM), dtype=xp.float32) for _ in range(2))
                cache.append(layer, k, v)
        q = xp.random.standard_normal((1, HEADS, HEAD_DIM), dtype=xp.float32)
        out = xp.empty_like(q)
        calls = max(layers, 20)

        def work() -> Any:
            for i in range(calls):
                cache.attend(i % layers, q, out=out)
            return cache, q, out

        sizes = (1, context, KV_HEADS * HEAD_DIM)
        self.add(Captured(xp, work, calls), "attend", "cupy", sizes, fmt, nbytes, True)

    def attend_many(self, fmt: str, sequences: int, context: int) -> None:
        """One query of each of many sequences of one pool, in one launch."""
        work, calls, nbytes = many(self.runtime, fmt, (KV_HEADS, HEADS, HEAD_DIM), sequences, context)
        sizes = (sequences, context, KV_HEADS * HEAD_DIM)
        self.add(Captured(self.runtime.xp, work, calls), "attend many", "cupy", sizes, fmt, nbytes, True)

    def torch_attend(self, torch: Any, context: int) -> None:
        """torch's scaled-dot-product attention in bf16 with grouped heads."""
        torch.cuda.empty_cache()
        nbytes = 2 * 2 * context * KV_HEADS * HEAD_DIM
        layers = copies_for(nbytes)
        shape = (1, KV_HEADS, context, HEAD_DIM)
        pairs = [[torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2)] for _ in range(layers)]
        q = torch.randn(1, HEADS, 1, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
        calls = max(layers, 20)

        def work() -> Any:
            attention = torch.nn.functional.scaled_dot_product_attention
            return [attention(q, *pairs[i % layers], enable_gqa=True) for i in range(calls)][-1]

        sizes = (1, context, KV_HEADS * HEAD_DIM)
        self.add(TorchCaptured(torch, work, calls), "attend", "torch", sizes, "bf16", nbytes, True)

    def ladder_gemv(self, rung: ladder.Rung, rows: int, cols: int) -> None:
        """One rung of the product. All tiles are alike, which costs memory the same time."""
        rng = np.random.default_rng(0)
        packed = PackedMatrix.quantise(rng.standard_normal((64, cols)).astype(np.float32), "ternary")
        assert packed.scales is not None
        many = PackedMatrix(
            packed.format, (rows, cols), *(np.tile(a, (rows // 64, 1)) for a in (packed.packed, packed.scales))
        )
        nbytes = int(many.packed.nbytes)
        codes = rng.integers(-127, 128, cols).astype(np.int8)
        inputs = [ladder.gemv_input(self.runtime, many, codes, 1.0) for _ in range(copies_for(nbytes))]

        def work() -> Any:
            return [ladder.gemv(self.runtime, rung, given) for given in inputs], inputs

        captured = Captured(self.runtime.xp, work, len(inputs))
        self.add(captured, f"ladder {rung.name}", "cupy", (1, rows, cols), "ternary", nbytes, True)

    def ladder_attend(self, rung: ladder.Rung, context: int) -> None:
        """One rung of the attention, over one layer: smaller contexts than the goals', the first rungs are slow."""
        xp = self.runtime.xp
        cache = ours.DeviceCache(1, KV_HEADS, HEAD_DIM, context, "int4")
        k, v = (xp.random.standard_normal((context, KV_HEADS, HEAD_DIM), dtype=xp.float32) for _ in range(2))
        cache.append(0, k, v)
        q = xp.random.standard_normal((1, HEADS, HEAD_DIM), dtype=xp.float32)

        def work() -> Any:
            return ladder.attend(self.runtime, rung, cache.pages, context, q, HEAD_DIM**-0.5), cache, q

        sizes, nbytes = (1, context, KV_HEADS * HEAD_DIM), int(cache.pages.nbytes)
        self.add(Captured(xp, work, 1), f"ladder {rung.name}", "cupy", sizes, "int4", nbytes, False)

    def model_step(
        self,
        layers: int = 30,
        width: int = 2560,
        hidden: int = 6912,
        heads: int = 20,
        kv: int = 5,
        vocabulary: int = 128256,
        context: int = 1024,
    ) -> None:
        """One token of a decoder, by default BitNet-2B-shaped at 1 k context: projections, norms with rounding, cache,
        attention and the bf16 head. Residuals, gating and sampling are left out."""
        runtime, xp = self.runtime, self.runtime.xp
        shapes = (((heads + 2 * kv) * 128, width), (width, width), (2 * hidden, width), (width, hidden))
        weights = [[random_tiles(runtime, "ternary", *shape) for shape in shapes] for _ in range(layers)]
        cache = ours.DeviceCache(layers, kv, 128, 2 * context, "int4")
        for layer in range(layers):
            part = xp.random.standard_normal((context, kv, 128), dtype=xp.float32)
            cache.append(layer, part, part)
        inputs = {size: xp.random.standard_normal((1, size), dtype=xp.float32) for size in (width, hidden)}
        gain = {size: xp.ones(size, xp.float32) for size in (width, hidden)}
        staged = {size: ours.make_workspace(w, 1) for size, w in zip((width, hidden), weights[0][2:], strict=True)}
        outputs = [runtime.empty((1, shape[0]), np.float32) for shape in shapes]
        mixed = xp.empty((1, heads, 128), xp.float32)
        head = host.FloatRows(
            format_named("bf16"),
            (vocabulary, width),
            xp.random.randint(0, 1 << 14, (vocabulary, width // 128, 16, 8), dtype=xp.uint16),
        )
        logits = runtime.empty((1, vocabulary), np.float32)

        def work() -> Any:
            cache.pages.lengths.fill(context)  # every replay appends at the same place
            for layer in range(layers):
                for w, out in zip(weights[layer], outputs, strict=True):
                    cols = w.shape.cols
                    ours.linear(inputs[cols], w, norm="rms", gain=gain[cols], out=out, workspace=staged[cols])
                    if w is weights[layer][0]:
                        q, k, v = xp.split(out.reshape(1, -1, 128), (heads, heads + kv), axis=1)
                        cache.append(layer, k, v)
                        cache.attend(layer, q, out=mixed)
            host.matmul_floats(runtime, inputs[width], head, logits)
            return weights, cache, staged, head, logits

        nbytes = sum(int(w.words.nbytes) for row in weights for w in row) + int(head.words.nbytes)
        self.add(Captured(xp, work, 1), "bitnet-2b step", "cupy", (1, 1, 1), "ternary", nbytes, True)


def cases(bench: Bench, torch: Any) -> Iterator[Callable[[], None]]:
    """Every case, the goals first."""
    shapes = SHAPES[:3] if bench.quick else SHAPES
    for rows, cols in shapes:
        for spec in FORMATS[:1] if bench.quick else FORMATS:
            for tokens in (1, 8):
                yield lambda a=(spec, rows, cols, tokens, True): bench.gemv(*a)
            yield lambda a=(spec, rows, cols, 1, False): bench.gemv(*a)
        if torch:
            for tokens in (1, 8):
                yield lambda a=(torch, rows, cols, tokens, True): bench.torch_gemv(*a)
    for context in CONTEXTS[2:3] if bench.quick else CONTEXTS:
        for fmt in (*CACHES, *WINDOWS):
            yield lambda a=(fmt, context): bench.attend(*a)
        if torch:
            yield lambda a=(torch, context): bench.torch_attend(*a)
    for fmt in CACHES[:1] if bench.quick else CACHES:
        yield lambda a=(fmt, 16, 2048): bench.attend_many(*a)
    for rows, cols, tokens in PREFILL:
        for spec in ("ternary", "int4"):
            yield lambda a=(spec, rows, cols, tokens, False): bench.gemv(*a)
        if torch:
            yield lambda a=(torch, rows, cols, tokens, False): bench.torch_gemv(*a)
    yield bench.model_step
    if not bench.quick:
        for rung in ladder.GEMV:
            yield lambda a=(rung, 4096, 4096): bench.ladder_gemv(*a)
        for rung in ladder.ATTENTION:
            yield lambda a=(rung, 8192): bench.ladder_attend(*a)


def torch_with_cuda() -> Any:
    """torch, if it is installed and sees the device; else None, and its rows stay out."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def measure(quick: bool) -> dict[str, Any]:
    """Checks, then every case. A check that fails raises."""
    runtime = ours.current_runtime()
    for check in (check_matrices, check_bits, check_caches, check_pool, check_windows):
        check(runtime)
        log(f"{check.__name__}: right")
    bench, failed = Bench(runtime, quick), []
    for case in cases(bench, torch_with_cuda()):
        try:
            case()
        except (NearbankError, RuntimeError) as error:  # one case must not cost the others
            failed.append(str(error).splitlines()[0])
            log(f"failed: {failed[-1]}")
    return {**describe(runtime), "copy_gb_per_s": bench.limit, "rows": bench.rows, "failed": failed}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the goals only, without energy")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON file")
    options = parser.parse_args()
    problem = ours.device_problem()
    if problem:
        sys.exit(f"no GPU benchmark here: {problem}")
    result = measure(options.quick)
    options.out.mkdir(parents=True, exist_ok=True)
    name = result["machine"]["gpu"].lower().replace(" ", "-")
    path = options.out / f"gpu-{name}-{result['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()

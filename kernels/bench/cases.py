"""The cases: which kernels, shapes, formats and backends are timed, and the calls that do it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from nearbank.cache_formats import cache_format
from nearbank.kernels.activations import Rows, quantise_rows
from nearbank.kernels.bench.timing import copies_for
from nearbank.kernels.cache import KVCache
from nearbank.kernels.cpu.matmul import CpuMatrix, matmul_codes
from nearbank.kernels.cpu.paths import OVERRIDE, available_paths
from nearbank.kernels.cpu.tiles import aligned_empty
from nearbank.kernels.matmul import prepare
from nearbank.kernels.packed import PackedMatrix
from nearbank.kernels.reference.feedback import Feedback
from nearbank.kernels.window import Channels, WindowedKVCache

SHAPES = ((2048, 2048), (2048, 8192), (4096, 4096), (4096, 11008))
MODEL_SHAPES = ((2560, 2560), (6912, 2560), (2560, 6912), (8192, 2048), (14336, 4096))
FORMATS = ("ternary", "binary", "int2", "int4", "int8")
KV_FORMATS = ("fp32", "bf16", "int8", "int4", "int2")
WINDOWED = ("int4-past", "int4-wkv", "int4-wkv+feedback")
KV_HEADS, HEAD_DIM = 8, 128
SHARED = 4  # query heads per KV head where they are shared: 32 over 8, as in Llama 3 8B


@dataclass(frozen=True)
class Case:
    """One row to be: `build` makes the operands, `call` is timed, `nbytes` must come from memory in a call."""

    kernel: str
    backend: str
    threads: int
    m: int
    n: int
    k: int
    format: str
    nbytes: int
    build: Callable[[int], Sequence[Any]]
    call: Callable[[Any], object]
    cold: bool = True

    def operands(self) -> Sequence[Any]:
        """Enough operands to be cold, or one."""
        return self.build(copies_for(self.nbytes) if self.cold else 1)


@contextmanager
def cpu_path(name: str) -> Iterator[None]:
    """Prepare matrices for another path than the fastest, for comparison."""
    before = os.environ.get(OVERRIDE)
    os.environ[OVERRIDE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[OVERRIDE]
        else:
            os.environ[OVERRIDE] = before


def backend_name(path: str) -> str:
    """ "numba" for the path chosen by itself, "numba-avx2", "numba-portable" for the others."""
    return "numba" if path == available_paths()[0] else f"numba-{path}"


def _one_tile_repeated(fmt: str, n: int, k: int, path: str) -> CpuMatrix:
    """A matrix whose 32-row tiles are all alike: quick to make, as slow to read as any other."""
    rng = np.random.default_rng(0)
    packed = PackedMatrix.quantise(rng.normal(size=(32, k)).astype(np.float32), fmt)
    with cpu_path(path):
        one: CpuMatrix = prepare(packed, "numba").state
    tiles, count = one.tiles, -(-n // 32)
    codes = aligned_empty(tiles.codes.nbytes * count)
    codes.reshape(count, -1)[:] = tiles.codes
    many = replace(
        tiles,
        rows=n,
        codes=codes,
        scales=np.repeat(tiles.scales, count, axis=0),
        zeros=np.repeat(tiles.zeros, count, axis=0),
    )
    return CpuMatrix(one.path, many)


def _copied(matrix: CpuMatrix) -> CpuMatrix:
    codes = aligned_empty(matrix.tiles.codes.nbytes)
    codes[:] = matrix.tiles.codes
    return CpuMatrix(matrix.path, replace(matrix.tiles, codes=codes))


def matmul_case(fmt: str, n: int, k: int, m: int, path: str, threads: int, cold: bool = True) -> Case:
    """int8 activations [m, k], already rounded, times packed weights [n, k]."""
    rng = np.random.default_rng(1)
    rows: Rows = quantise_rows(rng.normal(size=(m, k)).astype(np.float32), "numba")
    first = _one_tile_repeated(fmt, n, k, path)

    def call(matrix: CpuMatrix) -> object:
        return matmul_codes(rows.codes, rows.scales, rows.sums, matrix)

    def build(copies: int) -> list[CpuMatrix]:
        return [first, *(_copied(first) for _ in range(copies - 1))]

    kernel = "gemv" if m == 1 else "gemm"
    nbytes = first.tiles.nbytes
    return Case(kernel, backend_name(path), threads, m, n, k, fmt, nbytes, build, call, cold)


def attend_case(fmt: str, tokens: int, threads: int, backend: str = "numba", shared: int = 1) -> Case:
    """Decode attention: one query token over `tokens`, 8 KV heads of 128, each with `shared` query heads.

    n = tokens, k = query heads · head_dim.
    """
    rng = np.random.default_rng(2)
    q = rng.normal(size=(1, shared * KV_HEADS, HEAD_DIM)).astype(np.float32)
    page = rng.normal(size=(min(tokens, 1024), KV_HEADS, HEAD_DIM)).astype(np.float32)

    def build(copies: int) -> list[tuple[KVCache, int]]:
        cache = KVCache(copies, KV_HEADS, HEAD_DIM, tokens, fmt, backend)
        for layer in range(copies):
            for first in range(0, tokens, len(page)):
                part = page[: min(len(page), tokens - first)]
                cache.append(layer, part, part)
        return [(cache, layer) for layer in range(copies)]

    nbytes = KVCache(1, KV_HEADS, HEAD_DIM, tokens, fmt, "numpy").nbytes
    return Case(
        "attend", backend, threads, 1, tokens, q[0].size, fmt, nbytes, build,
        lambda operand: operand[0].attend(operand[1], q),
    )  # fmt: skip


def append_case(fmt: str, tokens: int, threads: int) -> Case:
    """Append of one token to a cache of `tokens` at most; m = 1 token, n = tokens. fmt: a cache format, or past-only
    ("int4-past"), with channels ("int4-wkv"), with errors fed back ("int4-wkv+feedback")."""
    new = np.random.default_rng(3).normal(size=(1, KV_HEADS, HEAD_DIM)).astype(np.float32)

    def build(copies: int) -> list[KVCache]:
        return [_empty_cache(fmt, tokens)]

    def call(cache: KVCache) -> None:
        if cache.length() == cache.capacity:
            cache.clear()
        cache.append(0, new, new)

    nbytes = 2 * new.nbytes
    return Case("append", "numba", threads, 1, tokens, KV_HEADS * HEAD_DIM, fmt, nbytes, build, call, cold=False)


def _empty_cache(name: str, tokens: int) -> KVCache:
    kind, sizes = cache_format(name), (1, KV_HEADS, HEAD_DIM, tokens)
    if kind.scheme is None:
        return KVCache(*sizes, kind.format, "numba")
    one, rng = np.ones((KV_HEADS, HEAD_DIM), np.float32), np.random.default_rng(5)
    channels = Channels(0 * one, one, 0 * one, one)
    if kind.fed_back:
        coupled = rng.normal(0, 0.05, (2, KV_HEADS, HEAD_DIM, HEAD_DIM)) + np.eye(HEAD_DIM)
        keys, values = (Feedback.of(np.triu(part).astype(np.float32)) for part in coupled)
        channels = replace(channels, key_feedback=keys, value_feedback=values)
    return WindowedKVCache(*sizes, kind.format, kind.scheme.name, channels if kind.needs_fit else None, "numba")


def numpy_attend_case(tokens: int, threads: int, shared: int = 1) -> Case:
    """The same attention as two batched NumPy products and a softmax, in float32."""
    rng = np.random.default_rng(4)
    q = rng.normal(size=(KV_HEADS, shared, HEAD_DIM)).astype(np.float32)
    shape = (KV_HEADS, tokens, HEAD_DIM)

    def build(copies: int) -> list[tuple[Any, Any]]:
        return [(rng.random(shape, np.float32), rng.random(shape, np.float32)) for _ in range(copies)]

    def call(operand: tuple[Any, Any]) -> object:
        k, v = operand
        scores = np.matmul(q, k.swapaxes(1, 2)) * np.float32(HEAD_DIM**-0.5)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        return np.matmul(weights / weights.sum(axis=2, keepdims=True), v)

    nbytes = 2 * 4 * KV_HEADS * tokens * HEAD_DIM
    return Case("attend", "numpy-blas", threads, 1, tokens, q.size, "fp32", nbytes, build, call)


def torch_cases(quick: bool, threads: int) -> list[Case]:
    """What torch offers for the same shapes, when it is installed."""
    if find_spec("torch") is None:
        return []
    from nearbank.kernels.bench.torch_cases import cases

    return cases(quick, threads)


def all_cases(quick: bool, threads: int) -> Sequence[Callable[[], Case]]:
    """Every case for so many threads, as a function that makes it when its turn comes."""
    return [partial(make, *arguments, threads=threads) for make, *arguments in _all(quick)] + [
        partial(_itself, case) for case in torch_cases(quick, threads)
    ]


def _itself(case: Case) -> Case:
    return case


def _all(quick: bool) -> Iterator[tuple[Any, ...]]:
    """The function that makes a case, and its arguments."""
    shapes = SHAPES[1:] if quick else SHAPES + MODEL_SHAPES
    best, others = available_paths()[0], available_paths()[1:]
    for n, k in shapes:
        for fmt in FORMATS[:2] if quick else FORMATS:
            yield matmul_case, fmt, n, k, 1, best
    for path in others:
        for n, k in shapes[-1:] if quick else SHAPES:
            yield matmul_case, "ternary", n, k, 1, path
    for m in (128,) if quick else (2, 4, 8, 32, 128, 512):
        for fmt in FORMATS[:1] if quick else FORMATS:
            yield partial(matmul_case, cold=m < 32), fmt, 4096, 4096, m, best
    for tokens in (8192,) if quick else (1024, 8192, 32768, 131072):
        for fmt in ("fp32", "int4") if quick else KV_FORMATS:
            yield attend_case, fmt, tokens
    yield numpy_attend_case, 8192
    for fmt in ("fp32", "int4") if quick else KV_FORMATS:
        yield partial(attend_case, shared=SHARED), fmt, 8192
    yield partial(numpy_attend_case, shared=SHARED), 8192
    if not quick:
        yield from ((append_case, fmt, 8192) for fmt in (*KV_FORMATS, *WINDOWED))

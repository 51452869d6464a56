"""torch's own products and attention on the CPU, as yardsticks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from nearbank.kernels.bench import cases as ours


def _linear(name: str, dtype: Any, n: int, k: int, m: int, threads: int) -> ours.Case:
    x = torch.randn(m, k).to(dtype)

    def build(copies: int) -> list[Any]:
        return [torch.randn(n, k).to(dtype) for _ in range(copies)]

    def call(weights: Any) -> object:
        return torch.nn.functional.linear(x, weights)

    kernel = "gemv" if m == 1 else "gemm"
    nbytes = n * k * x.element_size()
    return ours.Case(kernel, "torch", threads, m, n, k, name, nbytes, build, call, cold=m == 1)


def _int8(n: int, k: int, threads: int) -> ours.Case:
    x = torch.randint(-127, 127, (32, k), dtype=torch.int8)

    def build(copies: int) -> list[Any]:
        return [torch.randint(-127, 127, (k, n), dtype=torch.int8) for _ in range(copies)]

    def call(weights: Any) -> object:
        return torch._int_mm(x, weights)

    return ours.Case("gemm", "torch", threads, 32, n, k, "int8", n * k, build, call, cold=False)


def _attention(name: str, dtype: Any, tokens: int, threads: int, shared: int = 1) -> ours.Case:
    shape = (1, ours.KV_HEADS, tokens, ours.HEAD_DIM)
    q = torch.randn(1, shared * ours.KV_HEADS, 1, ours.HEAD_DIM).to(dtype)

    def build(copies: int) -> list[Any]:
        return [(torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)) for _ in range(copies)]

    def call(operand: Any) -> object:
        k, v = operand
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=shared > 1)

    nbytes = 2 * tokens * ours.KV_HEADS * ours.HEAD_DIM * q.element_size()
    return ours.Case("attend", "torch", threads, 1, tokens, q.numel(), name, nbytes, build, call)


def _threaded(case: ours.Case) -> ours.Case:
    """The case with torch held to its threads."""
    from dataclasses import replace

    inner: Callable[[int], Any] = case.build

    def build(copies: int) -> Any:
        torch.set_num_threads(case.threads)
        return inner(copies)

    return replace(case, build=build)


def cases(quick: bool, threads: int) -> list[ours.Case]:
    """bf16 and fp32 products, int8 products, attention over 8 k tokens."""
    shapes = ours.SHAPES[-1:] if quick else ours.SHAPES
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    made = [_linear(name, dtypes[name], n, k, 1, threads) for n, k in shapes for name in dtypes]
    made += [_linear(name, dtypes[name], 4096, 4096, 128, threads) for name in dtypes]
    made += [_attention(name, dtypes[name], 8192, threads, shared) for shared in (1, ours.SHARED) for name in dtypes]
    if not quick:
        made.append(_int8(4096, 4096, threads))
    return [_threaded(case) for case in made]

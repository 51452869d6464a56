"""Timing a call: repeated, over one set of operands (hot) or rotating over many (cold)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from time import perf_counter_ns
from typing import TypeVar

import numpy as np

Operand = TypeVar("Operand")
COLD_BYTES = 192 * 1024 * 1024
PERCENTILE = 5
LEAST_CALLS = 5


def copies_for(nbytes: int) -> int:
    """How many operands of so many bytes a cold case rotates over."""
    return max(2, -(-COLD_BYTES // max(nbytes, 1)))


def time_us(
    call: Callable[[Operand], object], operands: Sequence[Operand], repeats: int = 100, most_s: float = inf
) -> float:
    """The 5th percentile of the times of call(operand), taking the operands in turn, after one round.

    Slow calls are repeated less often, so that all together take `most_s` at most, though 5 times at least.
    """
    for operand in operands:
        call(operand)
    times: list[int] = []
    for i in range(max(repeats, len(operands))):
        if i >= LEAST_CALLS and sum(times) > most_s * 1e9:
            break
        operand = operands[i % len(operands)]
        start = perf_counter_ns()
        call(operand)
        times.append(perf_counter_ns() - start)
    return float(np.percentile(times, PERCENTILE)) / 1000

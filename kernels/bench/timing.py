"""Timing a call: repeated, over one set of operands (hot) or rotating over many (cold)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import TypeVar

import numpy as np

Operand = TypeVar("Operand")
COLD_BYTES = 192 * 1024 * 1024
PERCENTILE = 5


def copies_for(nbytes: int) -> int:
    """How many operands of so many bytes a cold case rotates over."""
    return max(2, -(-COLD_BYTES // max(nbytes, 1)))


def time_us(call: Callable[[Operand], object], operands: Sequence[Operand], repeats: int = 100) -> float:
    """The 5th percentile of the times of call(operand), taking the operands in turn, after one round."""
    for operand in operands:
        call(operand)
    times = []
    for i in range(max(repeats, len(operands))):
        operand = operands[i % len(operands)]
        start = perf_counter_ns()
        call(operand)
        times.append(perf_counter_ns() - start)
    return float(np.percentile(times, PERCENTILE)) / 1000

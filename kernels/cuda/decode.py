"""Launches of what a decoding step does between its matrices (decode.cuh). Host side, any `Runtime`.

Rows are float32 [M, columns]; biases, gains and tables are float32 on the device; None where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nearbank.kernels.cuda import sources
from nearbank.kernels.cuda.host import Runtime

ROW_THREADS = 256


@dataclass(frozen=True)
class Norm:
    """A norm before a matrix. kind: 0 none, 1 RMS, 2 layer; gain and bias [columns] on the device."""

    kind: int
    gain: Any = None
    bias: Any = None
    epsilon: float = 0.0


@dataclass(frozen=True)
class Angles:
    """Cosines and sines [positions, half] on the device; the first 2 · half values of a head are turned."""

    cosines: Any
    sines: Any
    half: int


@dataclass(frozen=True)
class Columns:
    """What one matrix wrote, or some of its columns; stride: values between two rows; bias: still to be added."""

    values: Any
    stride: int
    bias: Any = None


def embed(runtime: Runtime, tokens: Any, start: Any, table: Any, positions: Any, x: Any, scale: float) -> None:
    """x [M, D] = table [V, D] at tokens [M] int32, times scale, plus positions [C, D] from *start on."""
    arguments = (tokens, start, table, positions, x, np.int32(x.shape[1]), np.float32(scale))
    runtime.kernel(sources.EMBED_ROWS)((x.shape[0],), ROW_THREADS, 0, arguments)


def turn(
    runtime: Runtime, parts: tuple[Columns, Columns, Columns], into: tuple[Any, Any, Any], start: Any, angles: Angles
) -> None:
    """q, k, v out of their matrices' columns into [M, heads, dim], q and k turned to their positions from *start on."""
    (tokens, heads, dim), kv_heads = into[0].shape, into[1].shape[1]
    numbers = (parts[0].stride, parts[1].stride, heads, kv_heads, dim, angles.half)
    given = (*(part.values for part in parts), *(part.bias for part in parts))
    arguments = (*given, *into, start, angles.cosines, angles.sines, *map(np.int32, numbers))
    runtime.kernel(sources.TURN_HEADS)((heads + 2 * kv_heads, tokens), 128, 0, arguments)


def add(runtime: Runtime, x: Any, y: Columns) -> None:
    """x [M, D] += y."""
    arguments = (x, y.values, y.bias, np.int32(x.shape[1]))
    runtime.kernel(sources.ADD_ROWS)(_by_columns(x), ROW_THREADS, 0, arguments)


def norm(runtime: Runtime, x: Any, by: Norm, out: Any) -> None:
    """out [M, D] = the RMS or layer norm of x."""
    arguments = (x, by.gain, by.bias, out, np.int32(x.shape[1]), np.float32(by.epsilon))
    runtime.kernel(sources.norm_rows(by.kind))((x.shape[0],), ROW_THREADS, 8 * ROW_THREADS, arguments)


def gate(runtime: Runtime, activation: str, gates: Columns, ups: Columns | None, h: Any) -> None:
    """h [M, F] = activation(gates) · ups."""
    up = Columns(None, gates.stride) if ups is None else ups
    numbers = (np.int32(h.shape[1]), np.int32(gates.stride))
    arguments = (gates.values, up.values, gates.bias, up.bias, h, *numbers)
    runtime.kernel(sources.gate_rows(activation))(_by_columns(h), ROW_THREADS, 0, arguments)


def choose_largest(runtime: Runtime, logits: Any, token: Any, made: Any, steps: Any) -> None:
    """The likeliest token of logits [V] into token [1] int32, and behind the `steps` [1] tokens in `made`."""
    arguments = (logits, np.int32(logits.shape[-1]), token, made, steps)
    runtime.kernel(sources.LARGEST_TOKEN)((1,), ROW_THREADS, 8 * ROW_THREADS, arguments)


def _by_columns(rows: Any) -> tuple[int, int]:
    return -(-rows.shape[1] // ROW_THREADS), rows.shape[0]

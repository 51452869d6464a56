"""Bytes that an operation moves where nothing computes in memory: weights, the KV cache, activations."""

from __future__ import annotations

from functools import lru_cache

from nearbank.cache_formats import cache_format
from nearbank.formats import format_named
from nearbank.trace.operation import Operation

_ACTIVATION_BYTES = 2  # activations between operations are 16-bit


@lru_cache(maxsize=1 << 16)
def operation_bytes(operation: Operation) -> int:
    """Bytes an operation reads and writes in the processor's memory: weights, the KV cache, activations."""
    return weight_bytes(operation) + kv_bytes(operation) + _activation_bytes(operation)


def weight_bytes(operation: Operation) -> int:
    """Bytes of the operation's matrix as stored, scales included; 0 for operations without one."""
    if operation.op != "matmul":
        return 0
    assert operation.weights and operation.n and operation.k
    return format_named(operation.weights).bytes_for(operation.n, operation.k)


def kv_bytes(operation: Operation) -> int:
    """Bytes of the KV cache read (score, context), written (append: K and V) or copied (fork), scales included."""
    if operation.kv is None:
        return 0
    assert operation.kv_heads and operation.m
    heads, cache = operation.kv_heads, cache_format(operation.kv)
    if operation.op == "fork":  # read there, written here
        return 2 * cache.append_bytes(operation.m, heads, (operation.n or 0) // heads)
    assert operation.context
    if operation.op == "append":
        return cache.append_bytes(operation.m, heads, (operation.n or 0) // heads)
    if operation.op == "score":
        return cache.key_bytes(heads, operation.k or 0, operation.context)
    return cache.value_bytes(heads, operation.n or 0, operation.context)


def _activation_bytes(operation: Operation) -> int:
    m, heads = operation.m or 0, operation.heads or 0
    values = {
        "embed": 2 * m * (operation.n or 0),
        "norm": 2 * m * (operation.n or 0),
        "matmul": m * ((operation.n or 0) + (operation.k or 0)),
        "score": m * heads * (operation.k or 0) + heads * (operation.pairs or 0),
        "softmax": 2 * heads * (operation.pairs or 0),
        "context": m * heads * (operation.n or 0) + heads * (operation.pairs or 0),
        "activation": 2 * m * (operation.n or 0),
        "residual": 3 * m * (operation.n or 0),
        "sample": m * (operation.n or 0),
    }
    return _ACTIVATION_BYTES * values.get(operation.op, 0)

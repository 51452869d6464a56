"""What every KV cache for arrays on the GPU has alike: lengths, checks of the caller's arrays, the caller's stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from nearbank.errors import NearbankError
from nearbank.kernels.cuda import cache, host
from nearbank.kernels.cuda.cache import AttendScratch, DevicePages
from nearbank.kernels.cuda.given import Given, callers_stream, check_given, given, given_target

QUERY_ALIGNMENT = 16


class CallersCache(ABC):
    """Appends and attends on the caller's stream, waits for nothing. `held` is the memory of all layers."""

    def __init__(self, runtime: Any, held: DevicePages) -> None:
        self._runtime, self._held = runtime, held
        self._lengths = [0] * held.layers

    def length(self, layer: int) -> int:
        """Tokens appended by calls (replays of a graph do not count here)."""
        if not isinstance(layer, (int, np.integer)) or not 0 <= layer < self._held.layers:
            raise NearbankError(f"layer {layer!r}; this cache has layers 0 to {self._held.layers - 1}")
        return self._lengths[layer]

    def clear(self) -> None:
        """Forget all tokens; the memory stays."""
        self._lengths = [0] * self._held.layers
        self._held.lengths.fill(0)

    def append(self, layer: int, k: Any, v: Any) -> None:
        """Add k, v [T, kv_heads, head_dim] (fp32, fp16 or bf16, alike). Raises when the capacity is exceeded."""
        keys, values = given_pair(k, v, (None, self._held.kv_heads, self._held.head_dim), self._runtime.device)
        tokens, before = keys.array.shape[0], self.length(layer)
        if before + tokens > self._held.capacity:
            raise NearbankError(
                f"layer {layer} holds {before} tokens and {tokens} more exceed the capacity of {self._held.capacity}"
            )
        contiguous = self._runtime.xp.ascontiguousarray
        with callers_stream(keys):
            self._append(layer, contiguous(keys.array), contiguous(values.array), host.KIND[keys.kind])
        self._lengths[layer] = before + tokens

    @abstractmethod
    def _append(self, layer: int, k: Any, v: Any, kind: int) -> None: ...

    def _queries(self, layer: int, q: Any) -> Given:
        """q [T, heads, head_dim] as it must be to attend the last T tokens appended."""
        queries = given(q, "q")
        check_given(queries, "q", (None, None, self._held.head_dim), self._runtime.device)
        (count, heads, dim), held = queries.array.shape, self.length(layer)
        if queries.kind != "fp32" or heads % self._held.kv_heads or not 0 < count <= held:
            raise NearbankError(
                f"q is {queries.kind}[{count}, {heads}, {dim}] with {self._held.kv_heads} KV heads and "
                f"{held} tokens; expected float32, whole groups of heads, at most so many tokens"
            )
        return queries


def has_tensor_cores(runtime: Any) -> bool:
    """Whether the fast attention runs on this GPU."""
    return bool(runtime.capability >= host.TENSOR_CORES)


def put(result: Any, target: Any) -> Any:
    """The result where the caller wants it; itself where that is None."""
    if target is None:
        return result
    target[...] = result
    return target


def rows_of(runtime: Any, queries: Given) -> Any:
    """Queries as the kernels read them: one after the other, 16 bytes at a time."""
    array = runtime.xp.ascontiguousarray(queries.array)
    aligned = array.__cuda_array_interface__["data"][0] % QUERY_ALIGNMENT == 0
    return array if aligned else array.copy()


def given_pair(k: Any, v: Any, shape: tuple[int | None, ...], device: int) -> tuple[Given, Given]:
    """k and v of that shape (None: any), alike."""
    keys, values = given(k, "k"), given(v, "v")
    for one, name in ((keys, "k"), (values, "v")):
        check_given(one, name, shape, device)
    if keys.array.shape != values.array.shape or keys.kind != values.kind:
        raise NearbankError(
            f"k is {keys.kind}{list(keys.array.shape)} but v is {values.kind}{list(values.array.shape)}"
        )
    return keys, values


class AttendingCache(CallersCache):
    """One whose attention is the fast one where the format and head dimension have it, else that in fixed order."""

    @abstractmethod
    def _scratch_for(self, queries: int, heads: int) -> AttendScratch: ...

    def _fast(self) -> bool:
        return self._held.fast()

    def _attend_exact(self, layer: int, start: int, q: Any, scale: float) -> Any:
        return cache.attend_exact(self._runtime, self._held, layer, start, q, np.float32(scale))

    def _attend_fast(self, layer: int, q: Any, scale: float, scratch: AttendScratch, out: Any) -> Any:
        return cache.attend(self._runtime, self._held, layer, q, scale, scratch, out)

    def attend(self, layer: int, q: Any, scale: float | None = None, out: Any = None) -> Any:
        """Causal attention of q [T, heads, head_dim] float32, the last T tokens appended → context alike."""
        queries = self._queries(layer, q)
        count, heads, dim = queries.array.shape
        factor = dim**-0.5 if scale is None else scale
        target = given_target(out, queries.array.shape, self._runtime.device)
        with callers_stream(queries):
            array = rows_of(self._runtime, queries)
            if self._fast() and has_tensor_cores(self._runtime):
                scratch = self._scratch_for(count, heads)
                return queries.returned(self._attend_fast(layer, array, factor, scratch, target))
            exact = self._attend_exact(layer, self._lengths[layer] - count, array, factor)
            return queries.returned(put(exact, target))


class OneSequence(AttendingCache):
    """One with scratch of its own, kept for every number of queries. resident: as `cache.attend_scratch` says."""

    def __init__(self, runtime: Any, held: DevicePages, resident: int | None = None) -> None:
        super().__init__(runtime, held)
        self._resident = resident
        self._scratch: dict[tuple[int, int], AttendScratch] = {}

    @property
    def _scratch_bytes(self) -> int:
        return sum(int(one.parts.nbytes + one.arrived.nbytes) for one in self._scratch.values())

    def _scratch_for(self, queries: int, heads: int) -> AttendScratch:
        if (queries, heads) not in self._scratch:
            made = cache.attend_scratch(self._runtime, self._held, queries, heads, self._resident)
            self._scratch[queries, heads] = made
        return self._scratch[queries, heads]

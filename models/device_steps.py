"""A generation whose passes are those of `nearbank.models.device`, as `nearbank.models.decoder.Decoder`.

Without recording, a step is one CUDA graph from the second on. Recorded, a pass is launched operation by operation
between events. What one kernel does as one has one time: norms stand with the product that follows, q, k and v, gate
and up, an activation and its product, and attention's three each with the last of them; the others have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby, pairwise
from time import perf_counter_ns
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from nearbank.models import device
from nearbank.models.device import DeviceDecoder
from nearbank.models.device_weights import ACTIVATIONS as FUNCTIONS
from nearbank.models.execution import Floats, Row, Tokens
from nearbank.models.model import Model
from nearbank.models.sketch import sketch
from nearbank.trace import Step

Marks = list[tuple[str, Any]]  # what begins, and when
# operations that run inside another's kernel, by the name that the decoder gives that kernel
WITHIN: Mapping[str, str] = MappingProxyType(
    {
        "ln_1": "attn.qkv",
        **dict.fromkeys(("attn.q", "attn.k", "attn.v"), "attn.qkv"),
        **dict.fromkeys(("attn.score", "attn.softmax"), "attn.context"),
        "attn.sub_norm": "attn.proj",
        **dict.fromkeys(("ln_2", "mlp.gate", "mlp.up", "mlp.gate_up"), "mlp.fc1"),
        **dict.fromkeys(("mlp.sub_norm", "mlp.down"), "mlp.fc2"),
    }
)
ACTIVATIONS = frozenset(FUNCTIONS.values())
PRODUCT = "mlp.product"  # gate times up


class Clock(Protocol):
    """When the device got so far."""

    def mark(self) -> Any: ...

    def between_ns(self, begin: Any, end: Any) -> int: ...


class HostClock:
    """For devices that are done when a call returns, as the emulation is."""

    def mark(self) -> int:
        return perf_counter_ns()

    def between_ns(self, begin: int, end: int) -> int:
        return end - begin


class EventClock:
    """CUDA events on the current stream."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda

    def mark(self) -> Any:
        event = self._cuda.Event()
        event.record()
        return event

    def between_ns(self, begin: Any, end: Any) -> int:
        end.synchronize()
        return round(1e6 * float(self._cuda.get_elapsed_time(begin, end)))


def device_steps(model: Model, prompt: Tokens, tokens: int, record: bool) -> DeviceSteps:
    """Raises `NearbankError` naming what a GPU does not decode."""
    runtime = device.current_runtime()
    cuda = getattr(runtime.xp, "cuda", None)
    stream = None if cuda is None else cuda.Stream(non_blocking=True)
    with stream or nullcontext():
        decoder = device.decoder_for(model, len(prompt) + tokens - 1, runtime=runtime)
    if cuda is not None:
        cuda.Device().synchronize()  # weights and cache are made on other streams too
    return DeviceSteps(decoder, prompt, _foreseen(model, len(prompt), tokens) if record else iter(()), stream)


def _foreseen(model: Model, prompt: int, tokens: int) -> Iterator[Step]:
    head = model.network.head
    return sketch(
        model.shape, prompt, tokens, weights=model.weights, inputs=model.inputs, kv=model.kv,
        head=head.matrix.format.name, head_inputs=head.inputs,
    )  # fmt: skip


class DeviceSteps:
    """One sequence on a device. stream: where it runs; None for an emulation, which has no graphs either."""

    def __init__(self, decoder: DeviceDecoder, prompt: Tokens, foreseen: Iterator[Step], stream: Any) -> None:
        self.decoder, self._prompt, self._foreseen, self._stream = decoder, prompt, foreseen, stream
        self.vocabulary = decoder.weights.shape.vocabulary
        self._clock: Clock = HostClock() if stream is None else EventClock(decoder.runtime.xp.cuda)
        self._next: int | None = None  # the token that the next step would take in
        self._captured = False

    def prefill(self, rows: list[Row] | None) -> None:
        prompt, marks = [int(token) for token in self._prompt], Marks()
        with self._on_stream():
            self.decoder.prefill(prompt, None if rows is None else self._noting(marks))
            self._note(rows, marks)

    def step(self, tokens: Sequence[int], rows: list[Row] | None) -> None:
        (token,), marks = tokens, Marks()
        with self._on_stream():
            if token != self._next:
                self.decoder.feed(token)
            self.decoder.step(greedy=False, note=None if rows is None else self._noting(marks))
            self._note(rows, marks)
            if rows is None and self._stream is not None and not self._captured:
                self.decoder.capture()
                self._captured = True
        self._next = None

    def scores(self, sequence: int) -> Floats:
        with self._on_stream():
            return np.asarray(self.decoder.runtime.asnumpy(self.decoder.logits))

    def likeliest(self, sequence: int) -> int:
        with self._on_stream():
            self.decoder.choose()
            self._next = self.decoder.next_token()
        return self._next

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else self._stream

    def _noting(self, marks: Marks) -> device.Note:
        return lambda name: marks.append((name, self._clock.mark()))

    def _note(self, rows: list[Row] | None, marks: Marks) -> None:
        if rows is not None:
            times = [(name, self._clock.between_ns(begin, end)) for (name, begin), (_, end) in pairwise(marks)]
            rows.extend(timed(next(self._foreseen), times))


def timed(step: Step, times: Sequence[tuple[str, int]]) -> Iterator[Row]:
    """The operations of a pass, its choices left out, with the time of each kernel at its last operation.

    times: (name, ns) of every kernel in order; one that the trace has no operation for counts to the one before.
    """
    passed = [(layer, operation) for layer, operation in step.rows() if operation.op != "sample"]
    groups = [(name, list(part)) for name, part in groupby(passed, lambda row: _kernel_of(row[1].name))]
    spent, left = [0] * len(groups), -1
    for name, time_ns in times:
        left += left + 1 < len(groups) and groups[left + 1][0] == _kernel_of(name)
        spent[left] += time_ns
    assert left == len(groups) - 1, f"{groups[left + 1][0]} has no kernel among {[name for name, _ in times]}"
    for (_, part), time_ns in zip(groups, spent, strict=True):
        yield from ((layer, operation, None) for layer, operation in part[:-1])
        yield (*part[-1], time_ns)


def _kernel_of(name: str) -> str:
    """The kernel that an operation runs in, or a kernel itself. An activation and gate times up are one."""
    part = name.removeprefix("mlp.")
    return PRODUCT if part != name and part in ACTIVATIONS else WITHIN.get(name, name)

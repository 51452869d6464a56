"""A torch profile (Kineto, `export_chrome_trace`) with shapes as a trace: bring a run from your own stack.

Record it with `torch.profiler.profile(record_shapes=True)` around the forward passes. On a GPU an operation's time is
that of the kernels it launched; without one, the CPU time of the call. What no rule knows is returned with its time.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearbank import __version__
from nearbank.errors import NearbankError
from nearbank.models.observed import FREE, RULES, Observed, Reader, Seen, describe_observed, passes
from nearbank.trace import TraceHeader, TraceWriter

FORMATS = {"float": "fp32", "c10::BFloat16": "bf16", "c10::Half": "fp16", "double": "fp32"}
KERNEL_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True)
class Imported:
    """What came of a profile: its passes, and the calls no rule knows, by name: (count, time in ns)."""

    trace: Path
    prompt_tokens: int
    passes: int
    unknown: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class _Call:
    """A call on the CPU: start and end in ns, and what it was given."""

    name: str
    start: int
    end: int
    shapes: tuple[tuple[int, ...], ...]
    format: str
    external: int | None


def import_kineto(
    profile: Path, out: Path, name: str | None = None, kv_heads: int | None = None, sequences: int = 1
) -> Imported:
    """Write the trace of a profile's forward passes to `out`.

    kv_heads: of grouped-query models that repeat keys before attention, which shapes alone do not show. sequences:
    the batch. Raises `NearbankError` for a file that is no profile, has no shapes, or no decoder in it.
    """
    events = _events(profile)
    calls, device_ns = _calls(events, profile), _device_times(events)
    seen, unknown = _outermost(calls, device_ns)
    reader = Reader(kv_heads, sequences)
    observed = list(passes(seen, reader))
    if not observed:
        raise NearbankError(
            f"{profile}: no attention among its {len(calls)} calls; expected a decoder's forward passes"
        )
    _write(out, observed, name or profile.name.split(".")[0], _formats(observed), "GPU" if device_ns else "CPU")
    return Imported(out, observed[0].tokens // sequences, len(observed), unknown)


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        raw = path.read_bytes()
        text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        events = json.loads(text)["traceEvents"]
    except OSError as error:
        raise NearbankError(f"{path}: cannot read the profile ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise NearbankError(f"{path}: no torch profile; expected the JSON of export_chrome_trace") from error
    return [event for event in events if isinstance(event, dict) and event.get("ph") == "X"]


def _calls(events: list[dict[str, Any]], path: Path) -> list[_Call]:
    """The calls of the thread that made most of them, in order, callers before what they called."""
    found = [event for event in events if event.get("cat") == "cpu_op"]
    if not any("Input Dims" in event.get("args", {}) for event in found):
        raise NearbankError(f"{path}: the profile has no shapes; record it with profile(record_shapes=True)")
    threads: dict[Any, int] = defaultdict(int)
    for event in found:
        threads[event.get("tid")] += 1
    busiest = max(threads, key=lambda tid: threads[tid])
    calls = [_call(event) for event in found if event.get("tid") == busiest]
    return sorted(calls, key=lambda call: (call.start, -call.end))


def _call(event: Mapping[str, Any]) -> _Call:
    args, start = event.get("args", {}), round(float(event["ts"]) * 1000)
    dims, kinds = args.get("Input Dims", []), args.get("Input type", [])
    tensors = [(tuple(d), kind) for d, kind in zip(dims, kinds, strict=False) if _is_shape(d)]
    floats = [FORMATS[kind] for _, kind in tensors if kind in FORMATS]
    return _Call(
        str(event["name"]).split("::")[-1],
        start,
        start + round(float(event.get("dur", 0)) * 1000),
        tuple(shape for shape, _ in tensors),
        floats[0] if floats else "fp32",
        args.get("External id"),
    )


def _is_shape(dims: Any) -> bool:
    return isinstance(dims, list) and bool(dims) and all(isinstance(n, int) for n in dims)


def _device_times(events: list[dict[str, Any]]) -> dict[int, int]:
    """Nanoseconds of the kernels that each call (by its external id) launched."""
    times: dict[int, int] = defaultdict(int)
    for event in events:
        external = event.get("args", {}).get("External id")
        if event.get("cat") in KERNEL_CATEGORIES and external is not None:
            times[external] += round(float(event.get("dur", 0)) * 1000)
    return dict(times)


def _outermost(calls: list[_Call], device_ns: Mapping[int, int]) -> tuple[list[Seen], dict[str, tuple[int, int]]]:
    """The outermost calls that a rule knows, and the outermost ones in which no rule knows anything."""
    seen: list[Seen] = []
    unknown: dict[str, tuple[int, int]] = {}
    index = 0
    while index < len(calls):
        call, inside = calls[index], _inside(calls, index)
        time_ns = _time(calls[index:inside], device_ns)
        if call.name in RULES:
            seen.append(Seen(call.name, call.shapes, call.format, time_ns))
        elif any(inner.name in RULES for inner in calls[index:inside]):
            index += 1
            continue
        elif call.name not in FREE:
            count, total = unknown.get(call.name, (0, 0))
            unknown[call.name] = (count + 1, total + time_ns)
        index = inside
    return seen, unknown


def _inside(calls: list[_Call], index: int) -> int:
    """The index after the last call that began within calls[index]."""
    after = index + 1
    while after < len(calls) and calls[after].start < calls[index].end:
        after += 1
    return after


def _time(calls: list[_Call], device_ns: Mapping[int, int]) -> int:
    """Time of calls[0]: its kernels' and those of what it called; without a GPU, its own."""
    if not device_ns:
        return calls[0].end - calls[0].start
    return sum(device_ns.get(external, 0) for external in {c.external for c in calls if c.external is not None})


def _formats(observed: list[Observed]) -> tuple[str, str]:
    rows = [operation for _, operation, _ in observed[0].rows]
    weights = next((o.weights for o in rows if o.weights), "fp32")
    return weights, next((o.kv for o in rows if o.kv), weights)


def _write(out: Path, observed: list[Observed], name: str, formats: tuple[str, str], device: str) -> None:
    longest = max(o.context or 0 for one in observed for _, o, _ in one.rows)
    header = TraceHeader(
        model=describe_observed(name, observed[0], longest),
        origin="recorded",
        prompt_tokens=max(1, observed[0].tokens),
        new_tokens=len(observed),
        weights=formats[0],
        kv=formats[1],
        device=device,
        backend="torch",
        nearbank_version=__version__,
    )
    with TraceWriter(out, header) as writer:
        for step, one in enumerate(observed):
            for layer, operation, time_ns in one.rows:
                writer.append(step, _phase(step, one), layer, operation, time_ns)


def _phase(step: int, one: Observed) -> str:
    return "prefill" if step == 0 or any((o.m or 0) > 1 for _, o, _ in one.rows if o.op == "append") else "decode"


def unknown_lines(imported: Imported) -> Iterator[str]:
    """What was left out, slowest first, one line each."""
    for name, (count, time_ns) in sorted(imported.unknown.items(), key=lambda item: -item[1][1]):
        yield f"{name}: {count} calls, {time_ns / 1e6:.3f} ms"

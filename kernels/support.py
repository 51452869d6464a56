"""What a backend can do, asked before trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nearbank.cache_formats import cache_format
from nearbank.errors import NearbankError
from nearbank.formats import Format, format_named
from nearbank.kernels.arrays import checked_size
from nearbank.kernels.backends import BACKENDS, problem_of, resolve
from nearbank.kernels.levels import LEVELS

ACTIVATIONS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Support:
    """True or false, and why not."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


def supported(op: str, shape: Sequence[int], dtypes: Sequence[str], backend: str = "auto") -> Support:
    """Whether `backend` can do `op` on such a shape and such formats.

    "linear":  shape (M, N, K), dtypes (activations, weights), activations float or levels such as "int8"
    "attend" and "append":  shape (tokens, heads, kv_heads, head_dim), dtypes (cache,): a format, or one with a scheme
    as `nearbank.cache_formats` names them ("int4-kivi"; "int4-wkv" needs `Channels`)
    """
    if backend != "auto" and backend not in BACKENDS:
        return Support(False, f"unknown backend '{backend}'; known: auto, {', '.join(BACKENDS)}")
    if backend != "auto" and problem_of(backend) is not None:
        return Support(False, f"backend '{backend}': {problem_of(backend)}")
    if op not in _CHECKS:
        return Support(False, f"unknown op '{op}'; known: {', '.join(_CHECKS)}")
    ranks = {"linear": (3, 2), "attend": (4, 1), "append": (4, 1)}[op]
    if (len(shape), len(dtypes)) != ranks or not all(isinstance(name, str) for name in dtypes):
        return Support(False, f"{op} takes {ranks[0]} sizes and {ranks[1]} formats, not {shape} and {dtypes}")
    try:
        for size in shape[1:] if op == "linear" and shape[0] == 0 else shape:  # no rows give no rows
            checked_size(size, "size")
    except NearbankError as error:
        return Support(False, f"{op} of {tuple(shape)}: {error}")
    return _CHECKS[op](shape, dtypes, resolve(backend))


def _linear(shape: Sequence[int], dtypes: Sequence[str], backend: str) -> Support:
    activations, weights = dtypes
    try:
        fmt = format_named(weights)
    except NearbankError as error:
        return Support(False, str(error))
    if activations not in (*ACTIVATIONS, *LEVELS):
        return Support(False, f"activations '{activations}'; known: {', '.join((*ACTIVATIONS, *LEVELS))}")
    if fmt.is_float and activations in LEVELS:
        return Support(False, f"integer activations need integer weights, not {weights}")
    if not fmt.is_float and summed_columns(fmt, shape[2]) > longest_sum(fmt):
        return Support(False, f"{weights}: K = {shape[2]} could overflow an int32 sum; up to {longest_sum(fmt)}")
    return Support(True)


def summed_columns(fmt: Format, columns: int) -> int:
    """Columns whose products are added as integers: a group's, or a row's."""
    return min(columns, fmt.scaling.group) if fmt.scaling.per == "group" else columns


def longest_sum(fmt: Format) -> int:
    """Columns of an integer format that cannot overflow an int32 sum with activations down to −128."""
    largest = max(abs(fmt.step * code - zero) for code in (fmt.low, fmt.high) for zero in _zeros(fmt))
    return (2**31 - 1) // (largest * 128)


def _zeros(fmt: Format) -> tuple[int, ...]:
    return (0, fmt.high) if fmt.stores_zeros else (fmt.zero,)


def _cache(shape: Sequence[int], dtypes: Sequence[str], backend: str) -> Support:
    _, heads, kv_heads, _ = shape
    try:
        method = cache_format(dtypes[0]).method
    except NearbankError as error:
        return Support(False, str(error))
    if method == "2d":
        return Support(False, f"{dtypes[0]}: shift and scale K and V yourself, then it is the plain cache")
    if heads % kv_heads:
        return Support(False, f"{heads} query heads over {kv_heads} KV heads")
    return Support(True)


_CHECKS: dict[str, Callable[[Sequence[int], Sequence[str], str], Support]] = {
    "linear": _linear,
    "attend": _cache,
    "append": _cache,
}

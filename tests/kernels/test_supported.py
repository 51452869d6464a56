"""`supported` is true exactly where the call works, on the backends that need no GPU."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nearbank.cache_formats import cache_format, cache_names
from nearbank.errors import NearbankError
from nearbank.formats import FORMATS, format_named
from nearbank.kernels import Channels, KVCache, PackedMatrix, WindowedKVCache, linear, linear_codes, prepare, supported
from nearbank.kernels.levels import LEVELS
from nearbank.kernels.support import ACTIVATIONS, longest_sum

BACKENDS = st.sampled_from(["numpy", "numba", "auto", "cupy", "abacus"])
WEIGHTS = st.sampled_from(
    [*FORMATS, "int8-tensor", "int4-row", "int4-g7", "ternary-g64", "int4-g0", "fp16-row", "int5"]
)
ROWS = st.sampled_from([0, 1, 2, 5])
COLUMNS = st.sampled_from([-1, 0, 1, 31, 64, longest_sum(FORMATS["int8"]), longest_sum(FORMATS["int8"]) + 1])
NO_CACHES = "int3", "ternary", "int4-g64", "int4-", "fp16-kivi"
CACHES = st.sampled_from([*cache_names(), *NO_CACHES])


def _works(call):
    try:
        result = call()
    except NearbankError:
        return False
    assert np.isfinite(np.asarray(result)).all()
    return True


def _multiply(shape, activations, weights, backend):
    """The product that `supported` was asked about."""
    (m, n, k), fmt = shape, format_named(weights)
    if min(n, k) < 0:
        raise NearbankError("NumPy has no such array")
    scales, zeros = (np.ones(fmt.scaling.shape(n, k), kind) for kind in (np.float32, np.uint8))
    codes = fmt.quantise(np.ones((1, 1), np.float32)).codes.dtype
    parts = (None, None) if fmt.is_float else (scales, zeros if fmt.stores_zeros else None)
    matrix = prepare(PackedMatrix.from_codes(fmt, np.ones((n, k), codes), *parts), backend)
    if activations in LEVELS:
        return linear_codes(np.ones((m, k), np.int8), np.ones(m, np.float32), matrix, activations)
    if activations not in ACTIVATIONS:
        raise NearbankError("no such activations")
    kind = np.float16 if activations == "fp16" else np.float32
    return linear(np.ones((m, k), kind), matrix)


@settings(max_examples=50, deadline=None)
@given(st.tuples(ROWS, ROWS, COLUMNS), st.sampled_from([*ACTIVATIONS, *LEVELS, "int7"]), WEIGHTS, BACKENDS)
def test_it_is_true_exactly_where_a_product_works(shape, activations, weights, backend):
    answer = supported("linear", shape, (activations, weights), backend)
    assert bool(answer) == _works(lambda: _multiply(shape, activations, weights, backend)), answer
    assert bool(answer) != bool(answer.reason)


def _attend(shape, name, backend):
    tokens, heads, kv_heads, dim = shape
    kind, k = cache_format(name), np.ones((tokens, kv_heads, dim), np.float32)
    if kind.method == "2d":
        raise NearbankError("no class has channels without a window")
    sizes = 1, kv_heads, dim, tokens
    if kind.method == "plain":
        cache = KVCache(*sizes, kind.format, backend)
    else:
        channels = Channels.of(k, k) if kind.needs_fit else None
        cache = WindowedKVCache(*sizes, kind.format, kind.scheme.name, channels, backend)
    cache.append(0, k, k)
    return cache.attend(0, np.ones((tokens, heads, dim), np.float32))


@settings(max_examples=100, deadline=None)
@given(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3), st.integers(0, 33)), CACHES, BACKENDS)
def test_it_is_true_exactly_where_a_cache_works(shape, name, backend):
    answers = [supported(op, shape, (name,), backend) for op in ("append", "attend")]
    works = 0 not in shape and _works(lambda: _attend(shape, name, backend))
    assert [bool(answer) for answer in answers] == [works] * 2, answers

"""What a user may get wrong by hand: one line that names what was given and what is expected."""

from __future__ import annotations

import numpy as np
import pytest

from nearbank.errors import NearbankError
from nearbank.kernels import (
    KVCache,
    PackedMatrix,
    WindowedKVCache,
    linear,
    linear_codes,
    prepare,
    set_threads,
    supported,
)
from nearbank.kernels.arrays import floats32

W, X = np.ones((8, 16), np.float32), np.ones((1, 16), np.float32)
MATRIX = prepare(PackedMatrix.quantise(W, "ternary"), "numpy")
CACHE, Q = KVCache(1, 1, 8, 4), np.ones((1, 1, 8), np.float32)
CACHE.append(0, Q, Q)
CODES, SCALES = np.full((8, 16), 0.5), np.ones((8, 1), np.float32)

CASES = {
    "weights not packed": (lambda: prepare(W), "'packed' is a ndarray; expected PackedMatrix"),
    "weights not prepared": (lambda: linear(X, W), "'matrix' is a ndarray; expected prepare"),
    "no weights": (lambda: PackedMatrix.quantise(W[:0], "ternary"), "0 × 16 weights; expected at least 1 × 1"),
    "codes of floats": (lambda: PackedMatrix.from_codes("ternary", CODES, SCALES), "codes are float64"),
    "text for a size": (lambda: KVCache(1, 1, 8, "4"), "capacity = '4'; expected a whole number"),
    "half a token": (lambda: KVCache(1, 1, 8, 4.5), "capacity = 4.5; expected a whole number"),
    "more than there is": (lambda: KVCache(1000, 64, 256, 10**9), "no memory for 1000 layers × 1000000000 tokens"),
    "no threads": (lambda: set_threads(0), "threads = 0; expected a whole number, 1 or more"),
    "no format": (lambda: PackedMatrix.quantise(W, None), "format None; expected a name"),
    "groups in a cache": (lambda: KVCache(1, 1, 8, 4, "int4-g64"), "format 'int4-g64'; supported: fp32"),
    "no address for it": (lambda: KVCache(1, 1, 8, 2**62), "no memory for 1 layers"),
    "text for a layer": (lambda: CACHE.length("0"), "layer '0'; this cache has layers 0 to 0"),
    "half a layer": (lambda: CACHE.length(0.5), "layer 0.5; this cache has"),
    "text for a scale": (lambda: CACHE.attend(0, Q, "1"), "scale '1'; expected a finite number"),
    "infinite scale": (lambda: CACHE.attend(0, Q, np.inf), "scale inf; expected a finite number"),
    "no epsilon": (lambda: linear(X, MATRIX, norm="rms", epsilon=None), "norm epsilon None; expected a number"),
    "epsilon of nothing": (lambda: linear(X, MATRIX, norm="rms", epsilon=1e-60), "norm epsilon 1e-60; expected"),
    "NaN scales": (lambda: linear_codes(X.astype(np.int8), X[:, 0] * np.nan, MATRIX), "'scales' hold NaN"),
    "text for threads": (lambda: set_threads("2"), "threads = '2'; expected"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_says_what_was_given_and_what_is_expected(case):
    call, message = CASES[case]
    with pytest.raises(NearbankError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_no_rows_give_no_rows():
    for backend in ("numpy", "numba"):
        for name in ("ternary", "int4", "fp16"):
            matrix = prepare(PackedMatrix.quantise(W, name), backend)
            assert linear(X[:0], matrix).shape == (0, 8)
    none = np.zeros((0, 16), np.int8), np.zeros(0, np.float32)
    assert linear_codes(*none, MATRIX).shape == (0, 8)


def test_no_queries_get_no_context():
    for backend in ("numpy", "numba"):
        for cache in (KVCache(2, 1, 8, 4, "int4", backend), WindowedKVCache(2, 1, 8, 4, "int4", "kivi", None, backend)):
            cache.append(0, Q[:0], Q[:0])
            assert cache.length(0) == 0 and cache.attend(0, Q[:0]).shape == (0, 1, 8)


AS_GIVEN = {
    "columns first": np.asfortranarray,
    "every second of more": lambda x: np.repeat(np.repeat(x, 2, 0), 2, 1)[::2, ::2],
    "backwards": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "the other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "double": lambda x: x.astype(np.float64),
    "read only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "at an odd address": lambda x: np.frombuffer(b"." + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
    "a list": lambda x: x.tolist(),
}


@pytest.mark.parametrize("how", AS_GIVEN)
def test_arrays_count_however_they_lie(how):
    x = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    given = AS_GIVEN[how](x)
    assert floats32(np.asarray(given)).flags.carray  # what Numba has compiled for already
    for backend in ("numpy", "numba"):
        matrix = prepare(PackedMatrix.quantise(AS_GIVEN[how](x), "ternary"), backend)
        expected = linear(x, prepare(PackedMatrix.quantise(x, "ternary"), "numpy"))
        np.testing.assert_array_equal(linear(given, matrix), expected)
        caches = [KVCache(1, 2, 8, 4, "int4", backend) for _ in range(2)]
        contexts = []
        for cache, tokens in zip(caches, (x, np.asarray(given)), strict=True):
            cache.append(0, tokens.reshape(4, 2, 8), tokens.reshape(4, 2, 8))
            contexts.append(cache.attend(0, tokens.reshape(4, 2, 8)))
        np.testing.assert_array_equal(*contexts)


def test_supported_answers_for_sizes_that_are_none():
    assert "expected a whole number" in supported("linear", (1, "8", 16), ("int8", "ternary")).reason

"""What a user may get wrong by hand: one line that names what was given and what is expected."""

from __future__ import annotations

import numpy as np
import pytest

from nearbank.errors import NearbankError
from nearbank.kernels import KVCache, PackedMatrix, linear, linear_codes, prepare, set_threads, supported

W, X = np.ones((8, 16), np.float32), np.ones((1, 16), np.float32)
MATRIX = prepare(PackedMatrix.quantise(W, "ternary"), "numpy")
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


def test_supported_answers_for_sizes_that_are_none():
    assert "expected a whole number" in supported("linear", (1, "8", 16), ("int8", "ternary")).reason

"""torch on the same shapes, as a yardstick: bf16, fp32 and int8 products, attention over 8 k tokens."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from nearbank.kernels.bench.cases import torch_cases

NUMBER = len(torch_cases(False, 1)) if find_spec("torch") else 0


@pytest.mark.parametrize("number", range(NUMBER))
def test_torch(timed, threads, number):
    timed(torch_cases(False, threads)[number], rounds=10)

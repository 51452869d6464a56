"""The KV cache on the CPU: decode attention over 1 k to 128 k tokens, and appending a token."""

from __future__ import annotations

import pytest

from nearbank.kernels.bench.cases import KV_FORMATS, SHARED, WINDOWED, append_case, attend_case, numpy_attend_case


@pytest.mark.parametrize("tokens", [1024, 8192, 32768, 131072])
@pytest.mark.parametrize("fmt", KV_FORMATS)
def test_attend(timed, threads, fmt, tokens):
    timed(attend_case(fmt, tokens, threads), rounds=30)


@pytest.mark.parametrize("fmt", KV_FORMATS)
def test_attend_with_shared_heads(timed, threads, fmt):
    timed(attend_case(fmt, 8192, threads, shared=SHARED), rounds=30)


@pytest.mark.parametrize(("tokens", "shared"), [(1024, 1), (8192, 1), (8192, SHARED)])
def test_attend_in_numpy(timed, threads, tokens, shared):
    timed(numpy_attend_case(tokens, threads, shared), rounds=20)


@pytest.mark.parametrize("fmt", [*KV_FORMATS, *WINDOWED])
def test_append(timed, threads, fmt):
    timed(append_case(fmt, 8192, threads))

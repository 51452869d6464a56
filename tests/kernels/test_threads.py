"""Threads: every item exactly once, errors reach the caller, results do not depend on the number."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearbank.errors import NearbankError
from nearbank.kernels import KVCache, PackedMatrix, linear, prepare, set_threads, thread_count
from nearbank.kernels.threads import edges_of_parts, in_parts

LARGE = 1 << 30


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = thread_count()
    set_threads(request.param)
    yield request.param
    set_threads(before)


@pytest.mark.parametrize("items", [1, 2, 7, 100])
def test_every_item_is_done_once(threads, items):
    done = []
    in_parts(lambda first, last: done.extend(range(first, last)), items, LARGE)
    assert sorted(done) == list(range(items))


@settings(max_examples=50, deadline=None)
@given(items=st.integers(1, 10_000), threads=st.integers(1, 64), least=st.integers(1, 500))
def test_parts_cover_all_and_become_smaller(items, threads, least):
    sizes = np.diff(edges_of_parts(items, threads, least))
    assert sizes.sum() == items
    assert (sizes > 0).all() and (np.diff(sizes) <= 0).all()
    assert (sizes[:-1] >= min(least, items)).all()


def test_errors_reach_the_caller(threads):
    def run(first, last):
        if first <= 5 < last:
            raise RuntimeError("part of 5")

    with pytest.raises(RuntimeError, match="part of 5"):
        in_parts(run, 100, LARGE)
    in_parts(lambda first, last: None, 100, LARGE)


def test_results_do_not_depend_on_threads(threads):
    rng = np.random.default_rng(0)
    matrix = prepare(PackedMatrix.quantise(rng.normal(size=(1500, 1024)).astype(np.float32), "int4"), "numba")
    x = rng.normal(size=(9, 1024)).astype(np.float32)
    cache = KVCache(1, 4, 64, 600, "int4")
    k = rng.normal(size=(600, 4, 64)).astype(np.float32)
    cache.append(0, k, k)
    many = linear(x, matrix), linear(x, matrix, "fp32"), cache.attend(0, k[-9:])
    set_threads(1)
    one = linear(x, matrix), linear(x, matrix, "fp32"), cache.attend(0, k[-9:])
    for a, b in zip(many, one, strict=True):
        np.testing.assert_array_equal(a, b)


def test_several_callers_at_once(threads):
    totals = [0] * 4

    def once():
        done = []
        in_parts(lambda first, last: done.append(last - first), 16, LARGE)
        return sum(done)

    def caller(i):
        totals[i] = sum(once() for _ in range(50))

    callers = [threading.Thread(target=caller, args=(i,)) for i in range(4)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert totals == [800] * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_starts_its_own_threads():
    program = (
        "import os, sys; from nearbank.kernels.threads import in_parts, set_threads; set_threads(2); done = []\n"
        "in_parts(lambda a, b: done.append(b - a), 8, 1 << 30)\n"
        "child = os.fork()\n"
        "if child == 0: in_parts(lambda a, b: done.append(b - a), 8, 1 << 30); os._exit(sum(done))\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=60).returncode == 16


def test_bad_counts_are_refused():
    with pytest.raises(NearbankError, match="1 or more"):
        set_threads(0)
    environment = {**os.environ, "NEARBANK_THREADS": "many"}
    run = subprocess.run(
        [sys.executable, "-c", "import nearbank.kernels.threads"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "NEARBANK_THREADS=many" in run.stderr

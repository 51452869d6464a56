"""Sketches and records: equal operation for operation, and equal to counts made another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.random_gpt import SHAPE, block_sizes, random_model

from nearbank.formats import format_named
from nearbank.models.generate import generate, steps
from nearbank.models.operations import attended
from nearbank.models.record import record
from nearbank.models.sampling import Sampling
from nearbank.models.shape import gpt_shape
from nearbank.models.sketch import describe, sketch
from nearbank.trace import fold_layers, open_trace

MODEL = random_model("numpy")
SAME = {"weights": "ternary", "head_inputs": "fp32"}


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=1),
    tokens=st.integers(1, 10),
    batch=st.integers(1, 3),
)
def test_a_sketch_equals_the_record(lengths: list[int], tokens: int, batch: int) -> None:
    prompts = [np.arange(lengths[0]) % SHAPE.vocabulary] * batch
    sketched = list(sketch(SHAPE, lengths[0], tokens, batch=batch, **SAME))  # type: ignore[arg-type]
    for step, result in zip(sketched, steps(MODEL, prompts, tokens, record=True), strict=True):
        rows = [(layer, operation) for layer, operation, _ in result.rows]
        assert (step.index, step.phase, step.blocks) == (result.index, result.phase, fold_layers(rows))


def test_a_recorded_file_equals_the_sketch_and_the_run(tmp_path: Path) -> None:
    generation = record(MODEL, "hello", 7, tmp_path / "run.parquet", Sampling(0.8, seed=9))
    assert generation.tokens == generate(MODEL, "hello", 7, Sampling(0.8, seed=9)).tokens
    trace = open_trace(tmp_path / "run.parquet")
    assert trace.complete
    assert list(trace.steps()) == list(sketch(SHAPE, 5, 7, **SAME))  # type: ignore[arg-type]
    header = trace.header
    assert (header.origin, header.weights, header.kv, header.seed) == ("recorded", "ternary", "bf16", 9)
    assert (header.prompt_tokens, header.new_tokens, header.model) == (5, 7, describe(SHAPE))


def test_times_are_measured_and_lie_within_the_passes(tmp_path: Path) -> None:
    generation = record(MODEL, "hello", 7, tmp_path / "run.parquet")
    table = open_trace(tmp_path / "run.parquet").table().to_pydict()
    for step, wall in enumerate(generation.step_ns):
        times = [t for t, s in zip(table["time_ns"], table["step"], strict=True) if s == step and t is not None]
        assert 0 < sum(times) <= wall
    assert open_trace(tmp_path / "run.parquet").measured_ns() == sum(t for t in table["time_ns"] if t is not None)
    unmeasured = {op for op, t in zip(table["op"], table["time_ns"], strict=True) if t is None}
    assert unmeasured == {"score", "softmax"}


def test_sums_equal_counts_made_from_the_weights(tmp_path: Path) -> None:
    prompt, new = 5, 7
    record(MODEL, "hello", new, tmp_path / "run.parquet")
    trace = open_trace(tmp_path / "run.parquet")
    passes = prompt + new - 1  # tokens that went through the blocks
    in_blocks = SHAPE.layers * sum(n * k for n, k in block_sizes(SHAPE).values())
    pairs = sum(range(1, passes + 1))  # token i attends i positions
    expected = passes * in_blocks + new * SHAPE.vocabulary * SHAPE.width + 2 * SHAPE.layers * pairs * SHAPE.width
    assert sum(step.macs for step in trace.steps()) == expected

    stored = sum(linear.matrix.format.bytes_for(*linear.matrix.shape) for linear in linears())
    described = sum(
        format_named("bf16" if matrix.name == "lm_head" else "ternary").bytes_for(matrix.n, matrix.k)
        * (SHAPE.layers if matrix.per_layer else 1)
        for matrix in trace.header.model.matrices
    )
    assert described == stored
    assert trace.header.model.weights() == in_blocks + SHAPE.vocabulary * SHAPE.width


def linears():  # type: ignore[no-untyped-def]
    network = MODEL.network
    return [getattr(b, part) for b in network.blocks for part in ("qkv", "proj", "fc1", "fc2")] + [network.head]


@given(m=st.integers(1, 30), before=st.integers(0, 30), window=st.none() | st.integers(1, 40))
def test_attended_equals_counting(m: int, before: int, window: int | None) -> None:
    end = before + m
    seen = [min(position, window or position) for position in range(before + 1, end + 1)]
    assert attended(m, end, window) == (seen[-1], sum(seen))
    if window is None:
        assert attended(m, end)[1] == sum(range(end - m + 1, end + 1))


def test_an_interrupted_recording_stays_readable(tmp_path: Path) -> None:
    def stop(done: int, wanted: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(MODEL, "hello", 7, tmp_path / "run.parquet", progress=stop)
    trace = open_trace(tmp_path / "run.parquet")
    assert not trace.complete
    assert [step.index for step in trace.steps()] == [0, 1, 2]


def test_a_bad_request_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        record(MODEL, "", 7, tmp_path / "run.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "the prompt is empty"),
        ((1, 0), "tokens to generate: 0"),
        ((2000, 100), "context of 2048"),
    ],
)
def test_impossible_sketches_are_refused(arguments: tuple[int, int], message: str) -> None:
    shape = gpt_shape("gpt3-xl", 24, 2048, 16, 50257, 2048)
    with pytest.raises(ValueError, match=message):
        sketch(shape, *arguments)
    with pytest.raises(ValueError, match="unknown format 'int5'"):
        sketch(shape, 1, 1, weights="int5")
    with pytest.raises(ValueError, match="batch is 0"):
        sketch(shape, 1, 1, batch=0)


def test_layers_with_other_windows_are_blocks_of_their_own() -> None:
    from dataclasses import replace

    shape = replace(SHAPE, layers=4, windows=(8, None))
    short, long = (next(sketch(shape, p, 1)) for p in (8, 12))
    assert [block.count for block in short.blocks] == [1, 4, 1]
    assert [block.count for block in long.blocks] == [1, 1, 1, 1, 1, 1]
    contexts = [o.context for _, o in long.rows() if o.op == "score"]
    assert contexts == [8, 12, 8, 12]

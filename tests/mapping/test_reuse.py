"""Several vectors multiplied with each open row: the same bits as one product each, with the rows opened once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.mapping.shapes import gpt

from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.mapping import MappingOptions, Plan, plan
from nearbank.mapping.account import command_counts
from nearbank.mapping.choices import Choices
from nearbank.mapping.gemm import gemm_program, run_gemm
from nearbank.mapping.gemv import run_gemv
from nearbank.mapping.matrix_placement import MatrixPlacement
from nearbank.mapping.placement import place
from nearbank.mapping.target import Target, target_of
from nearbank.models.sketch import describe, sketch
from nearbank.models.zoo import find_shape
from nearbank.replay import replay
from nearbank.sim.engine import simulate
from nearbank.sim.machine import load_machine
from nearbank.sim.program import Command, Loop, Node, Program, expand
from nearbank.trace import Matrix, Step
from nearbank.workload import sketch_workload

LOWBIT = load_machine("pim-gpt-lowbit")
FORMATS = ["bf16", "int8", "int8-tensor", "ternary", "binary-tensor", "int4", "int2-g256"]


def target_for(reuse: int, machine: str = "pim-gpt-lowbit", **changed: int) -> Target:
    return replace(target_of(load_machine(machine), Choices(reuse=reuse)), **changed)


def placed(n: int, k: int, weights: str, target: Target, inputs: str | None = None) -> MatrixPlacement:
    matrices = (Matrix(name="w", n=n, k=k, per_layer=True),)
    model = gpt("one matrix", 1, 64, 1).model_copy(update={"matrices": matrices})
    return place(model, target, weights=weights, head="bf16", kv="bf16", inputs=inputs, max_context=16).matrix("w")


@given(
    fmt=st.sampled_from(FORMATS),
    vectors=st.integers(1, 5),
    accumulators=st.sampled_from([1, 2, 3, 4, 8]),
    early=st.booleans(),
    n=st.integers(1, 500),
    k=st.integers(1, 3000),
    seed=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_several_vectors_give_the_bits_of_one_after_another(
    fmt: str, vectors: int, accumulators: int, early: bool, n: int, k: int, seed: int
) -> None:
    target = target_for(5, accumulators=accumulators)
    target = replace(target, choices=replace(target.choices, early_rows=early))
    rng = np.random.default_rng(seed)
    form = format_named(fmt)
    weights = form.quantise(rng.normal(size=(n, k)).astype(np.float32))
    each = rng.normal(size=(vectors, k)) if form.is_float else rng.integers(-127, 128, size=(vectors, k))
    matrix = placed(n, k, fmt, target)
    together, counts = run_gemm(matrix, target, weights, each)
    alone = np.stack([run_gemv(matrix, target, weights, vector) for vector in each])
    assert (together == alone).all()
    _, once = run_gemm(matrix, target, weights, each[:1])
    assert counts["ACT16"] == once["ACT16"]
    assert counts["MACAB"] == vectors * once["MACAB"]
    assert counts["RDMAC"] == vectors * once["RDMAC"]


def test_narrow_vectors_share_the_buffer_in_whole_bursts() -> None:
    """int8 weights take 8 bytes of ternary inputs per column: each vector ends with the burst."""
    lanes = (*target_for(3).lanes, ("int8/ternary", target_for(3).lanes[2][1]))
    target = target_for(3, lanes=lanes)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    weights = format_named("int8").quantise(rng.normal(size=(40, 160)).astype(np.float32))
    vectors = rng.integers(-1, 2, size=(3, 160))
    matrix = placed(40, 160, "int8", target, "ternary")
    together, _ = run_gemm(matrix, target, weights, vectors)
    assert (together == np.stack([run_gemv(matrix, target, weights, v) for v in vectors])).all()


def test_more_vectors_than_placed_for_are_refused() -> None:
    target = target_for(2)
    with pytest.raises(NearbankError, match="3 vectors at once, but it is placed for 1 to 2"):
        gemm_program(placed(4, 64, "bf16", target), target, 3)


def test_a_buffer_that_cannot_hold_them_says_how_many_it_can() -> None:
    with pytest.raises(NearbankError, match=r"too few for 16 of each of 65 vectors; use reuse=64 or less"):
        placed(4, 64, "bf16", target_for(65, "pim-gpt"))


@pytest.mark.parametrize("fmt", ["bf16", "int8-tensor", "ternary-tensor"])
def test_eight_vectors_take_less_time_than_eight_products(fmt: str) -> None:
    """Rows are opened once instead of eight times; what is left are the MAC commands."""
    target = target_for(8)
    matrix = placed(2048, 1024, fmt, target)
    one, eight = (simulate(LOWBIT, [gemm_program(matrix, target, v)]) for v in (1, 8))
    macs = eight.command_counts()["MACAB"] // target.channels
    assert macs <= eight.cycles < 8 * one.cycles


SHAPE = find_shape("gpt2-small")
MODEL = describe(SHAPE)


def _plan(reuse: int, batch: int = 1, kv: str = "bf16", weights: str = "ternary") -> Plan:
    options = MappingOptions(weights=weights, kv=kv, max_context=64, batch=batch, choices=Choices(reuse=reuse))
    return plan(MODEL, LOWBIT, options)


def _step(prompt: int, batch: int = 1, decode: bool = False) -> Step:
    return list(sketch(SHAPE, prompt, 2, weights="ternary", batch=batch))[int(decode)]


@pytest.mark.parametrize(
    ("kv", "tokens"), [("bf16", 23), ("int4", 23), ("int4-past", 23), ("int4-wkv", 23), ("int4-kivi", 35)]
)
def test_tokens_of_a_prompt_go_through_the_model_together(kv: str, tokens: int) -> None:
    """Up to 4 at once: every vector is multiplied, K and V of each written and attended as before, in fewer rows and
    less time. KIVI's first group leaves the window with the 33rd token, amid four."""
    step = _step(tokens)
    together, alone = (_plan(reuse, kv=kv, weights="ternary-tensor").lower(step) for reuse in (4, 1))
    several, one = command_counts(together), command_counts(alone)
    assert several["MACAB", "ternary"] == one["MACAB", "ternary"]
    cached = [key for key in one if key[0] in ("WR", "RD") or key == ("MACAB", "int4/bf16")]
    assert {key: several[key] for key in cached} == {key: one[key] for key in cached}
    assert several["ACT16", ""] < one["ACT16", ""]
    assert simulate(LOWBIT, [together]).time_ps < simulate(LOWBIT, [alone]).time_ps


def _only(name: str, body: tuple[Node, ...]) -> tuple[Node, ...]:
    """The loops with one kind of command alone."""
    loops = (replace(node, body=_only(name, node.body)) for node in body if isinstance(node, Loop))
    return (*loops, *(node for node in body if isinstance(node, Command) and node.name == name))


@pytest.mark.parametrize("reuse", [1, 4])
def test_sequences_of_a_batch_write_to_caches_of_their_own(reuse: int) -> None:
    """Six caches, one after another: the writes to each are those of the first, so many rows further."""
    placed = _plan(reuse, batch=6)
    placement, step = placed.placement, _step(5, 6, decode=True)
    writes = tuple(replace(s, body=_only("WR", s.body)) for s in placed.lower(step).streams)
    rows = Counter(s.row for s in expand(Program("writes", writes)))
    first = (placement.cache.keys, placement.cache.values)
    alone = {row: n for row, n in rows.items() if any(row % r.stride - r.first_row in range(r.rows) for r in first)}
    assert rows == {row + i * placement.sequence_rows: n for row, n in alone.items() for i in range(6)}


def test_a_batch_of_one_at_a_time_takes_the_time_of_its_sequences() -> None:
    one, six = (simulate(LOWBIT, [_plan(1, batch).lower(_step(5, batch, decode=True))]).time_ps for batch in (1, 6))
    assert six == pytest.approx(6 * one, rel=0.01)


def test_a_batch_of_sequences_that_differ_is_refused() -> None:
    step = _step(5, 2, decode=True)
    longer = tuple(
        replace(b, operations=tuple(replace(o, context=9) if o.sequence and o.context else o for o in b.operations))
        for b in step.blocks
    )
    with pytest.raises(NearbankError, match="sequences that differ"):
        _plan(2, 2).lower(replace(step, blocks=longer))
    with pytest.raises(NearbankError, match="3 sequences, but there are caches for 2; plan the mapping with batch=3"):
        _plan(2, 2).lower(_step(5, 3, decode=True))


@pytest.mark.parametrize("machine", ["pim-gpt", "pim-gpt-lowbit"])
def test_what_is_chosen_is_never_slower_than_one_by_one(machine: str) -> None:
    load = sketch_workload("gpt2-small", 12, 3, batch=3)
    chosen, one = (replay(load, machine, reuse=reuse).row for reuse in (None, 1))
    assert chosen.time_ns <= one.time_ns
    assert chosen.tokens == one.tokens == 9
    assert chosen.details["reuse"] > 1

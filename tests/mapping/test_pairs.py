"""Units by pair of weights and activations: which one a product takes, and what it computes with packed vectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.mapping.shapes import gpt

from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.mapping import MappingOptions, plan
from nearbank.mapping.gemv import run_gemv
from nearbank.mapping.matrix_placement import MatrixPlacement
from nearbank.mapping.placement import place
from nearbank.mapping.target import MacLanes, Target, target_of
from nearbank.sim.constants import Constant
from nearbank.sim.machine import load_machine
from nearbank.trace import Matrix

LOWBIT = load_machine("pim-gpt-lowbit")
TARGET = target_of(LOWBIT)
LEVELS = {"int8": (-127, 127), "ternary": (-1, 1)}


def placed(n: int, k: int, weights: str, inputs: str, target: Target = TARGET) -> MatrixPlacement:
    model = gpt("one matrix", 1, 64, 1).model_copy(update={"matrices": (Matrix(name="w", n=n, k=k, per_layer=True),)})
    return place(model, target, weights=weights, head="bf16", kv="bf16", inputs=inputs, max_context=16).matrix("w")


def levels_of(inputs: str, k: int, rng: np.random.Generator) -> np.ndarray:
    if inputs == "binary":
        return np.asarray(2 * rng.integers(0, 2, size=k) - 1)
    low, high = LEVELS[inputs]
    return rng.integers(low, high + 1, size=k)


def is_exact(n: int, k: int, weights: str, inputs: str, target: Target, seed: int) -> bool:
    rng = np.random.default_rng(seed)
    form = format_named(weights)
    codes = form.quantise(rng.normal(size=(n, k)).astype(np.float32))
    vector = levels_of(inputs, k, rng)
    got = run_gemv(placed(n, k, weights, inputs, target), target, codes, vector)
    assert codes.scales is not None
    return bool((got == (form.levels(codes) @ vector).astype(np.float32) * codes.scales[:, 0]).all())


@given(
    pair=st.sampled_from([("int8", "int8"), ("ternary", "ternary"), ("binary", "ternary"), ("binary", "binary")]),
    serial=st.booleans(),
    n=st.integers(1, 400),
    k=st.integers(1, 9000),
    seed=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_packed_vectors_give_exact_products(pair: tuple[str, str], serial: bool, n: int, k: int, seed: int) -> None:
    """Vectors of 8, 2 and 1 bits, padded in the last column and chunk; 2 bits also one after the other."""
    weights, inputs = pair
    name = f"{weights}/{inputs}"
    unit = ((name, MacLanes(256, 2, integer=True)), ("bf16", MacLanes(16))) if serial else TARGET.lanes
    assert is_exact(n, 2 * k, weights, inputs, replace(TARGET, lanes=unit), seed)


def test_narrow_vectors_take_less_of_the_buffer_and_of_the_pins() -> None:
    wide, narrow = placed(128, 65536, "ternary", "int8"), placed(128, 65536, "ternary", "ternary")
    assert wide.chunks[0].width == 16 * 1024
    assert narrow.chunks[0].width == 4 * wide.chunks[0].width


@pytest.mark.parametrize("kv", ["int8", "int4", "int2"])
def test_a_machine_of_pairs_takes_low_bit_weights_and_a_low_bit_cache(kv: str) -> None:
    model = gpt("m", 1, 256, 4)
    found = plan(model, LOWBIT, MappingOptions(weights="ternary", head="int8-tensor", kv=kv, max_context=64)).placement
    assert found.cache.use.mac_format == f"{kv}/bf16"
    assert {m.use.mac_format for m in found.matrices} == {"ternary", "int8"}


def test_a_pair_goes_before_a_unit_of_the_weights_alone() -> None:
    assert TARGET.use(format_named("ternary"), "ternary").mac_format == "ternary/ternary"
    assert TARGET.use(format_named("ternary"), "int8").mac_format == "ternary"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (MappingOptions(kv="ternary"), "unknown KV cache 'ternary'; known: fp32"),
        (MappingOptions(weights="fp32"), r"no format 'fp32'; they have: bf16, .*binary/binary"),
        (MappingOptions(weights="int3", inputs="int8"), r"no format 'int3'; they have: bf16, .*binary/binary"),
        (MappingOptions(weights="ternary", inputs="int2"), "'int2' cannot hold activations; expected one of: bf16"),
    ],
)
def test_what_a_machine_has_no_unit_for_is_said(options: MappingOptions, expected: str) -> None:
    with pytest.raises(NearbankError, match=expected):
        plan(gpt("m", 1, 256, 4), LOWBIT, options)
    with pytest.raises(NearbankError, match="no unit for ternary with bf16; they have, with bf16: bf16, fp16, int8"):
        TARGET.use(format_named("ternary"), "bf16")


def test_a_unit_of_two_bits_takes_no_bytes() -> None:
    narrow = replace(TARGET, lanes=(("ternary", MacLanes(128, integer=True, bits=2)), ("bf16", MacLanes(16))))
    assert narrow.use(format_named("ternary"), "ternary").mac_format == "ternary"
    with pytest.raises(NearbankError, match="no unit for ternary with int8; they have, with int8: bf16"):
        narrow.use(format_named("ternary"), "int8")


def test_odd_binary_products_are_refused() -> None:
    with pytest.raises(NearbankError, match="3 binary inputs of binary weights are odd"):
        placed(4, 3, "binary", "binary")


def test_a_plan_within_a_budget_has_the_units_that_it_uses() -> None:
    power = LOWBIT.power.model_copy(update={"budget_per_channel": Constant(value="1 W", source="test")})
    machine = LOWBIT.model_copy(update={"power": power})
    model = gpt("m", 1, 128, 2, vocabulary=64, context=64)
    found = plan(model, machine, MappingOptions(weights="ternary", kv="int4-kivi", max_context=64)).machine
    assert found.mac_unit
    assert set(found.mac_unit.formats) == {"ternary", "int4/bf16", "bf16"}
    assert plan(model, LOWBIT).machine is LOWBIT

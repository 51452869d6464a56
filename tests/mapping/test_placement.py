"""Tensors get rows of their own, everything fits or the error says what does not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.mapping.shapes import gpt, paper_models

from nearbank.errors import NearbankError
from nearbank.mapping import MappingOptions, describe, plan
from nearbank.mapping.placement import Placement
from nearbank.sim.machine import load_machine
from nearbank.trace import ModelDescription

PIM = load_machine("pim-gpt")
FORMATS = ["bf16", "int8", "int4", "int2", "ternary", "ternary-tensor", "binary"]


def rows_taken(placement: Placement) -> list[int]:
    return [row for r in placement.regions for layer in range(r.copies) for row in r.rows_of(layer)]


@given(
    width=st.sampled_from([64, 96, 160, 768, 1600]),
    heads=st.sampled_from([2, 4]),
    layers=st.integers(1, 3),
    weights=st.sampled_from(FORMATS),
    kv=st.sampled_from(["bf16", "int8", "int4", "int2"]),
    context=st.sampled_from([1, 17, 100, 1024]),
)
@settings(max_examples=40, deadline=None)
def test_no_row_is_given_twice(width: int, heads: int, layers: int, weights: str, kv: str, context: int) -> None:
    model = gpt("any", layers, width, heads, vocabulary=300, context=context)
    placement = plan(model, PIM, MappingOptions(weights=weights, kv=kv)).placement
    taken = rows_taken(placement)
    assert len(taken) == len(set(taken)) == placement.rows
    assert min(taken) == 0
    assert max(taken) < PIM.organization.rows


@pytest.mark.parametrize("weights", FORMATS)
def test_a_matrix_has_room_for_its_bytes(weights: str) -> None:
    placed = plan(gpt("m", 1, 768, 12), PIM, MappingOptions(weights=weights))
    for matrix in placed.placement.matrices:
        room = matrix.region.rows * placed.target.row_in_all_banks
        assert matrix.region.data_bytes <= room
        assert sum(c.width * c.count for c in matrix.chunks) == matrix.k
        for chunks in matrix.chunks:
            assert chunks.packing.row_columns + chunks.scale_columns <= PIM.organization.columns
            assert chunks.width * matrix.input_bits // 8 <= placed.target.buffer_bytes


def test_space_for_k_and_v_grows_with_the_context() -> None:
    short, long = (plan(gpt("m", 2, 768, 12), PIM, MappingOptions(max_context=n)).placement for n in (128, 1024))
    assert long.cache.keys.rows > short.cache.keys.rows
    assert long.rows - short.rows == 2 * sum(
        getattr(long.cache, part).rows - getattr(short.cache, part).rows for part in ("keys", "values")
    )


@pytest.mark.parametrize("model", paper_models(), ids=lambda m: m.name)
def test_the_published_models_fit_the_published_machine(model: ModelDescription) -> None:
    placed = plan(model, PIM)
    stored = sum(r.data_bytes * r.copies for r in placed.placement.regions)
    room = placed.placement.rows * placed.target.row_in_all_banks
    assert 0.88 < stored / room <= 1
    assert any(model.name in line for line in describe(placed))


def test_what_does_not_fit_is_named_with_the_missing_bytes() -> None:
    with pytest.raises(NearbankError, match=r"needs (\d+) bytes more .* first tensor without room is") as error:
        plan(gpt("big", 96, 4096, 32), PIM)
    missing = int(re.findall(r"needs (\d+) bytes", str(error.value))[0])
    weights = (96 * 12 * 4096**2 + 50257 * 4096) * 2
    assert missing > weights - PIM.organization.total_bytes
    assert missing % (PIM.organization.row_bytes * 128) == 0
    assert re.search(r"(attn|mlp)\.\w+ of layer \d+|[KV] of layer \d+", str(error.value))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (MappingOptions(weights="fp32"), "no format 'fp32'; they have: bf16"),
        (MappingOptions(kv="fp32"), "no format 'fp32'; they have: bf16"),
        (MappingOptions(weights="float4"), "unknown format 'float4'"),
        (MappingOptions(weights="ternary", inputs="int4"), "cannot hold activations"),
        (MappingOptions(max_context=0), "max_context is 0"),
        (MappingOptions(max_context=60000), "bytes of SRAM are \\d+ too few"),
    ],
)
def test_wrong_options_are_one_clear_line(options: MappingOptions, expected: str) -> None:
    with pytest.raises(NearbankError, match=expected) as error:
        plan(gpt("m", 1, 768, 6), PIM, options)
    assert "\n" not in str(error.value)


def test_a_machine_without_an_asic_is_refused() -> None:
    with pytest.raises(NearbankError, match="lacks an ASIC"):
        plan(gpt("m", 1, 768, 12), load_machine("gddr6-aim"))

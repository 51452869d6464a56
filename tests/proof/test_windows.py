"""Caches that keep tokens exact for a while, through the banks: the bits of the same arithmetic without a memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.proof.test_prove import small

from nearbank.cache_formats import KIVI_GROUP
from nearbank.formats import from_bf16, to_bf16
from nearbank.mapping import MappingOptions, plan
from nearbank.mapping.asic_arithmetic import ARITHMETICS
from nearbank.mapping.decoder import MappedDecoder
from nearbank.models import Model, load_model
from nearbank.models.kv import ChannelFit
from nearbank.models.plain_cache import PlainCache
from nearbank.models.sketch import sketch
from nearbank.proof import mapped_weights, prove, rounded_model
from nearbank.proof.folding import context_scales, fold_channels
from nearbank.proof.grid import Grid, prove_grid
from nearbank.proof.twin import KernelSums
from nearbank.proof.twin_cache import ExactTwin
from nearbank.sim.machine import load_machine

RNG = np.random.default_rng(5)
LONG = RNG.integers(0, 50, KIVI_GROUP + 3).tolist()  # a group is full and has left the window


def with_context(model: Model, context: int) -> Model:
    """The same with room for more positions."""
    shape = replace(model.shape, context=context)
    wpe = RNG.normal(0, 0.1, (context, shape.width)).astype(np.float32)
    return replace(model, network=replace(model.network, shape=shape, wpe=wpe))  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("machine", "weights", "kv", "asic"),
    [
        ("pim-gpt-ternary", "bf16", "int4-past", "exact"),
        ("pim-gpt", "ternary", "int8-past", "pim-gpt"),
        ("pim-gpt-ternary", "int8", "int4-kivi", "pim-gpt"),
        ("pim-gpt", "ternary", "int8-kivi", "exact"),
        ("pim-gpt-ternary", "binary", "int2-kivi", "exact"),
    ],
)
def test_logits_have_the_bits_of_the_same_arithmetic(machine: str, weights: str, kv: str, asic: str) -> None:
    model = with_context(small(weights, kv), 64)
    proof = prove(model, machine, LONG if "kivi" in kv else LONG[:17], 2, ARITHMETICS[asic])
    assert proof.logits_bit_equal
    if (machine, asic) == ("pim-gpt-ternary", "exact"):
        assert proof.tokens_equal
        assert proof.against_kernels.max_abs < 1e-5


def test_a_flipped_bit_in_the_window_is_seen() -> None:
    model = with_context(small("ternary", "int4-kivi"), 64)
    placed = plan(model.description(), load_machine("pim-gpt-ternary"), MappingOptions("ternary", model.kv, 64))
    steps = list(sketch(model.shape, 3, 2, weights="ternary", kv=model.kv))
    good, bad = (MappedDecoder(placed, mapped_weights(model)) for _ in range(2))
    for decoder in (good, bad):
        decoder.run(steps[0], LONG[:3])
    window = placed.placement.cache.window
    assert window
    bad.memory.row(window.keys.first_row)[0, 0, 1] ^= 0x40  # of an exponent
    assert np.abs(good.run(steps[1], [1]) - bad.run(steps[1], [1])).max() > 1e-4


@pytest.mark.parametrize("kv", ["int4-past", "int4-kivi", "int8-kivi"])
def test_the_twin_attends_what_the_models_cache_attends(kv: str) -> None:
    """Where nothing is lost to bf16, the twin is the plain NumPy cache up to the order of sums."""
    model = with_context(small("bf16", kv), 64)
    heads, size, n = model.shape.kv_heads, model.shape.head_dim, KIVI_GROUP + 9
    k, v, q = (from_bf16(to_bf16(RNG.normal(size=(n, heads, size)).astype(np.float32))) for _ in range(3))
    twin, plain = ExactTwin(model, n, KernelSums()), PlainCache(1, heads, size, n, twin_scheme(model))
    for cache in (twin, plain):
        cache.append(0, k, v)
    assert np.abs(twin.attend(0, q, 0.25) - plain.attend(0, q, 0.25)).max() < 0.02  # bf16 probabilities


def twin_scheme(model: Model):  # type: ignore[no-untyped-def]
    return ExactTwin(model, 1, KernelSums()).scheme


@pytest.mark.parametrize(("weights", "kv"), [("bf16", "int8-wkv"), ("ternary-tensor", "int8-2d"), ("int8", "int8-wkv")])
def test_static_channels_are_folded_into_the_neighbours(weights: str, kv: str) -> None:
    model = small(weights, kv)
    layers, heads, size = model.shape.layers, model.shape.kv_heads, model.shape.head_dim
    shift, scale = RNG.normal(0, 0.3, (layers, heads, size)), 2.0 ** RNG.integers(-2, 3, (layers, heads, size))
    fit = ChannelFit(*(part.astype(np.float32) for part in (shift, scale, shift, scale)))
    fitted = replace(model, kv_fit=fit)
    folded = fold_channels(fitted)
    assert len(context_scales(folded)) == layers
    proof = prove(fitted, "pim-gpt-ternary", LONG[:9], 2)
    assert proof.logits_bit_equal
    assert proof.against_plain.max_abs < 0.1


def test_the_bundled_model_fits_its_channels_on_its_own_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearbank.models.kv_fit.EXPONENTS", (0.5,))
    monkeypatch.setattr("nearbank.proof.grid.DRAWN_TOKENS", 8)
    grid = Grid("shakespeare-ternary", ("ternary",), ("int4-wkv",), "pim-gpt-ternary")
    (row,) = prove_grid(grid, "I ", 2, "exact", 0, lambda *_: None)
    assert row.proof.logits_bit_equal
    assert row.proof.kv == "int4-wkv"


def test_folding_without_a_fit_changes_nothing() -> None:
    model = rounded_model(load_model(backend="numpy"), None)
    assert fold_channels(model) is model
    assert context_scales(model) == []

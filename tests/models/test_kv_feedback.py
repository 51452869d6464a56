"""Errors of rounding fed back: hand-made cases, the best codes by trying all, and what an error really costs."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from tests.models.random_gpt import random_model

from nearbank.cli.app import run
from nearbank.formats import format_named
from nearbank.kernels import WindowedKVCache
from nearbank.kernels.reference.feedback import rounded_with_feedback
from nearbank.models.generate import generate
from nearbank.models.kv import ChannelFit, fit_for, kv_scheme, rounded
from nearbank.models.kv_fit import load_fit, save_fit
from nearbank.models.model import Model
from nearbank.models.plain_cache import PlainCache
from nearbank.proof.folding import fold_channels
from nearbank.trace import open_trace

torch = pytest.importorskip("torch")

from nearbank.models.kv_metric import feedback_of, metrics, with_feedback  # noqa: E402
from nearbank.models.wkv_fit import Cached, blocks_of, embedded, logits_of  # noqa: E402

TEXT = "the quick brown fox jumps over the lazy dog, and then it rests a while. why not?\n" * 12
ONES = np.ones((1, 4), np.float32)


def coupled(strength: float, channels: int = 4) -> np.ndarray:
    """The cost [1, E, E] of errors that count by themselves a little and by their sum."""
    return (np.eye(channels) * (1 - strength) + strength)[None]


def test_a_channel_makes_good_the_error_before_it() -> None:
    """0 … 15 in steps of 1. To nearest 7.4, 7.4 is 7, 7, and the sum is 0.8 short; fed back it is 7, 8."""
    metric = np.eye(4)[None]
    metric[0, 2:, 2:] = [[1, 0.99], [0.99, 1]]
    found = rounded_with_feedback(np.array([[[0, 15, 7.4, 7.4]]], np.float32), feedback_of(metric, ONES), 15)
    np.testing.assert_array_equal(found, [[[0, 15, 7, 8]]])


def test_without_coupling_the_nearest_codes_are_taken() -> None:
    values = np.random.default_rng(0).normal(0, 1, (2, 50, 8)).astype(np.float32)
    feedback = feedback_of(np.stack([np.eye(8)] * 2), np.ones((2, 8), np.float32))
    found = rounded_with_feedback(values, feedback, 15, trims=(0.0,))
    np.testing.assert_allclose(found, rounded(values, format_named("int4")), atol=1e-6)


def cost(errors: np.ndarray, metric: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("gne,gef,gnf->n", errors, metric, errors))


def test_fed_back_codes_lie_between_the_best_of_all_and_the_nearest() -> None:
    """Two bits and four channels: all 256 codes of the untrimmed range can be tried."""
    values = np.random.default_rng(1).normal(0, 1, (1, 60, 4)).astype(np.float32)
    metric, fmt = coupled(0.9), format_named("int2")
    found = cost(rounded_with_feedback(values, feedback_of(metric, ONES), 3, (0.0,)) - values, metric)
    nearest = cost(rounded(values, fmt) - values, metric)
    low, high = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
    every = [low + (high - low) / 3 * np.array(codes, np.float32) for codes in product(range(4), repeat=4)]
    best = np.min([cost(one - values, metric) for one in every], axis=0)
    assert (best <= found + 0.05).all()  # the cache's scales are bf16, these are not
    assert best.mean() < found.mean() < 0.8 * nearest.mean()


def test_trimmed_ranges_never_cost_more() -> None:
    values = np.random.default_rng(2).normal(0, 1, (1, 60, 16)).astype(np.float32)
    feedback = feedback_of(coupled(0.7, 16), np.ones((1, 16), np.float32))
    damped = np.linalg.inv(feedback[0].T.astype(np.float64) @ feedback[0])[None]
    found = []
    for trims in ((0.0, 0.06, 0.12), (0.0,)):
        found.append(cost(rounded_with_feedback(values, feedback, 15, trims) - values, damped))
    assert (found[0] <= found[1] * 1.0001 + 1e-9).all()
    assert found[0].mean() < found[1].mean()


def test_a_scale_changes_units_and_not_what_is_rounded() -> None:
    """Halved values with four times the cost are rounded to the half."""
    values = np.random.default_rng(3).normal(0, 1, (1, 20, 4)).astype(np.float32)
    whole = rounded_with_feedback(values, feedback_of(coupled(0.8), ONES), 15)
    half = rounded_with_feedback(values / 2, feedback_of(coupled(0.8), 2 * ONES), 15)
    np.testing.assert_array_equal(half, whole / 2)


def fed_fit() -> ChannelFit:
    random = np.random.default_rng(4)
    shift, scale = random.normal(0, 0.3, (1, 2, 4)).astype(np.float32), np.ones((1, 2, 4), np.float32)
    feedback = feedback_of(np.repeat(coupled(0.8), 2, axis=0), scale[0])[None]
    return ChannelFit(shift, scale, shift, scale, feedback, feedback)


def test_a_token_is_rounded_alike_alone_and_among_others() -> None:
    k, v = np.random.default_rng(5).normal(0, 1, (2, 30, 2, 4)).astype(np.float32)
    together, alone = (PlainCache(1, 2, 4, 30, kv_scheme("int4-wkv"), fit=fed_fit()) for _ in range(2))
    together.append(0, k, v)
    for t in range(30):
        alone.append(0, k[t : t + 1], v[t : t + 1])
    for seen, also in zip(together._seen(0, 30), alone._seen(0, 30), strict=True):
        np.testing.assert_array_equal(seen, also)


class Noise:
    """Adds noise to what the cache holds."""

    def __init__(self, size: float, seed: int) -> None:
        self.size, self.draw = size, torch.Generator().manual_seed(seed)

    def rounded(self, x: torch.Tensor, top: int) -> torch.Tensor:
        return x + self.size * torch.randn(x.shape, generator=self.draw)


@pytest.mark.parametrize("kind", [0, 1], ids=["keys", "values"])
def test_the_metric_foretells_what_noise_costs(kind: int) -> None:
    """Independent errors of variance s² cost s² / 2 · trace of the metric, in nats per token."""
    model, size = replace(random_model("numpy", "fp32", "fp32"), kv="int4-wkv"), 0.02
    metric = metrics(model, TEXT, 16, 0)[kind, 1]
    blocks, x = blocks_of(model), embedded(model, TEXT, 16)
    scheme, noise, none = kv_scheme("int4-wkv"), Noise(size, 1), Noise(0, 1)
    cached = Cached(noise, none, scheme) if kind == 0 else Cached(none, noise, scheme)
    with torch.no_grad():
        middle = blocks[0](x)
        exact, noisy = (logits_of(model, blocks[2](blocks[1](middle, one))).log_softmax(-1) for one in (None, cached))
        found = float((exact.exp() * (exact - noisy)).sum(-1).mean())
    foretold = size**2 / 2 * float(np.trace(metric, axis1=1, axis2=2).sum())
    assert found == pytest.approx(foretold, rel=0.25)


def divergence(model: object, exact: object) -> float:
    """Nats per token between the two, over four passes of 60 tokens."""
    tokens = exact.encode(TEXT[:240]).reshape(4, 60)  # type: ignore[attr-defined]
    p, q = (np.stack([one.logits(part) for part in tokens]).astype(np.float64) for one in (exact, model))  # type: ignore[attr-defined]
    p, q = (one - np.log(np.exp(one).sum(axis=-1, keepdims=True)) for one in (p, q))
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def test_feedback_brings_a_model_nearer_and_survives_a_file(tmp_path: Path) -> None:
    model = random_model("numba", "fp32", "fp32")
    zero = np.zeros((3, 4, 8), np.float32)
    nearest = replace(model, kv="int8-wkv", kv_fit=ChannelFit(zero, zero + 1, zero, zero + 1))
    fed = with_feedback(nearest, TEXT, windows=16)
    assert divergence(fed, model) < 0.95 * divergence(nearest, model)  # 0.86: random weights leave little to couple
    assert fed.kv_fit is not None
    save_fit(tmp_path / "fit.safetensors", fed.kv_fit)
    again = replace(model, kv="int8-wkv", kv_fit=load_fit(tmp_path / "fit.safetensors", model))
    np.testing.assert_array_equal(again.logits([1, 2, 3]), fed.logits([1, 2, 3]))
    assert again.kv_bytes_per_token() == nearest.kv_bytes_per_token()


def fed_model(backend: str) -> Model:
    """The random model with a fit of its own sizes: 3 layers, 4 heads of 8."""
    random = np.random.default_rng(6)
    shift, scale = random.normal(0, 0.3, (3, 4, 8)), random.uniform(0.5, 2, (3, 4, 8))
    upper = np.stack([feedback_of(np.repeat(coupled(0.7, 8), 4, axis=0), one.astype(np.float32)) for one in scale])
    shift, scale = shift.astype(np.float32), scale.astype(np.float32)
    fit = ChannelFit(shift, scale, shift, scale, upper, upper)
    return replace(random_model(backend, "ternary", "int4-wkv"), kv_fit=fit)


def test_backends_make_the_same_tokens() -> None:
    models = [fed_model(backend) for backend in ("numpy", "numba")]
    assert {type(model.cache(4)) for model in models} == {WindowedKVCache}
    first, second = (generate(model, "the quick", 12).tokens for model in models)
    assert first == second


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_kernels_cache_attends_what_the_plain_one_does(backend: str) -> None:
    model, random = fed_model(backend), np.random.default_rng(7)
    q, k, v = random.normal(0, 1, (3, 20, 4, 8)).astype(np.float32)
    plain = PlainCache(3, 4, 8, 20, kv_scheme("int4-wkv"), fit=model.kv_fit)
    for layer in range(3):
        found = []
        for cache in (model.cache(20), plain):
            cache.append(layer, k, v)
            found.append(cache.attend(layer, q))
        np.testing.assert_allclose(*found, atol=1e-5)


def test_a_trace_says_so_and_no_asic_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundled model with a fit from a file, through the command line."""
    sizes, out, fit = (4, 4, 64), tmp_path / "run.parquet", tmp_path / "fit.safetensors"
    one, upper = np.ones(sizes, np.float32), np.broadcast_to(np.eye(64, dtype=np.float32), (*sizes, 64)).copy()
    save_fit(fit, ChannelFit(0 * one, one, 0 * one, one, upper, upper))

    arguments = ("trace", "--kv-fit", str(fit), "--tokens", "2", "--out", str(out))
    assert run([*arguments, "--kv", "int4-wkv"]) == 0
    assert open_trace(out).header.kv == "int4-wkv+feedback"
    refused = {
        "feeds errors of rounding back, which no ASIC here does": ["replay", str(out)],
        "KV cache 'int4' has nothing fitted": [*arguments, "--kv", "int4"],
        "gpt3-xl is a shape": [*arguments, "--model", "gpt3-xl"],
    }
    for words, given in refused.items():
        assert run(given) == 2
        assert words in capsys.readouterr().err


def test_what_cannot_be_fed_back_is_refused() -> None:
    model = random_model("numpy", "fp32", "int4-wkv")
    with pytest.raises(ValueError, match="KV cache 'int4-wkv' has no channel fit to feed errors back in"):
        with_feedback(model, TEXT)
    with pytest.raises(ValueError, match="feeds errors of rounding back, which the ASIC does not"):
        fold_channels(replace(model, kv_fit=fed_fit()))
    for name in ("int4+feedback", "int4-past+feedback", "bf16+feedback"):
        with pytest.raises(ValueError, match="unknown KV cache"):
            kv_scheme(name)
    nearest = replace(fed_fit(), key_feedback=None, value_feedback=None)
    with pytest.raises(ValueError, match="needs a fit that feeds errors back"):
        fit_for(kv_scheme("int4-wkv+feedback"), nearest)

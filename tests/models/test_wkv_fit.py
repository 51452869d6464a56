"""WKVQuant learned by gradient: its torch model is the runtime's, and what it learns rounds better than its start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.models.random_gpt import random_model

from nearbank.models.kv import ChannelFit, kv_scheme
from nearbank.models.kv_fit import load_fit, save_fit

torch = pytest.importorskip("torch")

from nearbank.models.wkv_fit import (  # noqa: E402
    Cached,
    Channels,
    Learning,
    _as_fit,
    _blocks,
    _embedded,
    _norm,
    learn_channels,
)

TEXT = "the quick brown fox jumps over the lazy dog, and then it rests a while. why not?\n" * 12
QUICK = Learning(windows=4, steps=20, batch=2, lr=0.05)


def random_channels(random: np.random.Generator) -> Channels:
    middle, moved, log_scale = (torch.from_numpy(random.normal(0, 0.3, (4, 1, 8)).astype(np.float32)) for _ in range(3))
    return Channels(middle, torch.ones(4, 1, 8), moved, log_scale)


@pytest.mark.parametrize("kv", ["int4-2d", "int2-wkv"])
@pytest.mark.parametrize("weights", ["fp32", "ternary"])
def test_the_torch_model_is_the_runtimes(kv: str, weights: str) -> None:
    """The same channels in both: logits agree, so what is learned in one is what the other runs."""
    random = np.random.default_rng(0)
    cached = [Cached(random_channels(random), random_channels(random), kv_scheme(kv)) for _ in range(3)]
    plain = random_model("numpy", weights, "fp32")
    x = _embedded(plain, TEXT, 1)
    for block, one in zip(_blocks(plain), cached, strict=True):
        x = block(x, one)
    head = plain.network.head(_norm(x[0], plain.network.ln_f).detach().numpy())  # type: ignore[attr-defined]
    model = replace(plain, kv=kv, kv_fit=_as_fit(cached))
    want = model.logits(model.encode(TEXT[:64]))
    assert np.median(np.abs(head - want)) < 1e-4  # a value between two codes may fall to either side


def distance(model: object, exact: object) -> float:
    tokens = exact.encode(TEXT[:60])  # type: ignore[attr-defined]
    return float(np.abs(model.logits(tokens) - exact.logits(tokens)).mean())  # type: ignore[attr-defined]


def test_learning_brings_logits_nearer_and_survives_a_file(tmp_path: Path) -> None:
    model = random_model("numpy", "fp32", "fp32")
    start = learn_channels(model, TEXT, "int2-wkv", replace(QUICK, steps=1, lr=0.0))
    steps: list[tuple[int, int]] = []
    learned = learn_channels(model, TEXT, "int2-wkv", QUICK, lambda done, total: steps.append((done, total)))
    assert steps[-1] == (60, 60)
    assert distance(learned, model) < distance(start, model) < distance(replace(model, kv="int2-past"), model)
    assert learned.kv_fit is not None
    save_fit(tmp_path / "fit.safetensors", learned.kv_fit)
    again = replace(model, kv="int2-wkv", kv_fit=load_fit(tmp_path / "fit.safetensors", model))
    np.testing.assert_array_equal(again.logits([1, 2, 3]), learned.logits([1, 2, 3]))


def test_equal_seeds_learn_equal_channels() -> None:
    model = random_model("numpy", "fp32", "fp32")
    fits = [learn_channels(model, TEXT, "int4-2d", replace(QUICK, steps=3)).kv_fit for _ in range(2)]
    assert isinstance(fits[0], ChannelFit)
    for name, values in vars(fits[0]).items():
        np.testing.assert_array_equal(values, getattr(fits[1], name))


def test_what_cannot_be_learned_is_refused() -> None:
    model = random_model("numpy", "fp32", "fp32")
    with pytest.raises(ValueError, match="KV cache 'int4' has nothing to fit"):
        learn_channels(model, TEXT, "int4")
    with pytest.raises(ValueError, match="the calibration text is 1 tokens"):
        learn_channels(model, "a")

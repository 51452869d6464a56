"""WKVQuant learned by gradient: its torch model is the runtime's, and what it learns rounds better than its start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.models.random_gpt import random_model

from nearbank.models.kv import ChannelFit
from nearbank.models.kv_fit import load_fit, save_fit

torch = pytest.importorskip("torch")

from nearbank.models.wkv_fit import Learning, learn_channels, torch_logits  # noqa: E402

TEXT = "the quick brown fox jumps over the lazy dog, and then it rests a while. why not?\n" * 12
QUICK = Learning(windows=4, steps=20, batch=2, lr=0.05)


def random_fit(fed: bool = False) -> ChannelFit:
    random = np.random.default_rng(0)
    shifts, scales = random.normal(0, 0.3, (2, 3, 4, 8)), np.exp(random.normal(0, 0.3, (2, 3, 4, 8)))
    fit = ChannelFit(*(part.astype(np.float32) for part in (shifts[0], scales[0], shifts[1], scales[1])))
    upper = np.triu(random.normal(0, 0.2, (3, 4, 8, 8)), 1).astype(np.float32) + np.eye(8, dtype=np.float32)
    return replace(fit, key_feedback=upper, value_feedback=upper) if fed else fit


@pytest.mark.parametrize("kv", ["fp32", "int4", "int2-past", "int4-2d", "int2-wkv", "int4-wkv+feedback"])
@pytest.mark.parametrize("weights", ["fp32", "ternary"])
def test_the_torch_model_is_the_runtimes(kv: str, weights: str) -> None:
    """Logits agree, so what is learned and measured in one is what the other runs."""
    name, _, fed = kv.partition("+")
    model = replace(random_model("numpy", weights, name), kv_fit=random_fit(bool(fed)))
    tokens = model.encode(TEXT[:40])
    with torch.no_grad():
        found = torch_logits(model, torch.from_numpy(tokens)[None])[0].numpy()
    assert np.median(np.abs(found - model.logits(tokens))) < 1e-4  # a value between two codes may fall to either side


def distance(model: object, exact: object) -> float:
    tokens = exact.encode(TEXT[:60])  # type: ignore[attr-defined]
    return float(np.abs(model.logits(tokens) - exact.logits(tokens)).mean())  # type: ignore[attr-defined]


def test_learning_brings_logits_nearer_and_survives_a_file(tmp_path: Path) -> None:
    model = random_model("numpy", "fp32", "fp32")
    start = learn_channels(model, TEXT, "int2-wkv", replace(QUICK, steps=1, lr=0.0))
    steps: list[tuple[int, int]] = []
    # Slow steps: fast ones end on either side of where they began, by how a processor rounds.
    slow = replace(QUICK, windows=8, steps=40, lr=0.01)
    learned = learn_channels(model, TEXT, "int2-wkv", slow, lambda done, total: steps.append((done, total)))
    assert steps[-1] == (120, 120)
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
    with pytest.raises(ValueError, match="KV cache 'int4-kivi' is not rounded in torch"):
        torch_logits(replace(model, kv="int4-kivi"), torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="KV cache 'int4-wkv' needs a fit"):
        torch_logits(replace(model, kv="int4-wkv"), torch.zeros(1, 4, dtype=torch.int64))

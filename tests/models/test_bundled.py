"""The model that ships with the package, held against torch: the same weights, activations rounded by torch."""

from __future__ import annotations

import numpy as np
import pytest

from nearbank.models.checkpoint import DEFAULT_NAME, load_checkpoint
from nearbank.models.generate import steps
from nearbank.models.load import checkpoint_model, load_model
from nearbank.models.model import Model
from nearbank.models.quality import measure
from nearbank.models.sampling import Sampling

torch = pytest.importorskip("torch")
POSITIONS = 1000


def fake_quantised_twin(model: Model):  # type: ignore[no-untyped-def]
    """The training network with the packed weights' values, its block inputs rounded to 8 bits per token."""
    from nearbank.models.training.network import BlockLinear, CharGpt
    from nearbank.models.training.straight_through import fake_int8

    shape, checkpoint = model.shape, load_checkpoint(DEFAULT_NAME)
    twin = CharGpt(shape.vocabulary, shape.layers, shape.width, shape.heads, shape.context).eval()
    network, values = model.network, {}
    for i, block in enumerate(network.blocks):  # type: ignore[attr-defined]
        for part in (block.qkv, block.proj, block.fc1, block.fc2):
            identity = np.eye(part.matrix.shape[1], dtype=np.float32)  # rows of Wᵀ, exact: codes 127, scale 1/127
            values[f"h.{i}.{part.name}.weight"] = part(identity).T.copy()
    values |= {f"{n}.weight": checkpoint.tensors[n].astype(np.float32) for n in ("wte", "wpe")}
    values |= {n: v for n, v in checkpoint.tensors.items() if "ln_" in n}
    twin.load_state_dict({n: torch.from_numpy(v) for n, v in values.items()})
    for module in twin.modules():
        if isinstance(module, BlockLinear):
            module.register_forward_pre_hook(lambda _, x: (fake_int8(x[0]),))
    return twin


@pytest.fixture(scope="module")
def texts() -> list[np.ndarray]:
    """Four texts that the model wrote, as long as its context."""
    model = load_model(DEFAULT_NAME)
    prompts = [model.encode(text) for text in ("ROMEO:", "JULIET:", "First Citizen:", "The ")]
    longest = max(len(prompt) for prompt in prompts)
    made = list(steps(model, prompts, model.shape.context - longest, Sampling(0.8, seed=2)))
    return [np.append(prompt, [one.tokens[s] for one in made]) for s, prompt in enumerate(prompts)]


def test_argmax_equals_torchs_over_a_thousand_positions(texts: list[np.ndarray]) -> None:
    model = checkpoint_model(load_checkpoint(DEFAULT_NAME), kv="fp32")
    twin = fake_quantised_twin(model)
    with torch.no_grad():
        expected = np.concatenate([twin(torch.from_numpy(text)[None])[0].numpy() for text in texts])
    got = np.concatenate([model.logits(text) for text in texts])
    assert len(got) >= POSITIONS * 0.9
    # A value between two int8 codes may round either way, and each such code moves logits a little: near ties may
    # differ, clear choices may not
    top = np.sort(expected, axis=1)
    clear = top[:, -1] - top[:, -2] > 0.05
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(got.argmax(axis=1)[clear], expected.argmax(axis=1)[clear])
    assert (got.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.98
    assert np.abs(got - expected).mean() < 0.02


def test_the_model_predicts_its_own_kind_of_text() -> None:
    """A sanity bound that random weights (4.17 nats per character) miss by far."""
    model = load_model(DEFAULT_NAME, kv="fp32")
    text = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"
    assert measure(model, text).nats_per_token < 2.5

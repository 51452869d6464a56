"""The model that ships with the package, held against torch."""

from __future__ import annotations

import numpy as np
import pytest

from nearbank.models.checkpoint import DEFAULT_NAME, load_checkpoint
from nearbank.models.generate import steps
from nearbank.models.load import checkpoint_model, load_model
from nearbank.models.quality import measure
from nearbank.models.sampling import Sampling

torch = pytest.importorskip("torch")
POSITIONS = 1000


@pytest.fixture(scope="module")
def texts() -> list[np.ndarray]:
    """Four texts that the model wrote, as long as its context."""
    model = load_model(DEFAULT_NAME)
    prompts = [model.encode(text) for text in ("ROMEO:", "JULIET:", "CITIZEN", "The ")]
    longest = max(len(prompt) for prompt in prompts)
    made = list(steps(model, prompts, model.shape.context - longest, Sampling(0.8, seed=2)))
    return [np.append(prompt, [one.tokens[s] for one in made]) for s, prompt in enumerate(prompts)]


def test_logits_equal_torchs_over_a_thousand_positions(texts: list[np.ndarray]) -> None:
    """The packed model through the kernels, and the fake-quantised one in torch with the deployed arithmetic."""
    from nearbank.models.training.deployed import deployed_logits

    checkpoint = load_checkpoint(DEFAULT_NAME)
    model = checkpoint_model(checkpoint, kv="fp32")
    expected = np.concatenate([deployed_logits(checkpoint, torch.from_numpy(text)).numpy() for text in texts])
    got = np.concatenate([model.logits(text) for text in texts])
    assert len(got) >= POSITIONS
    np.testing.assert_array_equal(got.argmax(axis=1), expected.argmax(axis=1))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_the_training_networks_arithmetic_is_near(texts: list[np.ndarray]) -> None:
    """Torch's own order of sums puts a value to the other side of a rounding edge now and then; clear choices stay."""
    from nearbank.models.training.export import unpack_network

    checkpoint = load_checkpoint(DEFAULT_NAME)
    network = unpack_network(checkpoint.config, checkpoint.tensors)
    with torch.no_grad():
        expected = network(torch.from_numpy(texts[0])[None])[0].numpy()
    got = checkpoint_model(checkpoint, kv="fp32").logits(texts[0])
    top = np.sort(expected, axis=1)
    clear = top[:, -1] - top[:, -2] > 0.05
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(got.argmax(axis=1)[clear], expected.argmax(axis=1)[clear])
    assert np.abs(got - expected).mean() < 0.02


def test_the_model_predicts_its_own_kind_of_text() -> None:
    """A sanity bound that random weights (4.17 nats per character) miss by far."""
    model = load_model(DEFAULT_NAME, kv="fp32")
    text = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"
    assert measure(model, text).nats_per_token < 2.5

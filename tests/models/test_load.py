"""Loading a checkpoint into a model, and the model that ships with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.models.random_gpt import SHAPE, VOCABULARY, random_model, random_tensors

from nearbank.formats import FORMATS
from nearbank.models.checkpoint import Checkpoint, Origin, bundled_names, save_checkpoint
from nearbank.models.config import ModelConfig
from nearbank.models.generate import generate
from nearbank.models.gpt import load_gpt
from nearbank.models.load import limit_threads, load_model
from nearbank.models.model import Model
from nearbank.models.tensors import Precision, Tensors

ORIGIN = Origin(1.6, 1.5, 10, 10, 4, 1, "0" * 64, "2026-01-01", "2.13.0", "cpu")


def random_checkpoint() -> Checkpoint:
    """Random weights as a checkpoint stores them: ternary codes, 16-bit embeddings."""
    config = ModelConfig(SHAPE, weights="ternary", activations="int8", variant="paper")
    tensors = random_tensors(SHAPE)
    stored = {name: value for name, value in tensors.items() if "ln_" in name}
    stored |= {name: tensors[f"{name}.weight"].astype(np.float16) for name in ("wte", "wpe")}
    for layer in range(SHAPE.layers):
        for matrix in config.block_matrices(layer):
            rounded = FORMATS["ternary"].quantise(tensors[f"{matrix.name}.weight"])
            stored[f"{matrix.name}.codes"] = FORMATS["ternary"].pack(rounded.codes)
            stored[f"{matrix.name}.scale"] = rounded.scales[:, 0]  # type: ignore[index]
    return Checkpoint(config, VOCABULARY, ORIGIN, stored)


def test_a_loaded_checkpoint_computes_what_its_values_say(tmp_path: Path) -> None:
    checkpoint = random_checkpoint()
    save_checkpoint(tmp_path / "model.safetensors", checkpoint)
    model = load_model(tmp_path / "model.safetensors", backend="numpy", kv="fp32")
    tables = {f"{name}.weight": checkpoint.tensors[name].astype(np.float32) for name in ("wte", "wpe")}
    tensors = Tensors(random_tensors(SHAPE) | tables, "numpy", Precision("ternary"))
    expected = Model(load_gpt(SHAPE, tensors), None, "ternary", "int8", "fp32", "numpy")
    tokens = model.encode("hello")
    np.testing.assert_array_equal(model.logits(tokens), expected.logits(tokens))
    assert (model.name, model.weights, model.kv, model.card["val_loss_nats"]) == (
        "random",
        "ternary",
        "fp32",
        1.6,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "no-such-model"}, "no-such-model: no such checkpoint file"),
        ({"kv": "ternary"}, "unknown KV cache 'ternary'; known: fp32"),
        ({"backend": "abacus"}, "unknown backend 'abacus'"),
        ({"threads": 0}, "threads is 0; expected 1 to"),
        ({"threads": 10**6}, "threads is 1000000"),
    ],
)
def test_bad_requests_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    save_checkpoint(tmp_path / "model.safetensors", random_checkpoint())
    with pytest.raises(ValueError, match=message):
        load_model(**{"source": tmp_path / "model.safetensors", **options})  # type: ignore[arg-type]


def test_text_without_a_tokenizer_is_refused() -> None:
    model = random_model("numpy")
    mute = Model(model.network, None, "ternary", "int8", "bf16", "numpy")
    with pytest.raises(ValueError, match="random has no tokenizer; give token numbers"):
        generate(mute, "hello", 1)
    assert generate(mute, [1, 2], 3).text == ""


@pytest.mark.parametrize("name", bundled_names())
def test_the_bundled_model_writes_alike_on_every_backend(name: str) -> None:
    runs = [generate(load_model(name, backend), "ROMEO:", 8) for backend in ("numpy", "numba")]
    assert runs[0].tokens == runs[1].tokens
    assert len(runs[0].text) == 8


def test_threads_are_those_of_the_kernels() -> None:
    from nearbank.kernels import set_threads, thread_count

    before = thread_count()
    limit_threads(1)
    assert (thread_count(), random_model("numba").threads, random_model("numpy").threads) == (1, 1, None)
    set_threads(before)
    limit_threads(None)
    assert random_model("numba").threads == before


def test_a_loaded_model_is_warm() -> None:
    """The first pass of a loaded model compiles nothing: it takes no longer than a few of the next one's."""
    model = load_model(backend="numba")
    first, second = (generate(model, "ROMEO:", 1).step_ns[0] for _ in range(2))
    assert first < 20 * second + 50_000_000

"""Shapes by name: the parameter counts that follow from them are the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nearbank.models.sketch import LAYERS, describe, sketch
from nearbank.models.zoo import SHAPES, find_shape

# Billions of parameters as the model cards or papers print them, and whether the head is the embedding
PUBLISHED = {
    "gpt2-small": (0.124, True),
    "gpt2-medium": (0.355, True),
    "gpt2-large": (0.774, True),
    "gpt2-xl": (1.558, True),
    "gpt3-175b": (174.6, True),
    "opt-125m": (0.125, True),
    "opt-350m": (0.331, True),
    "opt-1.3b": (1.316, True),
    "opt-6.7b": (6.658, True),
    "opt-66b": (65.7, True),
    "llama-2-7b": (6.738, False),
    "llama-2-13b": (13.016, False),
    "llama-2-70b": (68.977, False),
    "llama-3-8b": (8.030, False),
    "llama-3-70b": (70.554, False),
    "mistral-7b": (7.242, False),
    "qwen2.5-0.5b": (0.494, True),
    "qwen2.5-1.5b": (1.544, True),
    "qwen2.5-3b": (3.086, True),
    "qwen2.5-7b": (7.616, False),
    "qwen2.5-14b": (14.770, False),
    "qwen2.5-32b": (32.764, False),
    "qwen2.5-72b": (72.706, False),
    "gemma-2-2b": (2.614, True),
    "gemma-2-9b": (9.242, True),
    "gemma-2-27b": (27.227, True),
    "phi-3-mini": (3.821, False),
    "phi-3-medium": (13.960, False),
    "bitnet-b1.58-2b4t": (2.413, True),
    "bart-base": (0.139, True),
    "bart-large": (0.406, True),
    "mbart-large": (0.611, True),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    shape = SHAPES[name]
    billions, tied = PUBLISHED[name]
    tables = 0 if tied else shape.vocabulary * shape.width
    if shape.family.startswith(("gpt", "opt")):
        tables += shape.context * shape.width
    if shape.encoder:
        tables += 2 * shape.context * shape.width
    assert describe(shape).weights() + tables == pytest.approx(billions * 1e9, rel=3e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_can_be_sketched(name: str) -> None:
    shape = SHAPES[name]
    prefill, decode = sketch(shape, 3, 2, weights="int4", kv="int4")
    assert shape.family in LAYERS
    source = 3 if shape.encoder else 0
    assert prefill.tokens == (4 if source else 3)
    in_layers = [o for _, o in decode.rows() if o.op in ("score", "context")]
    attended = 2 + source if source else 4  # a start token and the one after it, and the source
    assert sum(o.macs for o in in_layers) == 2 * shape.layers * shape.q_width * attended
    matrices = sum(o.macs for _, o in decode.rows() if o.op == "matmul")
    described = describe(shape)
    read = [m for m in described.matrices if m.name.startswith("encoder.") or m.name in ("cross.k", "cross.v")]
    assert matrices == described.weights() - sum(m.n * m.k * described.copies(m) for m in read)


def test_a_window_bounds_what_is_attended() -> None:
    step = next(sketch(SHAPES["mistral-7b"], 10_000, 1))
    score = next(o for _, o in step.rows() if o.op == "score")
    full, slid = 4096 * 4097 // 2, (10_000 - 4096) * 4096
    assert (score.context, score.pairs) == (4096, full + slid)


def test_a_generation_multiplies_every_weight_once_a_token() -> None:
    shape = SHAPES["gpt3-xl"]
    macs = sum(step.macs for step in sketch(shape, 1, 1024))
    weights = 24 * 12 * 2048**2 + 50257 * 2048
    attention = 24 * 2 * 2048 * sum(range(1, 1025))
    assert macs == 1024 * weights + attention


def test_a_config_file_is_a_shape(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    config |= {"num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096}
    directory = tmp_path / "llama-2-7b"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    for source in (directory, directory / "config.json", str(directory)):
        assert find_shape(source) == SHAPES["llama-2-7b"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gpt5", r"unknown model 'gpt5'; known: gpt2-small.*llama-2-7b"),
        ("nowhere/config.json", r"nowhere/config\.json: no such file"),
    ],
)
def test_unknown_models_are_refused(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_shape(source)

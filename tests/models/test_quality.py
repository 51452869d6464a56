"""Quality: the sliding window scores each token once, and the loss is the one computed another way."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models.random_gpt import SHAPE, random_model
from tests.models.test_load import random_checkpoint

from nearbank.formats import FORMATS
from nearbank.models.checkpoint import save_checkpoint
from nearbank.models.kv import ChannelFit
from nearbank.models.kv_fit import save_fit
from nearbank.models.quality import compare, measure, read_text, spans

TEXT = "the quick brown fox jumps over the lazy dog, and then it rests a while. why not?\n" * 3
MODEL = random_model("numpy", kv="fp32")


@given(tokens=st.integers(2, 300), window=st.integers(1, 64), stride=st.integers(1, 64))
def test_each_token_is_scored_once_with_enough_before_it(tokens: int, window: int, stride: int) -> None:
    stride = min(stride, window)
    scored: list[int] = []
    for begin, first, end in spans(tokens, window, stride):
        assert begin < first < end <= begin + window + 1
        assert first - begin >= min(first, window - stride + 1)  # tokens before the first that is scored
        scored.extend(range(first, end))
    assert scored == list(range(1, tokens))


def reference_loss(window: int) -> float:
    """Mean −log p by probabilities one token at a time, in windows side by side."""
    tokens = MODEL.encode(TEXT)
    total = 0.0
    for i in range(1, len(tokens)):
        begin = (i - 1) // window * window
        logits = MODEL.logits(tokens[begin:i])[-1].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        total -= math.log(probabilities[tokens[i]] / probabilities.sum())
    return total / (len(tokens) - 1)


def test_the_loss_is_the_mean_negative_log_probability() -> None:
    result = measure(MODEL, TEXT, window=24, stride=24)
    assert result.nats_per_token == pytest.approx(reference_loss(24), rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(result.nats_per_token))
    assert result.bits_per_character == pytest.approx(result.nats_per_token / math.log(2))
    assert (result.tokens, result.characters) == (len(TEXT) - 1, len(TEXT) - 1)
    assert set(result.as_dict()) >= {"model", "weights", "kv", "perplexity", "bits_per_character", "weight_bytes"}


def test_bytes_are_those_of_the_formats() -> None:
    result = measure(random_model("numpy", "int4", "int8"), TEXT[:10])
    blocks = [(3 * 32, 32), (32, 32), (128, 32), (32, 128)]
    head = 2 * SHAPE.vocabulary * SHAPE.width
    assert result.weight_bytes == SHAPE.layers * sum(FORMATS["int4"].bytes_for(*size) for size in blocks) + head
    assert result.kv_bytes_per_token == SHAPE.layers * 2 * SHAPE.kv_heads * (SHAPE.head_dim + 4)


def test_fewer_kv_bits_lose_more(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.safetensors", random_checkpoint())
    names = ("fp32", "int8", "int4", "int2", "int4-2d")
    exact, *rows = compare(tmp_path / "model.safetensors", TEXT[:60], kv=names, calibration=TEXT[:60])
    assert [row.kv for row in rows] == list(names[1:])
    far = [abs(row.nats_per_token - exact.nats_per_token) for row in rows]
    assert far[0] < far[1] < far[2]


def test_a_fit_from_a_file_is_that_of_the_fitted_caches(tmp_path: Path) -> None:
    """Channels that are left as they are, and nothing fed back: a cache with them is past-only."""
    save_checkpoint(tmp_path / "model.safetensors", random_checkpoint())
    one = np.ones((SHAPE.layers, SHAPE.kv_heads, SHAPE.head_dim), np.float32)
    save_fit(tmp_path / "fit.safetensors", ChannelFit(0 * one, one, 0 * one, one))
    caches, fit = ("int4-past", "int4-wkv"), tmp_path / "fit.safetensors"
    past, fitted = compare(tmp_path / "model.safetensors", TEXT[:40], kv=caches, kv_fit=fit)
    assert fitted.kv == "int4-wkv"
    assert fitted.nats_per_token == past.nats_per_token
    with pytest.raises(ValueError, match="no KV cache here is fitted"):
        next(compare("no-such-model", TEXT, kv=("int4",), kv_fit=fit))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 65}, "window is 65; random takes 1 to 64"),
        ({"window": 0}, "window is 0"),
        ({"window": 8, "stride": 9}, "stride is 9; expected 1 to the window of 8"),
        ({"text": "a"}, "the text is 1 tokens for random"),
        ({"text": "a~"}, "character '~' at position 1"),
    ],
)
def test_impossible_requests_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(MODEL, **{"text": TEXT, **options})  # type: ignore[arg-type]


def test_texts_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    for content, message in ((b"\xff\xfe", "not UTF-8 text"), (b"", "has 0 characters")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_text(path)
    with pytest.raises(ValueError, match="cannot read the text"):
        read_text(tmp_path / "none.txt")
    path.write_text("häuser")
    assert read_text(path, 3) == "häu"


def test_names_are_checked_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match="unknown format 'int5'"):
        next(compare("no-such-model", TEXT, weights=("int5",)))
    with pytest.raises(ValueError, match="'int4-wkv' is fitted to a calibration text; give one"):
        next(compare("no-such-model", TEXT, kv=("int4-wkv",)))
    with pytest.raises(ValueError, match="GPTQ is fitted to a calibration text; give one"):
        next(compare("no-such-model", TEXT, weights=("int4-gptq",)))
    with pytest.raises(ValueError, match="unknown KV cache 'int4-soon'"):
        next(compare("no-such-model", TEXT, kv=("int4-soon",)))

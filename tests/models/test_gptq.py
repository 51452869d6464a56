"""GPTQ: by hand, against the rule written as a plain loop, and never behind rounding to nearest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.random_gpt import random_model

from nearbank.formats import FORMATS, format_named
from nearbank.models.gptq import (
    Grid,
    fit_matrices,
    fit_weights,
    float_weights,
    grid_of,
    inverse_factor,
    load_matrices,
    output_error,
    quantise_matrix,
    save_matrices,
    with_matrices,
)
from nearbank.models.load import load_model
from nearbank.models.quality import compare, measure

TEXT = "the quick brown fox jumps over the lazy dog, and then it rests a while. why not?\n" * 3


def test_by_hand() -> None:
    """int8 of scale 1. Inputs 0 and 1 go together, H⁻¹ = ⅓ [[2, −1], [−1, 2]], so the second takes half the first's
    error: 0.4 → 0 leaves 0.6 → 1. ‖X d‖² falls from 0.96 to 0.56."""
    weights = np.array([[0.4, 0.4, 127]], np.float32)
    hessian = np.array([[2.0, 1, 0], [1, 2, 0], [0, 0, 1]])
    packed = quantise_matrix(weights, hessian, FORMATS["int8"], damping=0)
    assert packed.levels().tolist() == [[0, 1, 127]]
    assert output_error(np.array([[0.4, 0.4, 0]]), hessian) == pytest.approx(0.96)
    assert output_error((weights - packed.dequantise()).astype(np.float64), hessian) == pytest.approx(0.56)


def slow_codes(weights: np.ndarray, hessian: np.ndarray, grid: Grid, damping: float) -> np.ndarray:
    """The rule as it is stated: invert H over the columns that are left, round one, move the others."""
    damped = hessian + np.eye(len(hessian)) * damping * np.diag(hessian).mean()
    left, moved = list(np.argsort(-np.diag(hessian), kind="stable")), weights.astype(np.float64).copy()
    codes = np.zeros(weights.shape)
    while left:
        k, inverse = left[0], np.linalg.inv(damped[np.ix_(left, left)])
        here = grid.at(slice(k, k + 1))
        codes[:, k : k + 1] = here.codes(moved[:, k : k + 1])
        errors = moved[:, k : k + 1] - here.values(codes[:, k : k + 1])
        moved[:, left] -= errors * inverse[0] / inverse[0, 0]
        left = left[1:]
    return codes


def correlated(random: np.random.Generator, tokens: int, cols: int) -> np.ndarray:
    """Inputs that few directions explain, some channels larger than others."""
    mixed = random.normal(size=(tokens, max(1, cols // 3))) @ random.normal(size=(max(1, cols // 3), cols))
    return np.asarray((mixed + 0.1 * random.normal(size=(tokens, cols))) * random.uniform(0.1, 3, cols))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    rows=st.integers(1, 6),
    cols=st.integers(1, 40),
    name=st.sampled_from(["int8", "int4", "int4-g8", "int3-g8", "int2-g16", "ternary", "ternary-tensor", "binary"]),
    block=st.integers(1, 40),
)
def test_it_is_the_plain_loop_or_the_nearest(seed: int, rows: int, cols: int, name: str, block: int) -> None:
    """Every row is the loop's unless rounding to nearest has the smaller error, which the result never exceeds."""
    random, fmt = np.random.default_rng(seed), format_named(name)
    weights = random.normal(size=(rows, cols)).astype(np.float32)
    x = correlated(random, 60, cols)
    hessian = x.T @ x
    nearest = fmt.quantise(weights)
    packed = quantise_matrix(weights, hessian, fmt, block=block)
    grid = grid_of(fmt, nearest, cols)
    slow = slow_codes(weights, hessian, grid, 0.01)
    ours, theirs, plain = (
        output_error(weights.astype(np.float64) - grid.values(codes), hessian)
        for codes in (packed.quantised().codes, slow, nearest.codes)
    )
    np.testing.assert_allclose(ours, np.minimum(theirs, plain), rtol=1e-6, atol=1e-9)
    assert (ours <= plain * (1 + 1e-9)).all()
    assert np.array_equal(packed.scales, nearest.scales)  # type: ignore[arg-type]


def test_on_correlated_inputs_the_error_is_far_smaller() -> None:
    random, fmt = np.random.default_rng(1), format_named("int4-g32")
    weights, x = random.normal(size=(64, 96)).astype(np.float32), correlated(random, 400, 96)
    hessian = x.T @ x
    wide = weights.astype(np.float64)
    near = output_error(wide - fmt.dequantise(fmt.quantise(weights)), hessian).sum()
    ours = output_error(wide - quantise_matrix(weights, hessian, fmt).dequantise(), hessian).sum()
    assert ours < 0.4 * near


def test_the_factor_holds_the_inverse_of_every_tail() -> None:
    """Row k of U, divided by its first entry, is row 0 of (H[k:, k:])⁻¹ over its own first entry."""
    x = correlated(np.random.default_rng(2), 50, 7)
    hessian = x.T @ x
    factor = inverse_factor(hessian, 1e-3)
    damped = hessian + np.eye(7) * 1e-3 * np.diag(hessian).mean()
    for k in range(7):
        tail = np.linalg.inv(damped[k:, k:])[0]
        np.testing.assert_allclose(factor[k, k:] / factor[k, k], tail / tail[0], rtol=1e-6)


def test_channels_never_seen_change_nothing() -> None:
    weights = np.random.default_rng(3).normal(size=(4, 16)).astype(np.float32)
    packed = quantise_matrix(weights, np.zeros((16, 16)), FORMATS["int4"])
    np.testing.assert_array_equal(packed.dequantise(), FORMATS["int4"].dequantise(FORMATS["int4"].quantise(weights)))


def test_a_model_rounded_by_gptq_is_nearer_and_survives_a_file(tmp_path: Path) -> None:
    """Each matrix on the activations of those before it, already rounded; the kernels run the result."""
    model, tokens = random_model("numba", "fp32", "fp32"), [3, 1, 4, 1, 5, 9, 2, 6]
    matrices = fit_matrices(model, TEXT, "int2-g16", windows=3)
    assert set(matrices) == {
        f"{i}.{name}" for i in range(3) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    save_matrices(tmp_path / "weights.safetensors", matrices)
    loaded = with_matrices(model, load_matrices(tmp_path / "weights.safetensors", "int2-g16"), "int2-g16", "fp32")
    fitted = fit_weights(model, TEXT, "int2-g16", "fp32", windows=3)
    np.testing.assert_array_equal(loaded.logits(tokens), fitted.logits(tokens))
    near = random_model("numba", "int2-g16", "fp32")
    exact = model.logits(model.encode(TEXT[:60]))
    far = [np.abs(one.logits(one.encode(TEXT[:60])) - exact).mean() for one in (fitted, near)]
    assert far[0] < far[1]
    assert (fitted.weights, fitted.inputs) == ("int2-g16", "fp32")
    assert measure(fitted, TEXT[:30]).weights == "int2-g16"


def test_weights_come_back_exactly() -> None:
    linear = random_model("numba", "fp32").network.blocks[1].fc1  # type: ignore[attr-defined]
    again = random_model("numpy", "fp32").network.blocks[1].fc1  # type: ignore[attr-defined]
    np.testing.assert_array_equal(float_weights(linear), float_weights(again))
    x = np.random.default_rng(4).normal(size=(3, 32)).astype(np.float32)
    np.testing.assert_allclose(x @ float_weights(linear).T, linear(x), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_rounded_is_refused(tmp_path: Path) -> None:
    model = random_model("numpy", "fp32", "fp32")
    with pytest.raises(ValueError, match="GPTQ rounds to integer formats, such as int4; not to bf16"):
        fit_weights(model, TEXT, "bf16")
    with pytest.raises(ValueError, match="random has ternary weights already"):
        fit_weights(random_model("numpy"), TEXT, "int4")
    with pytest.raises(ValueError, match="the calibration text is 1 tokens"):
        fit_weights(model, "a", "int4")
    with pytest.raises(ValueError, match="no rounded matrices"):
        load_matrices(tmp_path / "none.safetensors", "int4")


def llama_directory(path: Path) -> Path:
    """A LLaMA directory as transformers writes it, with a tokenizer of characters."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    characters = {character: i for i, character in enumerate(sorted(set(TEXT)))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(characters, unk_token=" "))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_it_is_a_quantiser_of_load_model_and_of_quality(tmp_path: Path) -> None:
    """Grouped queries, three matrices of one input, an untied head: all alike. As many bytes as rounding to nearest."""
    source = llama_directory(tmp_path)
    options = {"backend": "numpy", "kv": "fp32", "inputs": "fp32", "head": "fp32"}
    exact, near = (load_model(source, weights=name, **options) for name in ("fp32", "int2-g16"))  # type: ignore[arg-type]
    fitted = load_model(source, weights="int2-g16", quantiser="gptq", calibration=TEXT, **options)  # type: ignore[arg-type]
    tokens = exact.encode(TEXT[:60])
    want = exact.logits(tokens)
    far = [np.abs(one.logits(tokens) - want).mean() for one in (fitted, near)]
    assert far[0] < far[1]
    rows = list(compare(source, TEXT[:60], ("int2-g16", "int2-g16-gptq"), inputs="fp32", calibration=TEXT))
    assert [row.weights for row in rows] == ["int2-g16", "int2-g16-gptq"]
    assert rows[0].weight_bytes == rows[1].weight_bytes
    assert rows[0].nats_per_token != rows[1].nats_per_token


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantiser": "awq"}, "unknown quantiser 'awq'; known: nearest, gptq"),
        ({"quantiser": "gptq"}, "GPTQ rounds to an integer format"),
        ({"quantiser": "gptq", "weights": "int4"}, "GPTQ is fitted to a calibration text"),
    ],
)
def test_impossible_quantisers_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model("no-such-model", **options)  # type: ignore[arg-type]

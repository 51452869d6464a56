"""The bundled architecture: equal bits on every backend, with and without a cache, and equal to torch's network."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.random_gpt import SHAPE, VOCABULARY, random_model, random_tensors

from nearbank.kernels import PackedMatrix, available_backends
from nearbank.models.functions import gelu_tanh, layer_norm, relu_squared, rms_norm, silu
from nearbank.models.generate import generate
from nearbank.models.gpt import load_gpt
from nearbank.models.model import Model
from nearbank.models.shape import gpt_shape
from nearbank.models.tensors import Precision, Tensors

PROMPT = "to be, or not"
EXACT = Precision(head="fp32")
BLOCK_MATRICES = ("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight")


@pytest.mark.parametrize("weights", ["ternary", "binary", "int4", "fp32"])
@pytest.mark.parametrize("kv", ["fp32", "bf16", "int8", "int4"])
def test_backends_choose_identical_tokens(weights: str, kv: str) -> None:
    runs = [generate(random_model(b, weights, kv), PROMPT, 12) for b in available_backends()]
    assert len({run.tokens for run in runs}) == 1


@pytest.mark.parametrize("backend", available_backends())
def test_cached_decoding_equals_recomputing_from_scratch(backend: str) -> None:
    model = random_model(backend)
    generation = generate(model, PROMPT, 20)
    known = list(model.encode(PROMPT))
    for token in generation.tokens:
        assert int(np.argmax(model.logits(known)[-1])) == token
        known.append(token)


@settings(max_examples=20, deadline=None)
@given(text=st.text(VOCABULARY, min_size=2, max_size=30), seed=st.integers(0, 3))
def test_logits_do_not_depend_on_later_tokens(text: str, seed: int) -> None:
    model = random_model("numpy", seed=seed)
    tokens = model.encode(text)
    np.testing.assert_array_equal(model.logits(tokens)[:-1], model.logits(tokens[:-1]))


@pytest.mark.parametrize("variant", [None, "paper", "reference"])
def test_logits_equal_the_training_network(variant: str | None) -> None:
    torch = pytest.importorskip("torch")
    from nearbank.models.training.network import EXACT, CharGpt, Rounding

    torch.manual_seed(5)
    rounding = EXACT if variant is None else Rounding("ternary", "int8", form=variant)
    twin = CharGpt(len(VOCABULARY), SHAPE.layers, SHAPE.width, SHAPE.heads, SHAPE.context, rounding).eval()
    tokens = torch.randint(len(VOCABULARY), (1, 50))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(4)  # fresh weights are so small that every logit is nearly zero
        expected = twin(tokens)[0].numpy()
    ours = torch_model(twin, variant).logits(tokens[0].tolist())
    # A value on the edge between two int8 codes may round either way in torch, so ternary gets more room.
    np.testing.assert_allclose(
        ours, expected, rtol=0, atol=(1e-4 if variant is None else 2e-2) * np.abs(expected).max()
    )


def torch_model(twin, variant: str | None) -> Model:  # type: ignore[no-untyped-def]
    from nearbank.models.quantize import WeightQuantiser

    tensors = {name: value.numpy() for name, value in twin.state_dict().items()}
    for name in [name for name in tensors if name.endswith(BLOCK_MATRICES) and variant]:
        rounded = WeightQuantiser("ternary", variant or "").apply(tensors[name])
        tensors[name] = PackedMatrix.from_codes("ternary", rounded.codes, rounded.scales)
    return Model(load_gpt(SHAPE, Tensors(tensors, "numpy", EXACT)), None, "ternary", "int8", "fp32", "numpy")


def test_an_untied_head_is_used() -> None:
    tied = random_tensors(SHAPE)
    untied = {**tied, "lm_head.weight": -tied["wte.weight"]}
    logits = [load_gpt(SHAPE, Tensors(t, "numpy", EXACT)) for t in (tied, untied)]
    tokens = [1, 2, 3]
    first, second = (Model(network, None, "fp32", "fp32", "fp32", "numpy").logits(tokens) for network in logits)
    np.testing.assert_array_equal(first, -second)


def test_wrong_tensors_are_named() -> None:
    tensors = random_tensors(SHAPE)
    cases = {
        "h.1.mlp.fc1.weight is missing": {k: v for k, v in tensors.items() if k != "h.1.mlp.fc1.weight"},
        r"h.0.attn.qkv.weight is \[3, 3\]; expected \[96, 32\]": {
            **tensors,
            "h.0.attn.qkv.weight": np.zeros((3, 3), np.float32),
        },
        "wpe.weight holds NaN": {**tensors, "wpe.weight": np.full_like(tensors["wpe.weight"], np.nan)},
    }
    for message, broken in cases.items():
        with pytest.raises(ValueError, match=message):
            load_gpt(SHAPE, Tensors(broken, "numpy"))


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width 30 is not a multiple of its 4 heads"):
        gpt_shape("odd", 1, 30, 4, 10, 10)


@given(st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=40))
def test_functions_equal_their_formulas_in_double_precision(values: list[float]) -> None:
    x = np.array([values], np.float32)
    exact = x.astype(np.float64)
    near = {"rtol": 1e-4, "atol": 1e-4}
    inner = np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3)
    np.testing.assert_allclose(gelu_tanh(x), 0.5 * exact * (1 + np.tanh(inner)), **near)
    np.testing.assert_allclose(silu(x), exact / (1 + np.exp(-exact)), **near)
    np.testing.assert_allclose(relu_squared(x), np.where(exact > 0, exact**2, 0), **near)
    ones = np.ones(len(values), np.float32)
    centred = exact - exact.mean()
    # eps of 1 keeps the division by a nearly zero spread out of the comparison
    np.testing.assert_allclose(layer_norm(x, ones, ones, 1.0), 1 + centred / np.sqrt((centred**2).mean() + 1), **near)
    np.testing.assert_allclose(rms_norm(x, 2 * ones, 1.0), 2 * exact / np.sqrt((exact**2).mean() + 1), **near)

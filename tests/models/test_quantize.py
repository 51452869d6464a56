"""Weight quantisers against their equations: by hand, against a plain loop, and against their torch twins."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nearbank.errors import NearbankError
from nearbank.models.quantize import WeightQuantiser

WEIGHTS = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    elements=st.integers(-64, 64).map(lambda i: i / 16),
)


def test_ternary_paper_by_hand() -> None:
    """Row 1 3 5 7: mean 4, centred -3 -1 1 3, mean magnitude 2, alpha 8/3, ratios -1.125 -0.375 0.375 1.125."""
    quantised = WeightQuantiser("ternary", "paper").apply(np.array([[1.0, 3.0, 5.0, 7.0]]))
    assert quantised.codes.tolist() == [[0, 1, 1, 2]]
    assert quantised.scales == pytest.approx(np.array([[8 / 3]]), rel=1e-7)


def test_ternary_reference_by_hand() -> None:
    """Same row without the mean: mean magnitude 4, alpha 16/3, ratios 0.1875 0.5625 0.9375 1.3125."""
    quantised = WeightQuantiser("ternary", "reference").apply(np.array([[1.0, 3.0, 5.0, 7.0]]))
    assert quantised.codes.tolist() == [[1, 2, 2, 2]]
    assert quantised.scales == pytest.approx(np.array([[16 / 3]]), rel=1e-7)


def test_binary_by_hand() -> None:
    """Row 0 1 5: mean 2, centred -2 -1 3, alpha 2. Without the mean every sign is up, alpha 2."""
    rows = np.array([[0.0, 1.0, 5.0]])
    assert WeightQuantiser("binary", "paper").rounded(rows).tolist() == [[-2, -2, 2]]
    assert WeightQuantiser("binary", "reference").rounded(rows).tolist() == [[2, 2, 2]]


def test_half_of_alpha_rounds_to_even() -> None:
    """Row 2 -1 1 -2 with mean 0: alpha 2, so the ratio 0.5 lies between two codes and goes to 0."""
    assert WeightQuantiser().apply(np.array([[2.0, -1.0, 1.0, -2.0]])).codes.tolist() == [[2, 1, 1, 0]]


def slow_ternary(row: list[float], centre: bool) -> list[float]:
    mean = sum(row) / len(row) if centre else 0.0
    centred = [value - mean for value in row]
    alpha = 4 / 3 * sum(abs(value) for value in centred) / len(row)
    return [alpha * round(max(-1.0, min(1.0, value / alpha))) if alpha else 0.0 for value in centred]


@pytest.mark.parametrize("variant", ["paper", "reference"])
@given(weights=WEIGHTS)
def test_ternary_equals_a_plain_loop(variant: str, weights: np.ndarray) -> None:
    """Values within rounding; a ratio next to ±1/2 may fall either way in float32."""
    rounded = WeightQuantiser("ternary", variant).rounded(weights)
    for row, got in zip(weights.tolist(), rounded, strict=True):
        want = np.array(slow_ternary(row, variant == "paper"))
        alpha = 4 / 3 * np.mean(np.abs(np.array(row) - (np.mean(row) if variant == "paper" else 0)))
        centred = np.array(row) - (np.mean(row) if variant == "paper" else 0)
        clear = np.abs(np.abs(centred) - alpha / 2) > 1e-5
        assert got[clear] == pytest.approx(want[clear], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("fmt", ["ternary", "binary"])
@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_torch_twin_computes_the_same(fmt: str, variant: str) -> None:
    torch = pytest.importorskip("torch")
    from nearbank.models.training.straight_through import fake_weights

    weights = np.random.default_rng(3).normal(0.01, 0.05, (64, 96)).astype(np.float32)
    faked = fake_weights(torch.from_numpy(weights), fmt, variant).numpy()
    assert faked == pytest.approx(WeightQuantiser(fmt, variant).rounded(weights), rel=1e-4, abs=1e-7)


def test_torch_activations_equal_the_kernels() -> None:
    torch = pytest.importorskip("torch")
    from nearbank.kernels.activations import quantise_rows
    from nearbank.models.training.straight_through import fake_int8

    x = np.random.default_rng(4).normal(0, 2, (32, 50)).astype(np.float32)
    x[5] = 0
    rows = quantise_rows(x, "numpy")
    faked = fake_int8(torch.from_numpy(x)).numpy()
    assert faked == pytest.approx(rows.codes * rows.scales[:, None], rel=1e-5, abs=1e-6)


def test_gradients_pass_straight_through() -> None:
    torch = pytest.importorskip("torch")
    from nearbank.models.training.straight_through import fake_int8, fake_weights

    weight = torch.randn(3, 5, requires_grad=True)
    x = torch.randn(2, 5, requires_grad=True)
    upstream = torch.randn(2, 3)
    (fake_int8(x) @ fake_weights(weight, "ternary", "paper").T).backward(upstream)
    assert torch.allclose(x.grad, upstream @ fake_weights(weight, "ternary", "paper"))
    assert torch.allclose(weight.grad, upstream.T @ fake_int8(x))


def test_binary_gradients_pass_within_one_alpha() -> None:
    """Row -3 -1 1 3: alpha 2, so only the middle two learn in the paper's form, all in the authors'."""
    torch = pytest.importorskip("torch")
    from nearbank.models.training.straight_through import fake_weights

    for variant, expected in (("paper", [0, 20, 30, 0]), ("reference", [10, 20, 30, 40])):
        weight = torch.tensor([[-3.0, -1, 1, 3]], requires_grad=True)
        rounded = fake_weights(weight, "binary", variant)
        assert rounded.tolist() == [[-2, -2, 2, 2]]
        rounded.backward(torch.tensor([[10.0, 20, 30, 40]]))
        assert weight.grad.tolist() == [expected]


@pytest.mark.parametrize("fmt", ["ternary", "binary"])
def test_rounding_twice_keeps_the_codes(fmt: str) -> None:
    quantiser = WeightQuantiser(fmt, "reference")
    weights = np.random.default_rng(5).normal(size=(8, 32)).astype(np.float32)
    once = quantiser.apply(weights)
    twice = quantiser.apply(quantiser.stored_as.dequantise(once))
    assert np.array_equal(once.codes, twice.codes)


@pytest.mark.parametrize(
    ("arguments", "word"), [(("int4", "paper"), "int4"), (("ternary", "mean"), "paper, reference")]
)
def test_unknown_quantisers_are_refused(arguments: tuple[str, str], word: str) -> None:
    with pytest.raises(NearbankError, match=word):
        WeightQuantiser(*arguments)


def test_bad_weights_are_refused() -> None:
    with pytest.raises(NearbankError, match="NaN"):
        WeightQuantiser().apply(np.array([[1.0, np.nan]]))
    with pytest.raises(NearbankError, match="rows, columns"):
        WeightQuantiser().apply(np.array([1.0, 2.0]))

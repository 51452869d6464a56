"""Activations as codes and scales: by hand, against torch's training modules, and in products."""

import numpy as np
import pytest

from nearbank.errors import NearbankError
from nearbank.kernels import PackedMatrix, prepare
from nearbank.models.rounding import FORMATS_OF, KINDS, Rounding


def row(*values: float) -> np.ndarray:
    return np.array([values], dtype=np.float32)


def test_by_hand() -> None:
    """TWN: mean 2, threshold 1.4, so 2 and -5 stay, scale 3.5. BWN: sign, scale 2. Eight bits: 127 and 255 steps."""
    x = row(2, -5, 0.5, 0.5)
    assert _values("twn", x) == [[3.5, -3.5, 0, 0]]
    assert _values("bwn", x) == [[2, -2, 2, 2]]
    codes, scales = Rounding("int8").apply(row(2.54, -1.28, 0.02, 0))
    assert (codes.tolist(), scales.tolist()) == ([[127, -64, 1, 0]], [pytest.approx(0.02)])
    codes, scales = Rounding("int4").apply(row(-1.4, 0.5, 0.2, 0))
    assert (codes.tolist(), scales.tolist()) == ([[-7, 2, 1, 0]], [pytest.approx(0.2)])
    codes, scales = Rounding("int8", signed=False).apply(row(0.51, 0.25, 0, 0.0008))
    assert (codes.tolist(), scales.tolist()) == ([[255, 125, 0, 0]], [pytest.approx(0.002)])


def test_naive_probabilities_by_hand() -> None:
    """TWN: mean 0.25, threshold 0.175. BWN knows no size: every attended position gets the mean."""
    x = row(0.5, 0.3, 0.1, 0.1)
    assert _values("twn", x, signed=False) == [pytest.approx([0.4, 0.4, 0, 0])]
    assert _values("bwn", x, signed=False) == [pytest.approx([0.25] * 4)]


def _values(kind: str, x: np.ndarray, signed: bool = True) -> list[list[float]]:
    codes, scales = Rounding(kind, signed).apply(x)
    return (codes * scales[:, None]).tolist()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_training_rounds_alike(kind: str, signed: bool) -> None:
    """The last two of a row's probabilities are masked: for training they are 0, for a cache they are not there."""
    torch = pytest.importorskip("torch")
    from nearbank.models.training.elastic import ElasticActivation, activation_rounding

    x = np.random.default_rng(1).normal(0.1, 1, (7, 12)).astype(np.float32)
    if not signed:
        x = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    padded = x if signed else np.pad(x, ((0, 0), (0, 2)))
    module = activation_rounding(kind, signed, "paper")
    rounded = module(torch.from_numpy(padded)).detach().numpy()
    alpha = float(module.alpha.detach()) if isinstance(module, ElasticActivation) else 1.0
    codes, scales = Rounding(kind, signed, alpha=alpha).apply(x)
    np.testing.assert_allclose(rounded[:, :12], codes * scales[:, None], rtol=1e-5, atol=1e-7)
    assert not rounded[:, 12:].any()


@pytest.mark.parametrize("weights", ["ternary", "binary"])
@pytest.mark.parametrize("kind", FORMATS_OF)
def test_products_are_those_of_the_values(kind: str, weights: str) -> None:
    random = np.random.default_rng(2)
    x, w = random.normal(size=(3, 40)).astype(np.float32), random.normal(size=(20, 40)).astype(np.float32)
    packed, rounding = PackedMatrix.quantise(w, weights), Rounding(kind, alpha=0.75)
    codes, scales = rounding.apply(x)
    expected = (codes * scales[:, None]).astype(np.float64) @ packed.dequantise().T
    np.testing.assert_allclose(rounding.multiply(x, prepare(packed)), expected, rtol=1e-5, atol=1e-5)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(NearbankError, match="unknown activation rounding 'int3'; known: int8, int4, elastic2"):
        Rounding("int3")

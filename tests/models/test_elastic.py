"""Elastic activations: by hand, codes against the equations, torch's gradients against the definition's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nearbank.errors import NearbankError
from nearbank.models.elastic import Elastic

KINDS = [
    Elastic(bits, signed, variant) for bits in (1, 2) for signed in (True, False) for variant in ("paper", "reference")
]
ROWS = arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 6)),
    elements=st.integers(-40, 40).map(lambda i: i / 8),
)


def row(*values: float) -> np.ndarray:
    return np.array([values], dtype=np.float32)


def test_signed_ternary_by_hand() -> None:
    """Mean 1; minus it -2 -0.75 0.5 2.25; over alpha 2: -1 -0.375 0.25 1.125."""
    assert Elastic(2, True).rounded(row(-1, 0.25, 1.5, 3.25), 2.0).tolist() == [[-2, 0, 0, 2]]


def test_unsigned_ternary_by_hand() -> None:
    """Over alpha 0.5: 0 0.4 1.2 2.4 codes 0 0 1 2; the authors' form first subtracts the minimum 0.2."""
    assert Elastic(2, False).codes(row(0, 0.2, 0.6, 1.2), 0.5).tolist() == [[0, 0, 1, 2]]
    assert Elastic(2, False, "reference").codes(row(0.2, 0.4, 0.6, 1.2), 0.5).tolist() == [[0, 0, 1, 2]]


def test_binary_by_hand() -> None:
    """Signed: mean 2, so 0 1 | 5 part; without it all are up. Unsigned: alpha 1 parts at one half."""
    assert Elastic(1, True).rounded(row(0, 1, 5), 3.0).tolist() == [[-3, -3, 3]]
    assert Elastic(1, True, "reference").rounded(row(0, 1, 5), 3.0).tolist() == [[3, 3, 3]]
    assert Elastic(1, False).codes(row(0.1, 0.49, 0.51, 7), 1.0).tolist() == [[0, 0, 1, 1]]


def test_first_alpha_by_hand() -> None:
    """±3 round without error at alpha 3, the largest value; 0, 4, 8 at alpha 4."""
    assert Elastic(2, True).first_alpha(row(-3, 0, 3)) == pytest.approx(3)
    assert Elastic(1, True).first_alpha(row(-3, 3)) == pytest.approx(3)
    assert Elastic(2, False).first_alpha(row(0, 4, 8)) == pytest.approx(4)
    assert Elastic(1, False).first_alpha(row(0, 0, 8)) == pytest.approx(8)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_first_alpha_rounds_better_than_half_or_twice(kind: Elastic) -> None:
    x = np.abs(np.random.default_rng(2).normal(size=(20, 30))).astype(np.float32)
    centred, alpha = x - kind.offsets(x), kind.first_alpha(x)
    worst = np.square(centred - kind.rounded(x, alpha)).mean()
    for other in (alpha / 2, alpha * 2):
        assert np.square(centred - kind.rounded(x, other)).mean() >= worst


def test_gradients_by_hand() -> None:
    """Unsigned ternary, alpha 1, x = -1 0.4 1.75 5: codes 0 0 2 2, slopes 0 -0.4 0.25 2, share 1/sqrt(4 * 2)."""
    upstream = row(1, 10, 100, 1000)
    of_x, of_alpha = Elastic(2, False).gradients(row(-1, 0.4, 1.75, 5), 1.0, upstream)
    assert of_x.tolist() == [[0, 10, 100, 0]]
    assert of_alpha == pytest.approx((0 - 4 + 25 + 2000) / np.sqrt(8), rel=1e-6)


def test_signed_binary_gradients_by_hand() -> None:
    """Mean 0, alpha 2: ratios -2 0.5 1.5, codes -1 1 1; x passes at 0.5 alone; share 1/sqrt(3)."""
    of_x, of_alpha = Elastic(1, True).gradients(row(-4, 1, 3), 2.0, row(1, 10, 100))
    assert of_x.tolist() == [[0, 10, 0]]
    assert of_alpha == pytest.approx(109 / np.sqrt(3), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(x=ROWS, alpha=st.sampled_from([0.25, 0.5, 1.0, 2.0]))
def test_no_code_is_nearer(kind: Elastic, x: np.ndarray, alpha: float) -> None:
    """The chosen code's value is as near to the centred activation as any other code's."""
    x = x if kind.signed else np.abs(x)
    centred = (x - kind.offsets(x)).astype(np.float64)
    levels = [-1, 1] if kind.bits == 1 and kind.signed else list(range(kind.low, kind.high + 1))
    codes = kind.codes(x, alpha)
    assert set(codes.ravel().tolist()) <= set(levels)
    best = np.min([np.abs(centred - alpha * level) for level in levels], axis=0)
    assert np.abs(centred - alpha * codes) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_torch_learns_with_the_same_gradients(kind: Elastic) -> None:
    torch = pytest.importorskip("torch")
    from nearbank.models.training.elastic import ElasticActivation

    random = np.random.default_rng(1)
    x = random.normal(0.2, 1, (6, 10)).astype(np.float32)
    x = x if kind.signed else np.abs(x)
    upstream = random.normal(size=x.shape).astype(np.float32)
    module, given_x = ElasticActivation(kind), torch.from_numpy(x).requires_grad_()
    rounded = module(given_x)
    rounded.backward(torch.from_numpy(upstream))
    alpha = float(module.alpha.detach())
    of_x, of_alpha = kind.gradients(x, alpha, upstream)
    assert alpha == pytest.approx(kind.first_alpha(x), rel=1e-6)
    assert rounded.detach().numpy() == pytest.approx(kind.rounded(x, alpha), rel=1e-6)
    assert given_x.grad.numpy() == pytest.approx(of_x)
    assert float(module.gain.grad) == pytest.approx(of_alpha * alpha, rel=1e-5, abs=1e-6)  # α is first · gain


def test_alpha_is_started_once_and_then_learned() -> None:
    torch = pytest.importorskip("torch")
    from nearbank.models.training.elastic import ElasticActivation

    module = ElasticActivation(Elastic(2, True))
    module(torch.ones(2, 4))
    first = float(module.alpha.detach())
    module(torch.full((2, 4), 9.0))
    assert float(module.alpha.detach()) == first
    again = ElasticActivation(Elastic(2, True))
    again.load_state_dict(module.state_dict())
    again(torch.full((2, 4), 9.0))
    assert float(again.alpha.detach()) == first


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_alphas_are_refused(alpha: float) -> None:
    with pytest.raises(NearbankError, match="expected a number above 0"):
        Elastic(2, True).codes(row(1, 2), alpha)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(NearbankError, match="3 bits; expected 1 or 2"):
        Elastic(3, True)
    with pytest.raises(NearbankError, match="known: paper, reference"):
        Elastic(2, True, "mean")

"""What a transformer computes besides matrix products: norms, activations, rotary positions. NumPy, float32.

Every function works on each row [.., D] by itself, so a token's result does not depend on the tokens beside it. Means
and tanh are computed in double precision and rounded once, so that no library's order of sums shows in the result.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

SQRT_2_OVER_PI = np.float32(0.7978845608028654)
GELU_CUBIC = np.float32(0.044715)
HALF = np.float32(0.5)
ONE = np.float32(1)


def layer_norm(x: Floats, weight: Floats, bias: Floats | None, eps: float) -> Floats:
    """x [M, D] → (x − mean) / √(variance + eps) · weight [D] + bias [D]."""
    centred = x - x.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
    variance = np.square(centred).mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
    scaled: Floats = centred / np.sqrt(variance + np.float32(eps)) * weight
    return scaled if bias is None else scaled + bias


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """x [.., D] → x / √(mean x² + eps) · weight [D]."""
    mean_square = np.square(x).mean(axis=-1, keepdims=True)
    scaled: Floats = x / np.sqrt(mean_square + np.float32(eps)) * weight
    return scaled


def gelu_tanh(x: Floats) -> Floats:
    """GPT-2's GELU: ½x(1 + tanh(√(2/π)(x + 0.044715x³)))."""
    inner: Floats = SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x)
    bend = np.tanh(inner.astype(np.float64)).astype(np.float32)
    return np.asarray(HALF * x * (ONE + bend), dtype=np.float32)


def gelu_erf(x: Floats) -> Floats:
    """The exact GELU: ½x(1 + erf(x/√2)), erf by Abramowitz and Stegun 7.1.26, whose error is below 1.5e-7."""
    z = np.abs(x.astype(np.float64)) * 2**-0.5
    t = 1 / (1 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.copysign(1 - series * np.exp(-z * z), x)
    return np.asarray(0.5 * x * (1 + erf), dtype=np.float32)


def silu(x: Floats) -> Floats:
    """x · sigmoid(x); exp is taken of −|x|, which cannot overflow."""
    small = np.exp(-np.abs(x))
    return np.asarray(x * np.where(x >= 0, ONE, small) / (ONE + small), dtype=np.float32)


def relu(x: Floats) -> Floats:
    """max(x, 0)."""
    return np.maximum(x, np.float32(0))


def relu_squared(x: Floats) -> Floats:
    """max(x, 0)²."""
    return np.square(relu(x))

"""Rotary position embedding (Su et al., arXiv 2104.09864) with the scalings that LLaMA-like checkpoints use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rotary:
    """Angles per position: frequencies [R/2] of the first R values of a head; the rest are left alone."""

    frequencies: Floats

    def angles(self, positions: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """(cos, sin) [M, 1, R/2] of M positions."""
        angles = positions.astype(np.float32)[:, None, None] * self.frequencies
        return np.cos(angles), np.sin(angles)


def rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """x [M, heads, D]: pairs (x[i], x[i + R/2]) turned by the position's angle i, for i < R/2."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin, rest), axis=-1)


def rotary_from(config: Mapping[str, Any], head_dim: int) -> Rotary:
    """The rotary embedding that a Hugging Face configuration describes (both its older and newer keys)."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = float(parameters.get("rope_theta", config.get("rope_theta", 10000.0)))
    partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    rotated = int(head_dim * partial)
    frequencies = 1.0 / base ** (np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in SCALINGS:
        raise NearbankError(f"config.json: rope type '{kind}' is not supported; known: {', '.join(SCALINGS)}")
    try:
        return Rotary(SCALINGS[kind](frequencies.astype(np.float32), parameters))
    except KeyError as missing:
        raise NearbankError(f"config.json: rope type '{kind}' needs {missing}") from None


def _unscaled(frequencies: Floats, _: Mapping[str, Any]) -> Floats:
    return frequencies


def _linear(frequencies: Floats, parameters: Mapping[str, Any]) -> Floats:
    return frequencies / np.float32(parameters["factor"])


def _llama3(frequencies: Floats, parameters: Mapping[str, Any]) -> Floats:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended (LLaMA 3.1)."""
    factor, original = float(parameters["factor"]), float(parameters["original_max_position_embeddings"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    wavelengths = 2 * math.pi / frequencies
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return np.asarray((1 - smooth) * frequencies / factor + smooth * frequencies, dtype=np.float32)


SCALINGS = {"default": _unscaled, "linear": _linear, "llama3": _llama3}

"""Rotary position embedding (Su et al., arXiv 2104.09864) with the scalings that LLaMA-like checkpoints use.

Scalings: linear, LLaMA 3.1's, YaRN (Peng et al., arXiv 2309.00071) and LongRoPE (Ding et al., arXiv 2402.13753).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rotary:
    """Angles per position: frequencies [R/2] of the first R values of a head; the rest are left alone.

    factor: what cosines and sines are multiplied by. long: other frequencies [R/2], for sequences of more than
    `original` positions (LongRoPE).
    """

    frequencies: Floats
    factor: float = 1.0
    long: Floats | None = None
    original: int = 0

    def angles(self, positions: Positions, reach: Positions) -> tuple[Floats, Floats]:
        """(cos, sin) [M, 1, R/2] of M positions; reach [M]: how many positions the sequence of each may come to have.

        A sequence keeps one set of frequencies from its first token on, so that keys in the cache stay right.
        """
        frequencies = self.frequencies
        if self.long is not None:
            frequencies = np.where((reach > self.original)[:, None, None], self.long, frequencies)
        angles = positions.astype(np.float32)[:, None, None] * frequencies
        return np.cos(angles) * np.float32(self.factor), np.sin(angles) * np.float32(self.factor)


def rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """x [M, heads, D]: pairs (x[i], x[i + R/2]) turned by the position's angle i, for i < R/2."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin, rest), axis=-1)


def rotary_from(config: Mapping[str, Any], head_dim: int) -> Rotary:
    """The rotary embedding that a Hugging Face configuration describes (both its older and newer keys)."""
    parameters = _parameters(config)
    kind = _kind(config, parameters)
    try:
        rotated = int(head_dim * parameters["partial_rotary_factor"])
        exponents = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
        frequencies = (1.0 / float(parameters["rope_theta"]) ** exponents).astype(np.float32)
        return SCALINGS[kind](frequencies, parameters)
    except KeyError as missing:
        raise NearbankError(f"config.json: rope type '{kind}' needs {missing}") from None
    except (TypeError, ValueError) as error:
        raise NearbankError(f"config.json: rope type '{kind}': {error}") from error


def _parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the rope type is given, with what stands beside it in the configuration; the latter's `original_…` wins."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    beside = {"rope_theta": config.get("rope_theta", 10000.0)}
    beside["partial_rotary_factor"] = config.get("partial_rotary_factor", 1.0)
    longest, key = config.get("max_position_embeddings"), "original_max_position_embeddings"
    original = config.get(key) or given.get(key) or longest
    known = {key: original, "max_position_embeddings": longest}
    return {**beside, **given, **{name: value for name, value in known.items() if value is not None}}


def _kind(config: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    kind = str(parameters.get("rope_type", parameters.get("type", "default")))
    if kind == "su" or (kind == "yarn" and config.get("model_type") == "phi3"):  # early names in Phi-3's files
        kind = "longrope"
    if kind not in SCALINGS:
        raise NearbankError(f"config.json: rope type '{kind}' is not supported; known: {', '.join(SCALINGS)}")
    return kind


def _unscaled(frequencies: Floats, _: Mapping[str, Any]) -> Rotary:
    return Rotary(frequencies)


def _linear(frequencies: Floats, parameters: Mapping[str, Any]) -> Rotary:
    return Rotary(frequencies / np.float32(parameters["factor"]))


def _llama3(frequencies: Floats, parameters: Mapping[str, Any]) -> Rotary:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended (LLaMA 3.1)."""
    factor, original = float(parameters["factor"]), float(parameters["original_max_position_embeddings"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    wavelengths = 2 * math.pi / frequencies
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return Rotary(np.asarray((1 - smooth) * frequencies / factor + smooth * frequencies, dtype=np.float32))


def _yarn(frequencies: Floats, parameters: Mapping[str, Any]) -> Rotary:
    """Frequencies that turn less than `beta_slow` times in the original context are divided by `factor`, those that
    turn more than `beta_fast` times kept, those between blended by their number (equations 17 to 23 of the paper)."""
    factor, pairs = _stretch(parameters), len(frequencies)
    turns = (parameters.get("beta_fast") or 32, parameters.get("beta_slow") or 1)
    low, high = (_pair_turning(count, 2 * pairs, parameters) for count in turns)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    stretched = np.clip((np.arange(pairs) - low) / (high - low or 0.001), 0, 1)
    blended = frequencies / factor * stretched + frequencies * (1 - stretched)
    return Rotary(blended.astype(np.float32), _yarn_factor(factor, parameters))


def _pair_turning(count: float, rotated: int, parameters: Mapping[str, Any]) -> float:
    """Which pair (not a whole number) turns `count` times in the original context."""
    original, base = float(parameters["original_max_position_embeddings"]), float(parameters["rope_theta"])
    return rotated * math.log(original / (count * 2 * math.pi)) / (2 * math.log(base))


def _yarn_factor(factor: float, parameters: Mapping[str, Any]) -> float:
    """Of cosines and sines: as given, or 1 + 0.1 ln factor, or a ratio of two such (DeepSeek's `mscale`)."""
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    above, below = (float(parameters.get(name) or 0) for name in ("mscale", "mscale_all_dim"))
    if not above or not below:
        above, below = 1.0, 0.0
    growth = 0.1 * math.log(max(factor, 1))
    return (above * growth + 1) / (below * growth + 1)


def _longrope(frequencies: Floats, parameters: Mapping[str, Any]) -> Rotary:
    """A divisor for each frequency, others for sequences longer than the original context."""
    short, long = (_divided(frequencies, parameters[f"{name}_factor"], name) for name in ("short", "long"))
    original, factor = int(parameters["original_max_position_embeddings"]), _stretch(parameters)
    given = parameters.get("attention_factor")
    grown = math.sqrt(1 + math.log(max(factor, 1)) / math.log(original))
    return Rotary(short, grown if given is None else float(given), long, original)


def _divided(frequencies: Floats, divisors: Any, name: str) -> Floats:
    numbers = np.asarray(divisors, dtype=np.float32)
    if numbers.shape != frequencies.shape:
        raise NearbankError(f"'{name}_factor' has shape {list(numbers.shape)}; expected {list(frequencies.shape)}")
    return frequencies / numbers


def _stretch(parameters: Mapping[str, Any]) -> float:
    """How many times longer contexts are than the original; by their lengths when it is not given."""
    given = parameters.get("factor")
    if given is not None:
        return float(given)
    return float(parameters["max_position_embeddings"] / parameters["original_max_position_embeddings"])


Scaling = Callable[[Floats, Mapping[str, Any]], Rotary]
SCALINGS: Mapping[str, Scaling] = {
    "default": _unscaled,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}

"""Channels of a windowed cache whose errors of rounding are fed back by a random metric."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from nearbank.cache_formats import SCHEMES
from nearbank.kernels.reference.feedback import Feedback
from nearbank.kernels.window import Channels


def fed(channels: Channels, scheme: str, seed: int) -> Channels:
    """Channels with errors fed back, as a random metric weighs them; of values alone where keys share scales."""
    heads, dim = channels.key_shift.shape
    seen = np.random.default_rng(seed).normal(size=(2, heads, dim, 2 * dim))
    metric = seen @ seen.swapaxes(2, 3) / dim + 0.1 * np.eye(dim)
    keys, values = (Feedback.of(np.linalg.cholesky(np.linalg.inv(one)).swapaxes(1, 2)) for one in metric)
    return replace(channels, key_feedback=None if SCHEMES[scheme].key_group else keys, value_feedback=values)


# Zeros, constants, and magnitudes far apart.
EXTREMES = [0.0, -0.0, 1.0, -1.0, 3.0, 1e-38, -1e-42, 1e-20, -1e30, 1e30, 7.5]
TOKENS = st.lists(st.sampled_from(EXTREMES) | st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40)
STRENGTHS = st.sampled_from([1.0, 1e-12, 1e12])  # at the last, squares of weighted errors leave float32


def extreme(dim: int, strength: float, seed: int) -> Channels:
    """Of one head, not shifted nor scaled; errors of keys weighted so much more."""
    one = np.ones((1, dim), np.float32)
    channels = fed(Channels(0 * one, one, 0 * one, one), "past", seed)
    assert channels.key_feedback is not None
    heavier = replace(channels.key_feedback, weights=np.float32(strength) * channels.key_feedback.weights)
    return replace(channels, key_feedback=heavier)

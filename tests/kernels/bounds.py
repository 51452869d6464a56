"""How far the fast attention on a GPU may be from the definition."""

from __future__ import annotations

import numpy as np

from nearbank.kernels.reference.attention import rows_of


def bound_of(twin, q, scale, fmt, layer=1):
    """Largest error that two-part queries and weights allow, per query and head.

    A query is two roundings of 8 bits (fp16: 11), so each product is off by at most 2⁻¹⁶ (2⁻²²) of itself, and
    float32 sums add 2⁻²⁰ of the magnitudes. An error δ of the scores moves weights by a factor e^±2δ.
    """
    unit = 2.0**-20 if fmt == "fp16" else 2.0**-15
    heads = q.shape[1] // twin.kv_heads
    # Without the softmax: magnitudes of k and v as stored.
    keys, values = (np.abs(side).astype(np.float64) for side in stored(twin, layer))
    sizes = np.einsum("thd,hjd->thj", np.abs(q).astype(np.float64), np.repeat(keys, heads, 0)).max(axis=2)
    drift = np.expm1(2 * unit * sizes * scale) + unit
    return drift * np.repeat(values.max(axis=(1, 2)), heads)[None, :]


def stored(twin, layer):
    """K and V [kv heads, tokens, dim] by the format's own dequantiser: unit queries see K, V is seen alike."""
    out = []
    for rows, params in (
        (twin.store.keys, twin.store.key_params),
        (twin.store.values, twin.store.value_params),
    ):
        heads = [rows_of(twin.store, rows, params, layer, head, twin.length(layer)) for head in range(twin.kv_heads)]
        # Padded magnitudes: |scale|·code + |offset| is what the sums really add.
        out.append(np.stack([np.abs(p[:, :1] * c) + np.abs(p[:, 1:]) for c, p in heads]))
    return out

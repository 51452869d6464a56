"""What the NumPy caches of this package share: how many tokens each layer holds, room for more, and copies."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError


class SequenceCache:
    """Keys and values of one sequence. `memory` names the arrays that a copy takes over."""

    memory: ClassVar[tuple[str, ...]] = ()

    def __init__(self, layers: int, kv_heads: int, head_dim: int, capacity: int) -> None:
        self.kv_heads, self.head_dim, self.capacity = kv_heads, head_dim, capacity
        self._lengths = [0] * layers

    def length(self, layer: int = 0) -> int:
        """Tokens held in a layer."""
        return self._lengths[layer]

    def clear(self) -> None:
        """Forget all tokens."""
        self._lengths = [0] * len(self._lengths)

    def copy_from(self, other: Any) -> None:
        """Hold what `other`, a cache of the same kind and sizes, holds now."""
        for name in self.memory:
            held: npt.NDArray[np.float32] = getattr(self, name)
            held[:] = getattr(other, name)
        self._lengths = list(other._lengths)

    def _grown(self, layer: int, tokens: int) -> tuple[int, int]:
        """Where `tokens` more of a layer begin and end; the layer holds them from now on."""
        start, end = self._lengths[layer], self._lengths[layer] + tokens
        if end > self.capacity:
            raise NearbankError(f"KV cache: {end} tokens exceed its capacity of {self.capacity}")
        self._lengths[layer] = end
        return start, end

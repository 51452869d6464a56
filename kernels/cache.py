"""A KV cache that quantises what it is given once, and attends to it.

The pages and their layout are in `nearbank.kernels.store`, the arithmetic in the backends.
"""

from __future__ import annotations

from math import isfinite
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.cache_formats import CACHE_FORMATS
from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels.arrays import checked_size, floats32, is_float, taken
from nearbank.kernels.backends import backend_named, resolve
from nearbank.kernels.packed import as_format
from nearbank.kernels.store import PAGE

Floats = npt.NDArray[np.float32]


class KVCache:
    """Keys and values of one sequence, `capacity` tokens in each of `layers` layers.

    Integer formats keep one scale and offset (bf16 each) per token and head. For each layer call
    `append` with the new tokens, then `attend` with their queries.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        format: Format | str = "fp32",  # noqa: A002 - the word every user of the package types
        backend: str = "auto",
    ) -> None:
        for name, size in (
            ("layers", layers),
            ("kv_heads", kv_heads),
            ("head_dim", head_dim),
            ("capacity", capacity),
        ):
            checked_size(size, f"KVCache: {name}")
        chosen = as_format(format)
        if chosen.name not in CACHE_FORMATS or chosen.spec not in (chosen.name, chosen.for_cache().spec):
            raise NearbankError(f"KVCache: format '{chosen.spec}'; supported: {', '.join(CACHE_FORMATS)}")
        self.layers, self.kv_heads, self.head_dim, self.capacity = layers, kv_heads, head_dim, capacity
        self.format = chosen.for_cache()
        self.backend = resolve(backend)
        try:
            self.store: Any = self._allocated()
        except MemoryError as error:
            raise NearbankError(
                f"KVCache: no memory for {layers} layers × {capacity} tokens × {kv_heads} heads of {head_dim} in "
                f"{self.format.name}; make the capacity smaller or the format narrower"
            ) from error
        self._lengths = [0] * layers

    @property
    def kind(self) -> str:
        """The cache's name in `nearbank.cache_formats`."""
        return self.format.name

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return int(self.store.nbytes)

    def length(self, layer: int = 0) -> int:
        """Tokens held in a layer."""
        return self._lengths[self._checked_layer(layer)]

    def clear(self) -> None:
        """Forget all tokens; the memory stays."""
        self._lengths = [0] * self.layers

    def copy_from(self, other: KVCache) -> None:
        """Hold what `other`, a cache of the same kind, sizes and format, holds now."""
        if type(other) is not type(self):
            raise NearbankError(f"{type(self).__name__}: a {type(other).__name__} cannot be copied into it")
        copy_pages(self.store, other.store, max(other._lengths))
        self._lengths = list(other._lengths)

    def append(self, layer: int, k: Any, v: Any) -> None:
        """Add k, v [T, kv_heads, head_dim] (floats). Raises when the capacity is exceeded."""
        start = self.length(layer)
        keys, values = self.checked_tokens(k, v)
        if start + len(keys) > self.capacity:
            raise NearbankError(
                f"KVCache: layer {layer} holds {start} tokens and {len(keys)} more exceed its capacity of "
                f"{self.capacity}; make the cache larger or the text shorter"
            )
        if len(keys):
            self._write(layer, start, keys, values)
        self._lengths[layer] = start + len(keys)

    def checked_tokens(self, k: Any, v: Any) -> tuple[Floats, Floats]:
        """k, v [T, kv_heads, head_dim] as float32, if they can be appended."""
        keys = self._checked(taken(k, "k")[0], "k", self.kv_heads)
        values = self._checked(taken(v, "v")[0], "v", self.kv_heads)
        if keys.shape != values.shape:
            raise NearbankError(f"KVCache: k is {list(keys.shape)} but v is {list(values.shape)}")
        self._check_range(keys, "k")
        self._check_range(values, "v")
        return keys, values

    def attend(self, layer: int, q: Any, scale: float | None = None) -> Any:
        """Causal attention of q [T, heads, head_dim], the queries of the last T tokens appended.

        Heads are shared out over the KV heads in order. scale: of the scores, by default 1/√head_dim.
        Returns the context [T, heads, head_dim]: a torch tensor for a torch tensor, else a NumPy array.
        """
        given, handed_back = taken(q, "q")
        queries = self._checked(given, "q", None)
        if queries.shape[1] % self.kv_heads:
            raise NearbankError(f"KVCache: {queries.shape[1]} query heads over {self.kv_heads} KV heads")
        start = self.length(layer) - len(queries)
        if start < 0:
            raise NearbankError(
                f"KVCache: {len(queries)} queries but layer {layer} holds {self.length(layer)} tokens; append first"
            )
        if not np.isfinite(queries).all():
            raise NearbankError("KVCache: q holds NaN or infinity; expected finite queries")
        if queries.size == 0:
            return handed_back(np.empty_like(queries))
        context = self._read(layer, start, queries, self._scale(scale))
        if not np.isfinite(context).all():
            raise NearbankError("KVCache: the scores overflow float32; expected smaller queries or scale")
        return handed_back(context)

    def _allocated(self) -> Any:
        sizes = self.format, self.layers, self.kv_heads, self.head_dim, self.capacity
        return backend_named(self.backend).allocate(*sizes)

    def _write(self, layer: int, start: int, k: Floats, v: Floats) -> None:
        backend_named(self.backend).append(self.store, layer, start, k, v)

    def _read(self, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
        return backend_named(self.backend).attend(self.store, layer, start, q, scale)

    def _scale(self, given: Any) -> np.float32:
        if given is None:
            return np.float32(self.head_dim**-0.5)
        if not isinstance(given, Real) or not isfinite(given):
            raise NearbankError(f"KVCache: scale {given!r}; expected a finite number, or None for 1/√head_dim")
        return np.float32(given)

    def _checked_layer(self, layer: int) -> int:
        if not isinstance(layer, (int, np.integer)) or not 0 <= layer < self.layers:
            raise NearbankError(f"KVCache: layer {layer!r}; this cache has layers 0 to {self.layers - 1}")
        return int(layer)

    def _checked(self, array: npt.NDArray[Any], name: str, heads: int | None) -> Floats:
        expected = f"floats [tokens, {heads or 'heads'}, {self.head_dim}]"
        good = array.ndim == 3 and array.shape[2] == self.head_dim and heads in (None, array.shape[1])
        if not good or not is_float(array):
            raise NearbankError(f"KVCache: {name} is {array.dtype}{list(array.shape)}; expected {expected}")
        return floats32(array)

    def _check_range(self, values: Floats, name: str) -> None:
        """Refuse what the format cannot hold; NaN compares false and is refused too."""
        most = 65504.0 if self.format.name == "fp16" else 1e38
        if values.size and not float(np.abs(values).max()) <= most:
            raise NearbankError(f"KVCache: {name} holds NaN or magnitudes above {most:g}, beyond {self.format.name}")


def copy_pages(mine: Any, theirs: Any, tokens: int) -> None:
    """The pages of the first `tokens` tokens of each layer, from one memory into another of the same sizes."""
    pages = -(-tokens // PAGE)
    for name in ("keys", "values", "key_params", "value_params"):
        to, given = getattr(mine, name), getattr(theirs, name)
        if to.shape != given.shape:
            raise NearbankError(f"KVCache: {name} {list(given.shape)} do not fit a cache of {list(to.shape)}")
        to[:, :pages] = given[:, :pages]

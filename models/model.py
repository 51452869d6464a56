"""A model ready to run: a network, its tokenizer, and the formats and backend it runs with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels import KVCache, WindowedKVCache, thread_count
from nearbank.models.codes_cache import CodesCache
from nearbank.models.execution import Cache, Floats, Linear, Pass, Row, Tokens
from nearbank.models.kv import ChannelFit, fit_for, kv_scheme, name_with
from nearbank.models.plain_cache import PlainCache
from nearbank.models.rounding import AttentionRounding
from nearbank.models.search import Search
from nearbank.models.shape import Shape
from nearbank.models.sketch import describe
from nearbank.trace import ModelDescription


class Network(Protocol):
    """An architecture with its weights."""

    @property
    def shape(self) -> Shape: ...

    @property
    def head(self) -> Linear: ...

    def forward(self, run: Pass, every: bool = False) -> Floats: ...


class EncoderNetwork(Network, Protocol):
    """An architecture whose decoder attends a source that an encoder has read."""

    def encode(self, run: Pass) -> None: ...


class Tokenizer(Protocol):
    """Text to token numbers and back."""

    def encode(self, text: str) -> npt.NDArray[np.int64]: ...

    def decode(self, tokens: Iterable[int]) -> str: ...


@dataclass(frozen=True)
class Model:
    """weights, inputs: formats of the block matrices and their activations; kv: of the cache (`nearbank.models.kv`).

    attention: per layer, how a model that was trained with rounded attention rounds it; its `kv` is a format then.
    card: what the checkpoint says about itself; kv_fit: what a fitted KV scheme rounds with; search: how an
    encoder-decoder's output is searched, None for a decoder.
    """

    network: Network
    tokenizer: Tokenizer | None
    weights: str
    inputs: str
    kv: str
    backend: str
    card: dict[str, Any] = field(default_factory=dict)
    kv_fit: ChannelFit | None = None
    attention: tuple[AttentionRounding, ...] | None = None
    search: Search | None = None

    @property
    def shape(self) -> Shape:
        """Sizes of the network."""
        return self.network.shape

    @property
    def name(self) -> str:
        """The model's name."""
        return self.network.shape.name

    @property
    def threads(self) -> int | None:
        """Threads that the kernels may use; None where that is not ours to say (NumPy's own library, a GPU)."""
        return thread_count() if self.backend == "numba" else None

    def description(self) -> ModelDescription:
        """The shape as a trace's header states it."""
        return describe(self.shape)

    @property
    def kv_needs_fit(self) -> bool:
        """True if its KV cache must be fitted to a text before the model can run."""
        return self.attention is None and kv_scheme(self.kv).needs_fit

    @property
    def kv_name(self) -> str:
        """The KV cache's name in `nearbank.cache_formats`, with what its fit adds."""
        return name_with(kv_scheme(self.kv), self.kv_fit)

    def kv_bytes_per_token(self) -> int:
        """Bytes that one more token adds to the KV cache, all layers."""
        shape = self.shape
        if self.attention is not None:
            return sum(rounding.bytes_per_token(shape.kv_heads, shape.head_dim) for rounding in self.attention)
        return shape.layers * kv_scheme(self.kv).bytes_per_token(shape.kv_heads, shape.head_dim)

    def cache_format(self) -> Format:
        """The format of a cache that rounds every token alike. Raises NearbankError for any other scheme."""
        scheme = kv_scheme(self.kv)
        if scheme.method != "plain" or scheme.needs_fit:
            raise NearbankError(f"KV cache {self.kv}: expected a plain format such as bf16, int8 or int4")
        return scheme.format.for_cache()

    def cache(self, capacity: int) -> Cache:
        """An empty KV cache for `capacity` tokens of one sequence."""
        shape = self.shape
        if self.attention is not None:
            return CodesCache(self.attention, shape.kv_heads, shape.head_dim, capacity)
        sizes = (shape.layers, shape.kv_heads, shape.head_dim, capacity)
        scheme = kv_scheme(self.kv)
        slides = any(window is not None and window < capacity for window in shape.windows)
        fit = fit_for(scheme, self.kv_fit)
        if slides or shape.softcap is not None or (fit is not None and scheme.scheme is None):
            return PlainCache(*sizes, scheme, shape.windows, shape.softcap, fit)
        if scheme.scheme is None:
            return KVCache(*sizes, self.kv, self.backend)
        channels = None if fit is None else fit.channels
        return WindowedKVCache(*sizes, scheme.format, scheme.scheme.name, channels, self.backend)

    def read(self, sources: Sequence[Tokens], rows: list[Row] | None = None) -> list[Cache]:
        """Run the encoder over sources; returns for each the K and V that every decoder layer attends.

        Nothing of a source is ever newer than the rest, so every token is rounded: "int4-past" and the like round
        sources as "int4". K and V inside the encoder are held in the same format, for one layer at a time.
        """
        shape, network = self.shape, cast(EncoderNetwork, self.network)
        if shape.encoder is None:
            raise NearbankError(f"{self.name} has no encoder; give the whole text as the prompt")
        lengths, form = [len(source) for source in sources], kv_scheme(self.kv).format.name
        inner = (shape.encoder.heads, shape.width // shape.encoder.heads)
        scratch = [KVCache(1, *inner, length, form, self.backend) for length in lengths]
        kept = [KVCache(shape.layers, shape.kv_heads, shape.head_dim, n, form, self.backend) for n in lengths]
        network.encode(Pass(np.concatenate(sources), lengths, scratch, rows, sources=kept))
        return list(kept)

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Token numbers of a text."""
        return self._tokenizer().encode(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token numbers."""
        return self._tokenizer().decode(tokens)

    def logits(self, tokens: Iterable[int], source: Iterable[int] | None = None) -> Floats:
        """Logits [T, V] after each of T tokens, computed from an empty cache; an encoder reads `source` first."""
        array = self._checked(tokens)
        if (source is None) != (self.shape.encoder is None):
            raise NearbankError(f"{self.name}: a source is for encoder-decoders, and they need one")
        sources = () if source is None else self.read([self._checked(source)])
        run = Pass(array, [len(array)], [self.cache(len(array))], sources=sources)
        return self.network.forward(run, every=True)

    def _checked(self, tokens: Iterable[int]) -> Tokens:
        array = np.asarray(list(tokens), dtype=np.int64)
        if not 1 <= len(array) <= self.shape.context:
            raise NearbankError(f"{len(array)} tokens; {self.name} takes 1 to {self.shape.context}")
        return array

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise NearbankError(f"{self.name} has no tokenizer; give token numbers instead of text")
        return self.tokenizer

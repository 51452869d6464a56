"""The kernels inside torch: custom operators that `torch.compile` sees through, and modules to drop in.

    layer = TernaryLinear.from_linear(nn.Linear(…))        # or BinaryLinear, QuantizedLinear with any format
    cache = QuantizedKVCache(layers, kv_heads, head_dim, capacity, format="int4")

Inference on the CPU; tensors keep their memory on the way in and out. The only module here that imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn

from nearbank.errors import NearbankError
from nearbank.kernels.arrays import plain
from nearbank.kernels.cache import KVCache
from nearbank.kernels.matmul import Matrix, linear, prepare
from nearbank.kernels.packed import PackedMatrix
from nearbank.kernels.pool import PagePool, PooledKVCache
from nearbank.kernels.window import Channels, WindowedKVCache

# Operators take tensors and numbers only, so prepared weights and caches are known to them by number. The
# modules own them: when the last module goes, so does the entry.
_numbers = count()
_matrices: WeakValueDictionary[int, Matrix] = WeakValueDictionary()
_caches: WeakValueDictionary[int, KVCache] = WeakValueDictionary()
Held = TypeVar("Held", Matrix, KVCache)


def _held(table: WeakValueDictionary[int, Held], number: int) -> Held:
    found = table.get(number)
    if found is None:
        raise NearbankError(f"no module here has number {number}; a graph runs in the process that traced it")
    return found


@torch.library.custom_op("nearbank::linear", mutates_args=())
def linear_op(
    x: Tensor,
    matrix: int,
    out_features: int,
    norm: str = "",
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """x [M, K], after the norm if one is named, times the registered matrix → [M, out_features] float32."""
    y: Tensor = linear(x, _held(_matrices, matrix), "auto", norm or None, gain, shift, epsilon)
    return y


@linear_op.register_fake
def _linear_shape(
    x: Tensor,
    matrix: int,
    out_features: int,
    norm: str = "",
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    return x.new_empty((x.shape[0], out_features), dtype=torch.float32)


@torch.library.custom_op("nearbank::append_attend", mutates_args=("lengths",))
def append_attend_op(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, cache: int, layer: int) -> Tensor:
    """Append k, v [T, kv heads, D] to a layer of the registered cache, then attend q [T, heads, D].

    lengths int64 [layers] receives the tokens held: a compiler that saw no change would leave out a call whose
    result nobody reads, and join two that are alike.
    """
    held = _held(_caches, cache)
    held.append(layer, k, v)
    lengths[layer] = held.length(layer)
    context: Tensor = held.attend(layer, q)
    return context


@append_attend_op.register_fake
def _attend_shape(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, cache: int, layer: int) -> Tensor:
    return torch.empty_like(q, dtype=torch.float32)


class QuantizedLinear(nn.Module):
    """y = norm(x) · Wᵀ + b with packed weights, integer activations per token. Inference only.

    x of any leading shape, float32, float16 or bfloat16; y comes back in x's dtype. `norm`, an RMSNorm or LayerNorm
    over the last dimension, is done in the kernel that rounds x.

    The packed bytes stay beside the repacked ones: `state_dict` has them ("layout", "packed", "scales", "zeros"), and
    a copy or a pickle repacks them for the machine it is on.
    """

    default_format = "int4"
    bias: Tensor | None
    norm_gain: Tensor | None
    norm_bias: Tensor | None

    def __init__(
        self,
        packed: PackedMatrix,
        bias: Tensor | None = None,
        backend: str = "auto",
        norm: nn.RMSNorm | nn.LayerNorm | None = None,
    ) -> None:
        super().__init__()
        self._take_norm(norm, packed.shape[1])
        self.out_features, self.in_features = packed.shape
        self.format, self.backend = packed.format, backend
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self._take(packed)

    def _take_norm(self, norm: nn.RMSNorm | nn.LayerNorm | None, features: int) -> None:
        kinds: dict[type, str] = {nn.RMSNorm: "rms", nn.LayerNorm: "layer"}
        if norm is not None and type(norm) not in kinds:
            raise NearbankError(f"norm is a {type(norm).__name__}; expected torch.nn.RMSNorm or torch.nn.LayerNorm")
        if norm is not None and tuple(norm.normalized_shape) != (features,):
            raise NearbankError(f"norm over {list(norm.normalized_shape)}; expected [{features}], what the layer takes")
        self.norm = kinds.get(type(norm), "")
        epsilon = None if norm is None else norm.eps
        self.epsilon = float(torch.finfo(torch.float32).eps if epsilon is None else epsilon)
        for name, vector in (("gain", getattr(norm, "weight", None)), ("bias", getattr(norm, "bias", None))):
            self.register_buffer(f"norm_{name}", None if vector is None else vector.detach().float())

    def _take(self, packed: PackedMatrix) -> None:
        self.packed, self._matrix, self._number = packed, prepare(packed, self.backend), next(_numbers)
        _matrices[self._number] = self._matrix

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_matrix", "_number")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy or an unpickled layer has weights of its own."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._take(self.packed)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: part for name, part in _parts(self.packed).items()})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        lists = missing_keys, unexpected_keys, error_msgs
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
        found = {name: state_dict[prefix + name] for name in PARTS if prefix + name in state_dict}
        unexpected_keys[:] = [key for key in unexpected_keys if key.removeprefix(prefix) not in PARTS]
        missing_keys.extend(prefix + name for name in _parts(self.packed) if name not in found)
        if "layout" not in found:
            return
        try:
            self._take(_packed_of(self.packed, **found))
        except NearbankError as error:
            error_msgs.append(f"{prefix.removesuffix('.') or type(self).__name__}: {error}")

    @classmethod
    def from_linear(
        cls,
        layer: nn.Linear,
        fmt: str | None = None,
        backend: str = "auto",
        norm: nn.RMSNorm | nn.LayerNorm | None = None,
    ) -> QuantizedLinear:
        """Round the weights of a torch layer to the format by its own quantiser; `norm` comes before it."""
        if not isinstance(layer, nn.Linear) or layer.weight.is_meta:
            kind = f"a {type(layer).__name__}" + (" without weights (on meta)" if isinstance(layer, nn.Linear) else "")
            raise NearbankError(f"layer is {kind}; expected a torch.nn.Linear with its weights")
        packed = PackedMatrix.quantise(layer.weight.detach().cpu(), fmt or cls.default_format)
        return cls(packed, layer.bias, backend, norm)

    def forward(self, x: Tensor) -> Tensor:
        """[…, in_features] → […, out_features]."""
        if not isinstance(x, Tensor):
            raise NearbankError(f"'x' is a {type(x).__name__}; expected a tensor")
        if x.shape[-1:] != (self.in_features,):
            raise NearbankError(f"'x' has {list(x.shape)[-1:]} features; this layer takes {self.in_features}")
        rows = x.reshape(-1, self.in_features)
        norm = self.norm, self.norm_gain, self.norm_bias, self.epsilon
        y: Tensor = linear_op(rows, self._number, self.out_features, *norm)
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"{self.in_features}, {self.out_features}, {self.format.spec}"


PARTS = ("layout", "packed", "scales", "zeros")


def _parts(packed: PackedMatrix) -> dict[str, Tensor]:
    """What a state dict holds of the weights; the layout's letters as bytes, since all there are tensors."""
    layout = np.frombuffer(_layout_of(packed).encode(), np.uint8)
    arrays = zip(PARTS, (layout, packed.packed, packed.scales, packed.zeros), strict=True)
    return {n: torch.from_numpy(plain(a)) for n, a in arrays if a is not None}


def _layout_of(packed: PackedMatrix) -> str:
    return f"{packed.format.spec} {packed.shape[0]} x {packed.shape[1]}"


def _packed_of(like: PackedMatrix, layout: Tensor, **parts: Tensor) -> PackedMatrix:
    """The weights that `_parts` gave, which must have the format and shape of `like`."""
    found = bytes(layout.cpu().numpy()).decode(errors="replace")
    if found != _layout_of(like):
        raise NearbankError(f"the weights are {found}; this layer holds {_layout_of(like)}")
    arrays: dict[str, Any] = {"packed": None} | {name: part.cpu().numpy() for name, part in parts.items()}
    return PackedMatrix(like.format, like.shape, **arrays)


class TernaryLinear(QuantizedLinear):
    """`QuantizedLinear` with weights −1, 0, 1, four to a byte."""

    default_format = "ternary"


class BinaryLinear(QuantizedLinear):
    """`QuantizedLinear` with weights −1, 1, eight to a byte."""

    default_format = "binary"


class QuantizedKVCache(nn.Module):
    """A `KVCache` for torch: `forward(layer, q, k, v)` appends, then attends; tensors [T, heads, head_dim].

    scheme "past" or "kivi", with `channels` or without, makes it a `WindowedKVCache`. `from_pool` makes it a sequence
    of a `PagePool`, and `fork` another that shares its tokens.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        fmt: str = "int4",
        backend: str = "auto",
        scheme: str | None = None,
        channels: Channels | Sequence[Channels] | None = None,
    ) -> None:
        super().__init__()
        if scheme is None and channels is not None:
            raise NearbankError("QuantizedKVCache: channels belong to a scheme; expected scheme='past' or 'kivi'")
        sizes = layers, kv_heads, head_dim, capacity, fmt
        windowed = scheme and WindowedKVCache(*sizes, scheme, channels, backend)
        self._take(windowed or KVCache(*sizes, backend))

    @classmethod
    def from_pool(cls, pool: PagePool) -> QuantizedKVCache:
        """An empty sequence of the pool."""
        return cls._over(pool.sequence())

    def fork(self) -> QuantizedKVCache:
        """One with the same tokens so far: it shares their pages until one of the two writes to them."""
        if not isinstance(self.cache, PooledKVCache):
            raise NearbankError("QuantizedKVCache: a cache of its own does not fork; expected one made by from_pool")
        return self._over(self.cache.fork())

    @classmethod
    def _over(cls, cache: KVCache) -> QuantizedKVCache:
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module._take(cache)
        return module

    def _take(self, cache: KVCache) -> None:
        self.cache = cache
        held = torch.tensor([cache.length(layer) for layer in range(cache.layers)])
        self.register_buffer("lengths", held, persistent=False)
        self._register()

    def _register(self) -> None:
        self._number = next(_numbers)
        _caches[self._number] = self.cache

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy or an unpickled cache holds tokens of its own."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._register()

    def forward(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The context [T, heads, head_dim], in q's dtype."""
        context: Any = append_attend_op(q, k, v, self.lengths, self._number, layer)
        result: Tensor = context.to(q.dtype)
        return result

"""Two-dimensional quantisation of the KV cache (WKVQuant, arXiv 2402.12065): its static half, fitted to a text.

Each channel is shifted to the middle of its range and divided by range^a before tokens are rounded. The paper learns
shift and scale by gradient, with a mean-absolute-error loss taken through the next five blocks. Here only the
exponents a, one for K and one for V of each layer, are searched on a grid, layer by layer, with the mean absolute
error of the logits, that is, through all following blocks. a = 0 leaves a channel's scale alone, a = 1 gives every
channel the same range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from nearbank.errors import NearbankError
from nearbank.models.execution import Floats, Pass, Tokens
from nearbank.models.kv import ChannelFit, kv_scheme
from nearbank.models.model import Model
from nearbank.models.plain_cache import PlainCache

EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
Progress = Callable[[int, int], None]  # (trials done, trials)


@dataclass(frozen=True)
class _Ranges:
    """Middle and half-width of every channel [layers, kv_heads, head_dim] over a text."""

    middle: Floats
    half: Floats

    def scales(self, exponents: tuple[float, ...]) -> Floats:
        """half^a per layer, 1 where a channel never varies."""
        powers = np.array(exponents, np.float32)[:, None, None]
        return np.where(self.half > 0, self.half**powers, 1).astype(np.float32)


def fit_channels(
    model: Model, text: str, kv: str = "int4-wkv", windows: int = 4, progress: Progress | None = None
) -> Model:
    """The model with its KV cache rounded as `kv` says, channels fitted on the first `windows` contexts of `text`."""
    scheme = kv_scheme(kv)
    if not scheme.needs_fit:
        raise NearbankError(f"KV cache '{kv}' has nothing to fit; choose one that ends in -2d or -wkv")
    if model.shape.encoder is not None:
        raise NearbankError(f"KV cache '{kv}' is fitted to decoders, and {model.name} has an encoder; choose another")
    parts = calibration_parts(model, text, windows)
    exact = [_run(model, part, "fp32") for part in parts]
    ranges = _ranges([cache for _, cache in exact], model.shape.layers)
    fit = _search(replace(model, kv=kv), ranges, parts, [logits for logits, _ in exact], progress)
    return replace(model, kv=kv, kv_fit=fit)


def calibration_parts(model: Model, text: str, windows: int) -> list[Tokens]:
    """The first `windows` contexts of a text, side by side, the last one shorter."""
    tokens, length = model.encode(text), model.shape.context
    parts = [tokens[i : i + length] for i in range(0, min(len(tokens), windows * length), length)]
    if not parts or len(parts[0]) < 2:
        raise NearbankError(f"the calibration text is {len(tokens)} tokens; expected at least 2")
    return parts


def _run(model: Model, tokens: Tokens, kv: str) -> tuple[Floats, PlainCache]:
    """Logits [T, V] of one window, and its cache."""
    shape = model.shape
    sizes = (shape.layers, shape.kv_heads, shape.head_dim, len(tokens))
    cache = PlainCache(*sizes, kv_scheme(kv), shape.windows, shape.softcap, model.kv_fit)
    return model.network.forward(Pass(tokens, [len(tokens)], [cache]), every=True), cache


def _ranges(caches: list[PlainCache], layers: int) -> tuple[_Ranges, _Ranges]:
    """Of keys and of values, over all caches."""
    return _ranges_of(caches, layers, 0), _ranges_of(caches, layers, 1)


def _ranges_of(caches: list[PlainCache], layers: int, kind: int) -> _Ranges:
    held = [np.concatenate([cache.held(layer)[kind] for cache in caches], axis=1) for layer in range(layers)]
    low = np.stack([part.min(axis=1) for part in held])
    high = np.stack([part.max(axis=1) for part in held])
    return _Ranges((low + high) / 2, (high - low) / 2)


def _search(
    model: Model, ranges: tuple[_Ranges, _Ranges], parts: list[Tokens], exact: list[Floats], progress: Progress | None
) -> ChannelFit:
    """The best exponent of each layer's K, then of its V, the others held still."""
    layers = model.shape.layers
    chosen = [[0.0] * layers, [0.0] * layers]
    for done, (layer, kind) in enumerate(_order(layers)):
        trials = {}
        for exponent in EXPONENTS:
            chosen[kind][layer] = exponent
            trials[exponent] = _distance(replace(model, kv_fit=_fit(ranges, chosen)), parts, exact)
        chosen[kind][layer] = min(trials, key=lambda exponent: trials[exponent])
        if progress is not None:
            progress(done + 1, 2 * layers)
    return _fit(ranges, chosen)


def _order(layers: int) -> Iterator[tuple[int, int]]:
    return ((layer, kind) for layer in range(layers) for kind in (0, 1))


def _fit(ranges: tuple[_Ranges, _Ranges], exponents: list[list[float]]) -> ChannelFit:
    keys, values = ranges
    return ChannelFit(keys.middle, keys.scales(tuple(exponents[0])), values.middle, values.scales(tuple(exponents[1])))


def _distance(model: Model, parts: list[Tokens], exact: list[Floats]) -> float:
    """Mean absolute difference of the logits from the exact ones."""
    errors = [np.abs(_run(model, part, model.kv)[0] - right).mean() for part, right in zip(parts, exact, strict=True)]
    return float(np.mean(errors))


def save_fit(path: Path, fit: ChannelFit) -> None:
    """Write a fit as safetensors."""
    try:
        tensors = {part.name: getattr(fit, part.name) for part in fields(fit)}
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    except (OSError, SafetensorError) as error:
        raise NearbankError(f"{path}: cannot write the fit ({error})") from error


def load_fit(path: Path, model: Model) -> ChannelFit:
    """Read a fit and check that it is this model's."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise NearbankError(f"{path}: no fit of a KV cache; expected a file that save_fit wrote") from error
    shape = (model.shape.layers, model.shape.kv_heads, model.shape.head_dim)
    shapes = dict.fromkeys(("key_shift", "key_scale", "value_shift", "value_scale"), shape)
    fed = {name: (*shape, shape[-1]) for name in ("key_feedback", "value_feedback") if name in tensors}
    for name, expected in (shapes | fed).items():
        found = tensors.get(name)
        if found is None or found.shape != expected or found.dtype != np.float32:
            given = "missing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise NearbankError(f"{path}: tensor {name} is {given}; {model.name} needs float32{list(expected)}")
    return ChannelFit(**{name: tensors[name] for name in shapes | fed})

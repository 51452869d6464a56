"""WKVQuant's static half learned by gradient (arXiv 2402.12065), in torch, for decoders of GPT-2's shape.

Every channel of K and V has a shift and a scale of its own. Layer by layer they start from the best power of the
channel's range (as in `nearbank.models.kv_fit`) and follow the gradient of the mean absolute error of the stream after
the next five blocks: the layer's cache is rounded, its input comes from the layers already fitted, the blocks behind it
and the target are exact. Rounding passes gradients straight through; scale and offset of a token pass them as they are
computed. Attention inside is the scheme's: with past-only quantisation a token sees itself exactly.

The result is a `ChannelFit` like a searched one: saved, loaded and run alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from nearbank.errors import NearbankError
from nearbank.formats import from_bf16
from nearbank.kernels.reference.feedback import rounded_with_feedback
from nearbank.kernels.reference.quantise import ceil_bf16, floor_bf16
from nearbank.models import gpt
from nearbank.models.execution import Linear
from nearbank.models.gptq import float_weights
from nearbank.models.kv import ChannelFit, KvScheme, kv_scheme
from nearbank.models.kv_fit import EXPONENTS, calibration_parts
from nearbank.models.model import Model
from nearbank.models.training.straight_through import fake_int8

BLOCKS = 5  # the error is taken this many blocks on, the layer's own included
WINDOWS_AT_ONCE = 8
Progress = Callable[[int, int], None]  # (steps done, steps)
Multiply = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Learning:
    """How channels are learned. windows: contexts of calibration text; steps: per layer; batch: windows a step."""

    windows: int = 64
    steps: int = 240
    batch: int = 8
    lr: float = 0.04
    seed: int = 0


@dataclass(frozen=True)
class Channels:
    """One layer's K or V: middle and half-width of each channel, and what is learned, all [heads, 1, head_dim]."""

    middle: torch.Tensor
    half: torch.Tensor
    moved: torch.Tensor  # the shift's distance from the middle, in half-widths
    log_scale: torch.Tensor

    @property
    def shift(self) -> torch.Tensor:
        return self.middle + self.half * self.moved

    def rounded(self, x: torch.Tensor, top: int) -> torch.Tensor:
        """x [B, heads, T, E] as the cache gives it back: `kv.rounded` between shift and scale, with gradients."""
        scale = self.log_scale.exp()
        y = (x - self.shift) / scale
        low = _through(y.amin(-1, keepdim=True), floor_bf16)
        step = _through(((y.amax(-1, keepdim=True) - low) / top).clamp_min(1e-20), ceil_bf16)
        ratio = (y - low) / step
        codes = ratio + (ratio.round().clamp(0, top) - ratio).detach()
        return (low + step * codes) * scale + self.shift


@dataclass(frozen=True)
class Fed:
    """One layer's K or V with errors fed back, in the cache's own arithmetic; shift and scale [heads, 1, head_dim],
    feedback [heads, head_dim, head_dim]. Nothing is learned through it."""

    shift: np.ndarray
    scale: np.ndarray
    feedback: np.ndarray

    def rounded(self, x: torch.Tensor, top: int) -> torch.Tensor:
        heads = x.detach().transpose(0, 1)
        flat = (heads.flatten(1, 2).numpy() - self.shift) / self.scale
        found = rounded_with_feedback(flat, self.feedback, top) * self.scale + self.shift
        return torch.from_numpy(found).view(heads.shape).transpose(0, 1)


class Rounder(Protocol):
    """What gives K or V [B, heads, T, E] back as codes 0 … top hold them."""

    def rounded(self, x: torch.Tensor, top: int) -> torch.Tensor: ...


def _through(x: torch.Tensor, to_bits: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
    """x as bfloat16 holds it; the gradient is x's own."""
    held = torch.from_numpy(from_bf16(to_bits(x.detach().numpy())))
    return x + (held - x).detach()


@dataclass(frozen=True)
class Cached:
    """What rounds a layer's K and V, and the scheme."""

    keys: Rounder
    values: Rounder
    scheme: KvScheme


@dataclass(frozen=True)
class Learned(Cached):
    """A layer whose channels are learned."""

    keys: Channels
    values: Channels


@dataclass(frozen=True)
class Block:
    """One block with its weights as torch multiplies them."""

    block: gpt.Block
    heads: int
    qkv: Multiply
    proj: Multiply
    fc1: Multiply
    fc2: Multiply

    def heads_of(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, T, D] → queries, keys and values [3, B, H, T, E]."""
        batch, length, width = x.shape
        qkv = self.qkv(_norm(x, self.block.ln_1)).view(batch, length, 3, self.heads, width // self.heads)
        return qkv.permute(2, 0, 3, 1, 4)

    def __call__(self, x: torch.Tensor, cached: Cached | None = None) -> torch.Tensor:
        q, k, v = self.heads_of(x)
        mixed = attend(q, k, v, cached).transpose(1, 2).reshape(x.shape)
        x = x + self.proj(mixed)
        wide = functional.gelu(self.fc1(_norm(x, self.block.ln_2)), approximate="tanh")
        return x + self.fc2(wide)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cached: Cached | None) -> torch.Tensor:
    """Causal attention of q, k, v [B, H, T, E], K and V as the cache holds them."""
    length, factor = q.shape[2], 1 / math.sqrt(q.shape[3])
    ahead, itself = torch.ones(length, length, dtype=torch.bool).triu(1), torch.eye(length, dtype=torch.bool)
    if cached is None:
        return (q @ k.mT * factor).masked_fill(ahead, -math.inf).softmax(-1) @ v
    top = cached.scheme.format.for_cache().high
    keys, values = cached.keys.rounded(k, top), cached.values.rounded(v, top)
    scores = q @ keys.mT * factor
    if cached.scheme.method not in ("wkv", "past"):
        return scores.masked_fill(ahead, -math.inf).softmax(-1) @ values
    shares = torch.where(itself, q @ k.mT * factor, scores).masked_fill(ahead, -math.inf).softmax(-1)
    return shares @ values + shares.diagonal(dim1=-2, dim2=-1)[..., None] * (v - values)


def _norm(x: torch.Tensor, norm: gpt.Norm) -> torch.Tensor:
    weight, bias = torch.from_numpy(norm.weight), torch.from_numpy(norm.bias)
    return functional.layer_norm(x, x.shape[-1:], weight, bias, norm.eps)


def _multiply(linear: Linear) -> Multiply:
    weight = torch.from_numpy(float_weights(linear))
    bias = None if linear.bias is None else torch.from_numpy(linear.bias)
    exact = linear.inputs == "fp32"
    return lambda x: functional.linear(x if exact else fake_int8(x), weight, bias)


def blocks_of(model: Model) -> list[Block]:
    """The model's blocks in torch."""
    network = model.network
    if not isinstance(network, gpt.Gpt):
        raise NearbankError(f"channels are learned for GPT-2's shape only; {model.name} can be fitted by fit_channels")
    if model.attention is not None or model.inputs not in ("fp32", "int8") or any(_odd(b) for b in network.blocks):
        raise NearbankError(f"channels are learned under fp32 or int8 activations; {model.name} has others")
    heads = model.shape.heads
    return [Block(b, heads, *(_multiply(x) for x in (b.qkv, b.proj, b.fc1, b.fc2))) for b in network.blocks]


def _odd(block: gpt.Block) -> bool:
    return any(linear.rounding is not None for linear in (block.qkv, block.proj, block.fc1, block.fc2))


def learn_channels(
    model: Model, text: str, kv: str = "int4-wkv", learning: Learning | None = None, progress: Progress | None = None
) -> Model:
    """The model with its KV cache rounded as `kv` says, channels learned on the first contexts of `text`."""
    scheme, how = kv_scheme(kv), learning or Learning()
    if not scheme.needs_fit:
        raise NearbankError(f"KV cache '{kv}' has nothing to fit; choose one that ends in -2d or -wkv")
    blocks, stream = blocks_of(model), embedded(model, text, how.windows)
    random = np.random.default_rng(how.seed)
    exact, fitted = stream, []
    for layer, block in enumerate(blocks):
        task = _Task(blocks[layer : layer + BLOCKS], stream, exact, scheme, how)
        cached = task.learned(random, None if progress is None else _counted(progress, layer, len(blocks), how.steps))
        fitted.append(cached)
        with torch.no_grad():
            exact, stream = _in_batches(block, exact), _in_batches(partial(block, cached=cached), stream)
    return replace(model, kv=kv, kv_fit=_as_fit(fitted))


def torch_logits(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of windows of tokens [B, T] from empty caches: many windows at once, for measuring.

    The cache is fp32, a plain or past-only integer one, or a fitted one.
    """
    network, blocks = model.network, blocks_of(model)
    assert isinstance(network, gpt.Gpt)
    table, places = torch.from_numpy(network.wte), torch.from_numpy(network.wpe)
    x = table[tokens] + places[: tokens.shape[1]]
    for block, cached in zip(blocks, _cached(model), strict=True):
        x = _in_batches(partial(block, cached=cached), x)
    return logits_of(model, x)


def logits_of(model: Model, x: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of the stream x [B, T, D] after the last block."""
    network = model.network
    assert isinstance(network, gpt.Gpt)
    return functional.linear(_norm(x, network.ln_f), torch.from_numpy(float_weights(network.head)))


def _cached(model: Model) -> list[Cached | None]:
    """How each layer's cache rounds; None where it does not."""
    scheme, shape = kv_scheme(model.kv), model.shape
    if scheme.name == "fp32":
        return [None] * shape.layers
    if scheme.format.is_float or scheme.method == "kivi":
        raise NearbankError(f"KV cache '{model.kv}' is not rounded in torch; choose fp32, int4, int4-past and the like")
    zero = np.zeros((shape.layers, shape.kv_heads, shape.head_dim), np.float32)
    if scheme.needs_fit and model.kv_fit is None:
        raise NearbankError(f"KV cache '{model.kv}' needs a fit; make one with learn_channels")
    fit = model.kv_fit if scheme.needs_fit and model.kv_fit else ChannelFit(zero, zero + 1, zero, zero + 1)
    return [
        Cached(_given(*fit.keys(i), fit.feedback("keys", i)), _given(*fit.values(i), fit.feedback("values", i)), scheme)
        for i in range(shape.layers)
    ]


def _given(shift: np.ndarray, scale: np.ndarray, feedback: np.ndarray | None) -> Rounder:
    """Channels with this shift and scale."""
    if feedback is not None:
        return Fed(shift, scale, feedback)
    middle = torch.from_numpy(shift)
    zero = torch.zeros_like(middle)
    return Channels(middle, zero, zero, torch.from_numpy(scale).log())


def _counted(progress: Progress, layer: int, layers: int, steps: int) -> Callable[[int], None]:
    return lambda done: progress(layer * steps + done, layers * steps)


def embedded(model: Model, text: str, windows: int) -> torch.Tensor:
    """The stream [B, T, D] before the first block; a last window that is shorter is left out unless it is alone."""
    parts = calibration_parts(model, text[: 16 * windows * model.shape.context], windows)
    whole = [part for part in parts if len(part) == len(parts[0])]
    network = model.network
    assert isinstance(network, gpt.Gpt)
    return torch.from_numpy(np.stack([network.wte[part] + network.wpe[: len(part)] for part in whole]))


def _in_batches(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return torch.cat([function(part) for part in torch.split(x, WINDOWS_AT_ONCE)])


def _through_all(blocks: Sequence[Block], x: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        x = block(x)
    return x


@dataclass(frozen=True)
class _Task:
    """One layer: the blocks that see its error, its input with earlier layers rounded, and the exact one."""

    blocks: Sequence[Block]
    stream: torch.Tensor  # [B, T, D]
    exact: torch.Tensor
    scheme: KvScheme
    how: Learning

    def learned(self, random: np.random.Generator, progress: Callable[[int], None] | None) -> Learned:
        """The start, or what gradient descent makes of it where that is nearer over the whole calibration text."""
        with torch.no_grad():
            targets = _in_batches(lambda x: _through_all(self.blocks, x), self.exact)
            start = self._start(targets)
        cached = _learnable(start)
        parameters = [p for c in (cached.keys, cached.values) for p in (c.moved, c.log_scale)]
        optimiser = torch.optim.Adam(parameters, lr=self.how.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.how.steps)
        for step, rows in enumerate(self._batches(random)):
            optimiser.zero_grad()
            self._error(cached, rows, targets).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            if progress is not None:
                progress(step + 1)
        return min((start, cached), key=lambda one: self._whole_error(one, targets))

    def _batches(self, random: np.random.Generator) -> Iterator[torch.Tensor]:
        size = min(self.how.batch, len(self.stream))
        for _ in range(self.how.steps):
            yield torch.from_numpy(random.choice(len(self.stream), size, replace=False))

    def _error(self, cached: Cached, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean absolute error of the stream after the blocks."""
        x = _through_all(self.blocks[1:], self.blocks[0](self.stream[rows], cached))
        return (x - targets[rows]).abs().mean()

    @torch.no_grad()
    def _whole_error(self, cached: Cached, targets: torch.Tensor) -> float:
        rows = torch.split(torch.arange(len(self.stream)), WINDOWS_AT_ONCE)
        return sum(float(self._error(cached, part, targets)) * len(part) for part in rows)

    def _start(self, targets: torch.Tensor) -> Learned:
        """Middles, and the best power of the ranges for K and for V, judged on a few windows."""
        some = torch.arange(min(self.how.batch, len(self.stream)))
        _, k, v = self.blocks[0].heads_of(self.exact)
        starts = [Learned(_channels(k, a), _channels(v, b), self.scheme) for a, b in product(EXPONENTS, repeat=2)]
        return min(starts, key=lambda one: float(self._error(one, some, targets)))


def _channels(x: torch.Tensor, exponent: float) -> Channels:
    """x [B, H, T, E] → channels divided by half-width^exponent."""
    low, high = x.amin((0, 2))[:, None], x.amax((0, 2))[:, None]
    half = (high - low) / 2
    scale = torch.where(half > 0, half, 1).log() * exponent
    return Channels((low + high) / 2, half, torch.zeros_like(half), scale)


def _learnable(start: Learned) -> Learned:
    def copied(channels: Channels) -> Channels:
        moved, log_scale = (x.clone().requires_grad_() for x in (channels.moved, channels.log_scale))
        return replace(channels, moved=moved, log_scale=log_scale)

    return replace(start, keys=copied(start.keys), values=copied(start.values))


def _as_fit(layers: Sequence[Learned]) -> ChannelFit:
    def stacked(parts: list[torch.Tensor]) -> np.ndarray:
        return np.ascontiguousarray(torch.stack(parts).detach().numpy()[:, :, 0])

    keys, values = [c.keys for c in layers], [c.values for c in layers]
    shifts = [stacked([c.shift for c in part]) for part in (keys, values)]
    scales = [stacked([c.log_scale.exp() for c in part]) for part in (keys, values)]
    return ChannelFit(shifts[0], scales[0], shifts[1], scales[1])

"""The same arithmetic without a memory: the model's own forward pass, rounded and added up as a machine does.

Two kinds of sums stand behind one interface. `BankSums` adds products in the order of a plan's MAC commands: logits
must then equal those of the mapped programs bit for bit. `KernelSums` adds them in the kernels' order, with the
kernels' functions: what differs is the order of float32 additions, so tokens must be equal, and logits nearly.

Either way numbers are rounded where the machine rounds them: inputs of 16-bit matrices, queries (times 1/√d) and
probabilities (times the scales of V) to bf16, on their way to the global buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nearbank.formats import format_named, to_bf16
from nearbank.kernels import KVCache
from nearbank.kernels.reference.attention import rows_of
from nearbank.kernels.reference.exponential import exp_non_positive
from nearbank.kernels.reference.lanes import lane_dot, lane_sum, padded
from nearbank.kernels.store import PAGE, pack_rows
from nearbank.mapping import Plan
from nearbank.mapping.asic_arithmetic import EXACT, AsicArithmetic, bf16, signed_zero
from nearbank.mapping.bank_arithmetic import Singles, read_out, tree_sum
from nearbank.mapping.bank_scales import rounded_scales
from nearbank.mapping.cache_placement import CachePlacement
from nearbank.mapping.matmul import label_of
from nearbank.mapping.matrix_placement import MatrixPlacement
from nearbank.mapping.target import ColumnUse
from nearbank.models import Model
from nearbank.models.execution import Floats, Linear, Pass
from nearbank.models.functions import gelu_tanh
from nearbank.models.gpt import Norm
from nearbank.models.kv import kv_scheme
from nearbank.proof.bridge import BACKEND, network_of, unpacked
from nearbank.proof.folding import context_scales
from nearbank.proof.twin_cache import ExactTwin


class Sums(Protocol):
    """How products are added up."""

    @property
    def arithmetic(self) -> AsicArithmetic:
        """What is computed beside the memory."""

    def total(self, terms: Singles) -> Singles:
        """Sums over the last axis, beside the memory."""

    def scores(self, q: Singles, keys: Singles, exact: bool = False) -> Singles:
        """q [D] · keys [n, D] → [n]; `exact`: keys of a window that is kept beside the rounded past."""

    def context(self, weights: Singles, values: Singles, exact: bool = False) -> Singles:
        """weights [n] · values [n, D] → [D]."""

    def matrix(self, weight: Linear, x: Floats) -> Floats:
        """x [M, K] → [M, N], without bias."""


@dataclass(frozen=True)
class KernelSums:
    """The kernels' order and functions."""

    arithmetic: AsicArithmetic = field(
        default=AsicArithmetic("kernels", exp_non_positive, EXACT.divide, EXACT.over_root)
    )

    def total(self, terms: Singles) -> Singles:
        return lane_sum(terms)

    def scores(self, q: Singles, keys: Singles, exact: bool = False) -> Singles:
        return lane_dot(q, keys)

    def context(self, weights: Singles, values: Singles, exact: bool = False) -> Singles:
        return np.asarray(np.cumsum(weights[:, None] * values, axis=0)[-1], dtype=np.float32)

    def matrix(self, weight: Linear, x: Floats) -> Floats:
        return _without_bias(weight)(x if weight.inputs == "int8" else bf16(x))


def _without_bias(weight: Linear) -> Linear:
    return Linear(weight.name, weight.matrix, weight.inputs)


@dataclass(frozen=True)
class BankSums:
    """The order of a plan's MAC commands, accumulators and chunks, and the ASIC's functions."""

    plan: Plan
    arithmetic: AsicArithmetic = EXACT

    def total(self, terms: Singles) -> Singles:
        return tree_sum(terms)

    def scores(self, q: Singles, keys: Singles, exact: bool = False) -> Singles:
        return self._floats(self._cache(exact).use, [len(q)], q, keys)

    def _cache(self, exact: bool) -> CachePlacement:
        cache = self.plan.placement.cache
        return cache.window if exact and cache.window else cache

    def context(self, weights: Singles, values: Singles, exact: bool = False) -> Singles:
        cache = self._cache(exact)
        blocks = [cache.v_block] * -(-len(weights) // cache.v_block)
        return self._floats(cache.use, blocks, weights, values.T)

    def matrix(self, weight: Linear, x: Floats) -> Floats:
        placed = next(m for m in self.plan.placement.matrices if label_of(m.name) == label_of(weight.name))
        widths = [chunks.width for chunks in placed.chunks for _ in range(chunks.count)]
        if placed.scaled_in_bank:
            return self._scaled(weight, placed, widths, x)
        if placed.integer_inputs:
            return self._integers(weight, widths, x)
        rows = [self._floats(placed.use, widths, row, unpacked(weight).values) for row in bf16(x)]
        return np.stack(rows)

    def _floats(self, use: ColumnUse, widths: Sequence[int], x: Singles, weights: npt.NDArray[Any]) -> Singles:
        """x [K] · weights [N, K]: in each chunk a tree over the lanes of every command, then command after command."""
        y = np.zeros(len(weights), np.float32)
        first = 0
        for width in widths:
            part = slice(first, first + width)
            terms = _in_lanes(weights[:, part].astype(np.float32) * x[part], use)
            sums = np.add.accumulate(tree_sum(terms), axis=1)[:, -1]
            y += read_out(sums.astype(np.float64), self.plan.target.accumulator_bytes).astype(np.float32)
            first += width
        return y

    def _integers(self, weight: Linear, widths: Sequence[int], x: Floats) -> Floats:
        """Exact sums over each chunk (and group of scales), read out, scaled and added up."""
        codes, scales = self.arithmetic.quantise(x)
        state = unpacked(weight)
        grouped = weight.matrix.format.scaling.per == "group"
        edges = {part.start for part in state.groups} if grouped else {0}
        edges |= {sum(widths[:i]) for i in range(len(widths))}
        starts = sorted(edges)
        y = np.zeros((len(x), len(state.values)), np.float32 if grouped else np.float64)
        for first, end in zip(starts, [*starts[1:], x.shape[1]], strict=True):
            sums = self._exact(weight, codes[:, first:end], slice(first, end))
            if grouped:
                group = next(i for i, part in enumerate(state.groups) if part.start <= first < part.stop)
                y += sums.astype(np.float32) * (scales[:, None] * state.scales[:, group])
            else:
                y += sums
        return y if grouped else np.asarray(y.astype(np.float32) * (scales[:, None] * state.scales[:, 0]))

    def _scaled(self, weight: Linear, placed: MatrixPlacement, widths: Sequence[int], x: Floats) -> Floats:
        """Groups scaled one after another in float32, read out after each chunk; then the scale of the inputs."""
        codes, scales = self.arithmetic.quantise(x)
        state = unpacked(weight)
        bank = next(chunks.bank for chunks in placed.chunks if chunks.bank)
        rounded = rounded_scales(bank.format, state.scales)
        grouped = weight.matrix.format.scaling.per == "group"
        y = np.zeros((len(x), len(state.values)), np.float32)
        first = 0
        for width in widths:
            total, end = np.zeros_like(y), first + width
            parts = [p for p in state.groups if first <= p.start < end] if grouped else [slice(first, end)]
            for part in parts:
                exact = codes[:, part].astype(np.float64) @ state.values[:, part].astype(np.float64).T
                total += exact.astype(np.float32) * rounded[:, list(state.groups).index(part) if grouped else 0]
            y += read_out(total.astype(np.float64), self.plan.target.accumulator_bytes).astype(np.float32)
            first = end
        return np.asarray(y * scales[:, None])

    def _exact(self, weight: Linear, codes: npt.NDArray[np.int8], part: slice) -> npt.NDArray[np.float64]:
        levels = unpacked(weight).values[:, part].astype(np.float64)
        return read_out(codes.astype(np.float64) @ levels.T, self.plan.target.accumulator_bytes)


def _in_lanes(terms: Singles, use: ColumnUse) -> Singles:
    """[N, K] → [N, MAC commands, lanes], zeros at the end of the last column and of short steps."""
    lanes, steps = use.lanes, use.steps // use.serial
    columns = -(-terms.shape[1] // use.values)
    room = np.zeros((len(terms), columns, steps * lanes), np.float32)
    padded = np.zeros((len(terms), columns * use.values), np.float32)
    padded[:, : terms.shape[1]] = terms
    room[:, :, : use.values] = padded.reshape(len(terms), columns, use.values)
    return room.reshape(len(terms), columns * steps, lanes)


class TwinCache(KVCache):
    """The kernels' cache, attended in a machine's arithmetic."""

    def __init__(self, model: Model, capacity: int, sums: Sums) -> None:
        shape = model.shape
        super().__init__(shape.layers, shape.kv_heads, shape.head_dim, capacity, kv_scheme(model.kv).format, BACKEND)
        self._sums = sums

    def _write(self, layer: int, start: int, k: Floats, v: Floats) -> None:
        """As the kernels write, but rounded by the ASIC's arithmetic where that is a machine's."""
        if isinstance(self._sums, KernelSums) or self.format.is_float:
            super()._write(layer, start, k, v)
            return
        s = self.store
        for new, rows, params in ((k, s.keys, s.key_params), (v, s.values, s.value_params)):
            self._write_rounded(new, rows[layer], params[layer], start)

    def _write_rounded(self, new: Floats, rows: npt.NDArray[Any], params: npt.NDArray[np.uint16], start: int) -> None:
        fmt = format_named(self.format.name)
        for t, token in enumerate(new):
            page, slot = divmod(start + t, PAGE)
            rounded = self._sums.arithmetic.round_token(fmt, token)
            codes = (rounded.codes.astype(np.int16) + signed_zero(fmt)).astype(np.uint8)
            wide = padded(codes, rows.shape[-1] * self.format.values_per_word)
            rows[page, :, slot] = pack_rows(wide, self.format)
            params[page, :, slot] = to_bf16(np.stack([rounded.scales, rounded.offsets], axis=1))

    def _read(self, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
        tokens, heads, _ = q.shape
        out = np.zeros_like(q)
        for h in range(heads):
            keys, values = (self._held(kind, layer, h * self.kv_heads // heads, start + tokens) for kind in (0, 1))
            for t in range(tokens):
                n = start + t + 1
                out[t, h] = self._attend(bf16(q[t, h] * scale), [part[:n] for part in keys], [p[:n] for p in values])
        return out

    def _held(self, kind: int, layer: int, head: int, end: int) -> tuple[Singles, Singles, Singles]:
        """Keys (0) or values (1) of a head: levels [end, D] as the banks hold them, scales and offsets [end]."""
        s = self.store
        rows, params = ((s.keys, s.key_params), (s.values, s.value_params))[kind]
        codes, pairs = rows_of(s, rows, params, layer, head, end)
        zero = np.float32(signed_zero(format_named(s.format.name)))
        return codes - zero, pairs[:, 0], pairs[:, 1] + zero * pairs[:, 0]

    def _attend(self, q: Singles, keys: list[Singles], values: list[Singles]) -> Singles:
        sums = self._sums
        scores = sums.scores(q, keys[0]) * keys[1]
        scores = scores + sums.total(q) * keys[2]
        weights = sums.arithmetic.exp(scores - scores.max())
        context = sums.context(bf16(weights * values[1]), values[0])
        return sums.arithmetic.divide(context + sums.total(weights * values[2]), sums.total(weights))


@dataclass
class TwinPass(Pass):
    """A pass whose matrix products are a `Sums`'s; norms and activations too, where they are a machine's."""

    sums: Sums = field(default_factory=KernelSums)
    scales: Sequence[Floats] = ()  # of each layer's context product

    def matmul(self, weight: Linear, x: Floats) -> Floats:
        y = self.sums.matrix(weight, x)
        return y if weight.bias is None else y + weight.bias

    def attend(
        self, name: str, q: Floats, k: Floats, v: Floats, scale: float | None = None, window: int | None = None
    ) -> Floats:
        mixed = super().attend(name, q, k, v, scale, window)
        return mixed * self.scales[self._inner].reshape(mixed.shape[1:]) if self.scales else mixed

    def norm(self, name: str, function: Callable[..., Floats], *arguments: Any) -> Floats:
        if isinstance(self.sums, KernelSums):
            return function(*arguments)
        assert isinstance(function, Norm)
        return self.sums.arithmetic.norm(arguments[0], function.weight, function.bias, function.eps)

    def activation(self, name: str, function: Callable[..., Floats], *arguments: Any) -> Floats:
        if isinstance(self.sums, KernelSums):
            return function(*arguments)
        assert function is gelu_tanh
        return self.sums.arithmetic.gelu(arguments[0])


def twin_logits(model: Model, tokens: Sequence[int], sums: Sums) -> Floats:
    """Logits [T, V] after each of T tokens; a channel fit has been folded (`nearbank.proof.folding`)."""
    array = np.asarray(tokens, dtype=np.int64)
    plain = kv_scheme(model.kv).method in ("plain", "2d")
    cache = TwinCache(model, len(array), sums) if plain else ExactTwin(model, len(array), sums)
    run = TwinPass(array, [len(array)], [cache], sums=sums, scales=context_scales(model))
    return network_of(model).forward(run, every=True)

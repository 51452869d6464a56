"""The ASIC's side of attention when programs are executed: what it sends, receives and computes, head by head.

K and V are rounded to the cache's format as the kernels round them. Queries, times 1/√d, and probabilities, times the
scales of V, are rounded to bf16 on their way to the global buffer; scores come from the banks, and get K's scales and
offsets; V's offsets are added to the context product, and the division comes last. All of it in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import format_named, from_bf16, to_bf16
from nearbank.mapping.asic_arithmetic import EXACT, AsicArithmetic, signed_zero
from nearbank.mapping.bank_arithmetic import Bytes, Floats, Singles, tree_sum
from nearbank.mapping.cache_placement import CachePlacement
from nearbank.mapping.reach import Span, scale_bursts
from nearbank.mapping.sweep import CACHE_SCALES, KEYS, RESULT, VALUES, VECTOR
from nearbank.mapping.target import Target
from nearbank.units import ceil_div

Masked = tuple[Bytes, Bytes]
Reals = npt.NDArray[np.floating[Any]]


class CachedAttention:
    """Attention of one token in one layer. Call `begin`, execute the program's part with the rest, take `result`."""

    def __init__(self, cache: CachePlacement, target: Target, arithmetic: AsicArithmetic = EXACT) -> None:
        self.cache, self.target, self.arithmetic = cache, target, arithmetic
        self.format = format_named(cache.format)
        self._teams = cache.teams(target.channels)
        self._zero = np.float32(signed_zero(self.format))
        self._old: dict[int, Bytes] = {}

    def begin(self, token: int, q: Reals, k: Reals, v: Reals, first: int = 0) -> None:
        """Queries [heads, head_dim], already times 1/√d, and the new K and V [kv_heads, head_dim] of a token.

        The token attends positions from `first` to itself.
        """
        cache = self.cache
        self.token, self.first = token, first
        self.span = Span.of(first, token, self.target.banks)
        padded = np.zeros((cache.kv_heads, cache.queries, cache.head_columns * cache.use.values), dtype=np.float32)
        padded[:, :, : cache.head_dim] = q.reshape(cache.kv_heads, cache.queries, cache.head_dim)
        self.exact_q: Singles = q.astype(np.float32).reshape(cache.kv_heads, cache.queries, cache.head_dim)
        self.q = to_bf16(padded)
        self._totals: Singles = tree_sum(from_bf16(to_bf16(padded[:, :, : cache.head_dim])))
        self.new = tuple(self.arithmetic.round_token(self.format, part) for part in (k, v))
        positions = ceil_div(cache.max_context, self.target.banks * cache.team) * self.target.banks * cache.team
        self.scores: Singles = np.zeros((cache.kv_heads, cache.queries, positions), np.float32)
        self.context: Singles = np.zeros((cache.kv_heads, cache.queries, cache.head_dim), np.float32)
        self.sums: Singles = np.zeros((cache.kv_heads, cache.queries), np.float32)
        self.offsets: Singles = np.zeros((cache.kv_heads, cache.queries), np.float32)
        self.params = np.tile(np.array([1, 0, 1, 0], dtype=np.float32), (cache.kv_heads, positions, 1))
        self._weights: dict[int, npt.NDArray[np.uint16]] = {}
        self._softmaxes = 0

    def take_values(self, v: Reals) -> None:
        """The new V [kv_heads, head_dim], where its product came after the first scores."""
        self.new = (self.new[0], self.arithmetic.round_token(self.format, v))

    def result(self) -> Singles:
        """The context product [heads, head_dim]."""
        total = self.context + self.offsets[..., None]
        return self.arithmetic.divide(total, self.sums[..., None]).reshape(-1, self.cache.head_dim)

    def run(self, job: str) -> None:
        """Softmaxes come slot after slot; the other jobs have nothing left to do."""
        if job == "softmax":
            self._softmax(self._softmaxes)
            self._softmaxes += 1
        elif job not in ("quantise kv", "normalise", "newest"):
            raise NearbankError(f"unexpected job {job!r} in attention")

    def _heads_of(self, slot: int) -> range:
        """KV heads in a slot, over all teams."""
        return range(slot * self._teams, min((slot + 1) * self._teams, self.cache.kv_heads))

    def _head(self, channel: int, slot: int) -> int:
        return slot * self._teams + channel // self.cache.team

    def _softmax(self, slot: int) -> None:
        attended = slice(self.first, self.token + 1)
        keys, values = self.new
        # The new token's scales never left the ASIC.
        self.params[:, self.token] = np.stack([keys.scales, keys.offsets, values.scales, values.offsets], axis=1)
        for head in self._heads_of(slot):
            key_scale, key_offset, value_scale, value_offset = np.ascontiguousarray(self.params[head, attended].T)
            scores = self.scores[head, :, attended] * key_scale
            scores += self._totals[head][:, None] * (key_offset + self._zero * key_scale)
            weights = self.arithmetic.exp(scores - scores.max(axis=1, keepdims=True))
            room = np.zeros((self.cache.queries, self.scores.shape[2] + self.cache.v_block), dtype=np.float32)
            room[:, attended] = weights * value_scale
            self._weights[head] = to_bf16(room)
            self.sums[head] = tree_sum(weights)
            self.offsets[head] = tree_sum(weights * (value_offset + self._zero * value_scale))

    def send(self, label: str, channels: tuple[int, ...], data: int) -> Masked:
        """A burst to write, for each channel."""
        area = data >> 20
        rule = {VECTOR >> 20: self._vector, KEYS >> 20: self._key, VALUES >> 20: self._value}.get(area, self._new_scale)
        bursts = [rule(label, channel, data & ((1 << 20) - 1)) for channel in channels]
        return np.stack([burst for burst, _ in bursts]), np.stack([mask for _, mask in bursts])

    def _burst(self, data: Bytes, index: int) -> Masked:
        size = self.target.column_bytes
        burst = np.zeros(size, dtype=np.uint8)
        part = data[index * size : (index + 1) * size]
        burst[: len(part)] = part
        return burst, np.full(size, 255, dtype=np.uint8)

    def _vector(self, label: str, channel: int, index: int) -> Masked:
        cache = self.cache
        if label == "score":
            each = self.q[0].nbytes
            slot, burst = divmod(index, self.target.bursts(each))
            return self._burst(self.q[self._head(channel, slot)].reshape(-1).view(np.uint8), burst)
        block_bursts = self.target.bursts(cache.v_block * cache.input_bytes)
        group, burst = divmod(index, block_bursts)
        group, block = divmod(group, cache.v_blocks)
        slot, query = divmod(group, cache.queries)
        head = self._head(channel, slot)
        if head not in self._weights:
            raise NearbankError(f"probabilities of head {head} are sent before their softmax")
        values = self._weights[head][query, block * cache.v_block : (block + 1) * cache.v_block]
        return self._burst(np.ascontiguousarray(values).view(np.uint8), burst)

    def _key(self, label: str, channel: int, index: int) -> Masked:
        slot, column = divmod(index, self.cache.head_columns)
        codes = self.new[0].codes[self._head(channel, slot)]
        padded = np.zeros(self.cache.head_columns * self.cache.use.values, dtype=codes.dtype)
        padded[: len(codes)] = codes
        return self._burst(self.format.pack(padded[None])[0], column)

    def _value(self, label: str, channel: int, index: int) -> Masked:
        """One element of V, at its token's place in the column."""
        burst, mask = self._burst(np.zeros(0, dtype=np.uint8), 0)
        mask[:] = 0
        head, dimension = self._value_place(channel, index)
        if dimension is None:
            return burst, mask
        code = self.new[1].codes[head, dimension : dimension + 1]
        place = self.token % self.cache.v_block % self.cache.use.values
        per_byte, size = self.format.values_per_word, self.format.word_bytes
        byte = place // per_byte * size
        mask[byte : byte + size] = 255
        if per_byte == 1:
            burst[byte : byte + size] = np.ascontiguousarray(code).view(np.uint8)
            return burst, mask
        old = self.format.unpack(self._old[index][channel, byte : byte + 1][None], per_byte)
        old[0, place % per_byte] = code[0]
        burst[byte] = self.format.pack(old)[0, 0]
        return burst, mask

    def _value_place(self, channel: int, index: int) -> tuple[int, int | None]:
        """(KV head, dimension) of an element of V; no dimension in banks beyond the head's."""
        cache, banks = self.cache, self.target.banks
        slot, local = divmod(index, cache.v_local * banks)
        share = cache.head_dim // cache.team
        dimension = channel % cache.team * share + local
        return self._head(channel, slot), dimension if local < share else None

    def _new_scale(self, label: str, channel: int, slot: int) -> Masked:
        """Scale and offset of the new K and V of one head, at its token's place in the burst."""
        head, size = self._head(channel, slot), self.cache.scale_bytes
        keys, values = self.new
        four = np.array([keys.scales[head], keys.offsets[head], values.scales[head], values.offsets[head]], np.float32)
        burst, mask = self._burst(np.zeros(0, dtype=np.uint8), 0)
        place = self.token * size % self.target.column_bytes
        burst[place : place + size] = to_bf16(four).view(np.uint8)
        mask[:] = 0
        mask[place : place + size] = 255
        return burst, mask

    def receive(self, label: str, channels: tuple[int, ...], data: int, burst: Floats | Bytes) -> None:
        """A burst that was read, of each channel."""
        area, index = data >> 20, data & ((1 << 20) - 1)
        for i, channel in enumerate(channels):
            if area == VALUES >> 20:
                self._old.setdefault(index, np.zeros((self.target.channels, burst.shape[1]), np.uint8))[channel] = (
                    burst[i]
                )
            elif area == CACHE_SCALES >> 20:
                self._scales(channel, index, burst[i])
            elif area == RESULT >> 20 and label == "score":
                self._score(channel, index, burst[i])
            elif area == RESULT >> 20:
                self._product(channel, index, burst[i])
            else:
                raise NearbankError(f"a burst under {label!r} has no place: {data}")

    def _scales(self, channel: int, index: int, burst: Floats | Bytes) -> None:
        room, found = self._scale_room(channel, index, burst)
        room[:] = found[: len(room)]

    def _scale_room(self, channel: int, index: int, burst: Floats | Bytes) -> tuple[Singles, Singles]:
        """Where a burst's scales and offsets belong [tokens, 4], and what it holds."""
        cache = self.cache
        slot, local = divmod(index, scale_bursts(cache, self.target, self.span))
        per_burst = self.target.column_bytes // cache.scale_bytes
        first = (local * cache.team + channel % cache.team) * per_burst
        found = from_bf16(np.ascontiguousarray(burst, dtype=np.uint8).view(np.uint16)).reshape(per_burst, -1)
        return self.params[self._head(channel, slot), first : first + per_burst], found

    def _score(self, channel: int, index: int, burst: Floats | Bytes) -> None:
        cache, reads = self.cache, self.target.read_bursts
        records = ceil_div(cache.max_context, self.target.banks * cache.team)
        group, place = divmod(index, records * reads)
        slot, query = divmod(group, cache.queries)
        record, part = divmod(place, reads)
        first = (record * cache.team + channel % cache.team) * self.target.banks + part * len(burst)
        self.scores[self._head(channel, slot), query, first : first + len(burst)] = burst

    def _product(self, channel: int, index: int, burst: Floats | Bytes) -> None:
        """Part of a context product: blocks of tokens are added up."""
        cache, reads = self.cache, self.target.read_bursts
        group, place = divmod(index, cache.v_local * reads)
        slot, query = divmod(group // cache.v_blocks, cache.queries)
        local, part = divmod(place, reads)
        share = cache.head_dim // cache.team
        first = local * self.target.banks + part * len(burst)
        count = max(min(len(burst), share - first), 0)
        start = channel % cache.team * share + first
        self.context[self._head(channel, slot), query, start : start + count] += burst[:count]


class PastAttention(CachedAttention):
    """The same where a token attends its own K and V exactly: the ASIC adds them to what the banks hold, rounded."""

    def begin(self, token: int, q: Reals, k: Reals, v: Reals, first: int = 0) -> None:
        super().begin(token, q, k, v, first)
        self.span = Span.of(first, token - 1, self.target.banks) if token > first else Span(0, 0)
        self._exact: tuple[Singles, Singles] = (k.astype(np.float32), v.astype(np.float32))
        self._newest: Singles = np.zeros((self.cache.kv_heads, self.cache.queries), np.float32)

    def result(self) -> Singles:
        own = self._newest[..., None] * self._exact[1][:, None]
        total = self.context + self.offsets[..., None] + own
        return self.arithmetic.divide(total, self.sums[..., None]).reshape(-1, self.cache.head_dim)

    def _softmax(self, slot: int) -> None:
        past = slice(self.first, self.token)
        own = tree_sum(self.exact_q * self._exact[0][:, None])
        for head in self._heads_of(slot):
            key_scale, key_offset, value_scale, value_offset = np.ascontiguousarray(self.params[head, past].T)
            scores = self.scores[head, :, past] * key_scale
            scores += self._totals[head][:, None] * (key_offset + self._zero * key_scale)
            scores = np.concatenate([scores, own[head][:, None]], axis=1)
            weights = self.arithmetic.exp(scores - scores.max(axis=1, keepdims=True))
            room = np.zeros((self.cache.queries, self.scores.shape[2] + self.cache.v_block), dtype=np.float32)
            room[:, past] = weights[:, :-1] * value_scale
            self._weights[head] = to_bf16(room)
            self._newest[head] = weights[:, -1]
            self.sums[head] = tree_sum(weights)
            if self.token > self.first:
                self.offsets[head] = tree_sum(weights[:, :-1] * (value_offset + self._zero * value_scale))

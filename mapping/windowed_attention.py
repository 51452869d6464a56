"""The ASIC's side of attention over a KIVI cache: the rounded past, and a window of exact tokens beside it.

Queries times a group's scales are rounded to bf16 on their way to the global buffer; their product with its offsets is
added to the scores in float32. The window holds K and V in bf16; a full group is rounded from what is read there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import from_bf16, to_bf16
from nearbank.mapping.asic_arithmetic import EXACT, AsicArithmetic, Rounded, signed_zero
from nearbank.mapping.bank_arithmetic import Bytes, Floats, Singles, tree_sum
from nearbank.mapping.cache_placement import CachePlacement
from nearbank.mapping.cached_attention import CachedAttention, Masked, PastAttention, Reals
from nearbank.mapping.reach import Span
from nearbank.mapping.sweep import CACHE_SCALES, KEY_SCALES, KEYS, VALUES, WINDOW, WINDOW_KEYS, WINDOW_VALUES
from nearbank.mapping.target import Target
from nearbank.units import ceil_div

AREA = 20  # bits of an index within an area


class WindowedAttention(CachedAttention):
    """`CachedAttention` whose newest tokens are exact; `near` is the same for the window."""

    def __init__(self, cache: CachePlacement, target: Target, arithmetic: AsicArithmetic = EXACT) -> None:
        super().__init__(cache, target, arithmetic)
        assert cache.window is not None
        assert cache.groups is not None
        self.groups = cache.groups
        self.near = CachedAttention(cache.window, target, arithmetic)
        values = cache.window.head_columns * cache.window.use.values
        self._window_keys = np.zeros((cache.kv_heads, self.groups.tokens, values), np.float32)
        self._window_values = np.zeros((cache.kv_heads, self.groups.tokens, cache.head_dim), np.float32)
        self._rounded_keys: dict[int, Rounded] = {}
        self._rounded_values: dict[int, Rounded] = {}
        self._rounded_slots = 0
        room = (cache.kv_heads, ceil_div(cache.max_context, self.groups.tokens))
        bytes_each = self.groups.bursts * cache.team * target.column_bytes
        self._read = np.zeros((*room, bytes_each), np.uint8)
        self._unscaled: set[tuple[int, int]] = set()
        self._dots = np.zeros((*room, cache.queries), np.float32)
        self._queries: dict[tuple[int, int], npt.NDArray[np.uint16]] = {}

    def begin(self, token: int, q: Reals, k: Reals, v: Reals, first: int = 0) -> None:
        super().begin(token, q, k, v, first)
        size = self.groups.tokens
        self.keys_until, self.values_until = token // size * size, max(token + 1 - size, first)
        self.span = Span.of(first, token - size, self.target.banks) if token - size >= first else Span(0, 0)
        self.near.begin(token % size, q, k, v)
        self._queries.clear()
        self._unscaled.clear()
        self._rounded_keys.clear()
        self._rounded_values.clear()
        self._rounded_slots = 0

    def take_values(self, v: Reals) -> None:
        raise NearbankError("V of a rounded cache is needed with K")

    def result(self) -> Singles:
        total = (self.context + self.near.context) + self.offsets[..., None]
        return self.arithmetic.divide(total, self.sums[..., None]).reshape(-1, self.cache.head_dim)

    def run(self, job: str) -> None:
        if job == "scale q":
            self._scale_queries()
        elif job == "round keys":
            self._round_keys(self._rounded_slots)
        elif job == "round values":
            self._round_values(self._rounded_slots)
            self._rounded_slots += 1
        else:
            super().run(job)

    def _scale_queries(self) -> None:
        """Take what was read of scales and offsets since the last time into queries and their constants."""
        size = self.cache.head_dim
        zero = np.float32(signed_zero(self.format))
        for head, group in sorted(self._unscaled):
            pairs = from_bf16(self._read[head, group, : 4 * size].view(np.uint16))
            scales, offsets = pairs[:size], pairs[size:]
            padded = np.zeros((self.cache.queries, self.q.shape[2]), np.float32)
            padded[:, :size] = self.exact_q[head] * scales
            self._queries[head, group] = to_bf16(padded)
            self._dots[head, group] = tree_sum(self.exact_q[head] * (offsets + zero * scales))
        self._unscaled.clear()

    def _round_keys(self, slot: int) -> None:
        size = self.cache.head_dim
        for head in self._heads_of(slot):
            channels = np.ascontiguousarray(self._window_keys[head, :, :size].T)
            self._rounded_keys[head] = self.arithmetic.round_token(self.format, channels)

    def _round_values(self, slot: int) -> None:
        for head in self._heads_of(slot):
            self._rounded_values[head] = self.arithmetic.round_token(self.format, self._window_values[head])

    def _softmax(self, slot: int) -> None:
        first, size = self.first, self.groups.tokens
        past, recent = slice(first, self.values_until), np.arange(self.values_until, self.token + 1)
        for head in self._heads_of(slot):
            scores = np.concatenate([self._past_scores(head), self._near_scores(head)], axis=1)
            weights = self.arithmetic.exp(scores - scores.max(axis=1, keepdims=True))
            old = weights[:, : self.values_until - first]
            _, _, value_scale, value_offset = np.ascontiguousarray(self.params[head, past].T)
            room = np.zeros((self.cache.queries, self.scores.shape[2] + self.cache.v_block), dtype=np.float32)
            room[:, past] = old * value_scale
            self._weights[head] = to_bf16(room)
            ring = np.zeros((self.cache.queries, self.near.scores.shape[2] + size), dtype=np.float32)
            ring[:, recent % size] = weights[:, recent - first]
            self.near._weights[head] = to_bf16(ring)
            self.sums[head] = tree_sum(weights)
            if old.size:
                self.offsets[head] = tree_sum(old * (value_offset + self._zero * value_scale))

    def _past_scores(self, head: int) -> Singles:
        positions = np.arange(self.first, self.keys_until)
        dots = self._dots[head][positions // self.groups.tokens].T  # [queries, positions]
        return np.asarray(self.scores[head][:, positions] + dots, dtype=np.float32)

    def _near_scores(self, head: int) -> Singles:
        begin = max(self.first, self.keys_until)
        return np.asarray(self.near.scores[head][:, np.arange(begin, self.token + 1) % self.groups.tokens], np.float32)

    def send(self, label: str, channels: tuple[int, ...], data: int) -> Masked:
        if data >= WINDOW:
            return self.near.send(label, channels, data - WINDOW)
        if label != "flush":
            return super().send(label, channels, data)
        rules = {KEYS >> AREA: self._key_codes, VALUES >> AREA: self._value_codes}
        rules |= {KEY_SCALES >> AREA: self._key_scales, CACHE_SCALES >> AREA: self._value_scales}
        rule, index = rules[data >> AREA], data & ((1 << AREA) - 1)
        bursts = [rule(channel, index) for channel in channels]
        return np.stack([burst for burst, _ in bursts]), np.stack([mask for _, mask in bursts])

    def _vector(self, label: str, channel: int, index: int) -> Masked:
        if label != "score":
            return super()._vector(label, channel, index)
        each = self.target.bursts(self.q[0, 0].nbytes) * self.cache.queries
        place, burst = divmod(index, each)
        slot, group = divmod(place, self._read.shape[1])
        found = self._queries[self._head(channel, slot), group]  # a KeyError where its scales were not read
        return self._burst(found.reshape(-1).view(np.uint8), burst)

    def _key_codes(self, channel: int, index: int) -> Masked:
        cache, banks = self.cache, self.target.banks
        place, bank = divmod(index, banks)
        place, column = divmod(place, cache.head_columns)
        slot, record = divmod(place, self.groups.records)
        token = (record * cache.team + channel % cache.team) * banks + bank
        codes = self._rounded_keys[self._head(channel, slot)].codes[:, token]
        padded = np.zeros(cache.head_columns * cache.use.values, dtype=codes.dtype)
        padded[: len(codes)] = codes
        return self._burst(self.format.pack(padded[None])[0], column)

    def _value_codes(self, channel: int, index: int) -> Masked:
        """A dimension of all tokens of the group, at their place in the column."""
        burst, mask = self._burst(np.zeros(0, dtype=np.uint8), 0)
        mask[:] = 0
        head, dimension = self._value_place(channel, index)
        if dimension is not None:
            codes = np.ascontiguousarray(self._rounded_values[head].codes[:, dimension])
            packed = self.format.pack(codes[None])[0].view(np.uint8)
            group = self.token // self.groups.tokens - 1
            place = group * self.groups.tokens % self.cache.v_block % self.cache.use.values
            begin = place // self.format.values_per_word * self.format.word_bytes
            burst[begin : begin + len(packed)] = packed
            mask[begin : begin + len(packed)] = 255
        return burst, mask

    def _key_scales(self, channel: int, index: int) -> Masked:
        place, burst = divmod(index, self.groups.bursts)
        slot = place // self._read.shape[1]
        keys = self._rounded_keys[self._head(channel, slot)]
        pairs = to_bf16(np.concatenate([keys.scales, keys.offsets])).view(np.uint8)
        return self._burst(pairs, burst * self.cache.team + channel % self.cache.team)

    def _value_scales(self, channel: int, index: int) -> Masked:
        size = self.groups.tokens * self.cache.scale_bytes // self.target.column_bytes
        slot, burst = divmod(index, size)
        values = self._rounded_values[self._head(channel, slot)]
        pairs = to_bf16(np.stack([values.scales, values.offsets], axis=1)).reshape(-1).view(np.uint8)
        return self._burst(pairs, burst)

    def receive(self, label: str, channels: tuple[int, ...], data: int, burst: Floats | Bytes) -> None:
        if data >= WINDOW:
            self.near.receive(label, channels, data - WINDOW, burst)
            return
        areas = {KEY_SCALES >> AREA: self._take_key_scales, WINDOW_KEYS >> AREA: self._take_key}
        rule = (areas | {WINDOW_VALUES >> AREA: self._take_value}).get(data >> AREA)
        if rule is None:
            super().receive(label, channels, data, burst)
            return
        for i, channel in enumerate(channels):
            rule(channel, data & ((1 << AREA) - 1), np.asarray(burst[i], dtype=np.uint8))

    def _take_key_scales(self, channel: int, index: int, burst: Bytes) -> None:
        place, local = divmod(index, self.groups.bursts)
        slot, group = divmod(place, self._read.shape[1])
        head, size = self._head(channel, slot), self.target.column_bytes
        begin = (local * self.cache.team + channel % self.cache.team) * size
        self._read[head, group, begin : begin + size] = burst
        self._unscaled.add((head, group))

    def _take_key(self, channel: int, index: int, burst: Bytes) -> None:
        near, banks = self.near.cache, self.target.banks
        place, bank = divmod(index, banks)
        place, column = divmod(place, near.head_columns)
        slot, record = divmod(place, self.groups.records)
        token = (record * near.team + channel % near.team) * banks + bank
        begin = column * near.use.values
        self._window_keys[self._head(channel, slot), token, begin : begin + near.use.values] = _floats(burst)

    def _take_value(self, channel: int, index: int, burst: Bytes) -> None:
        near, banks = self.near.cache, self.target.banks
        place, bank = divmod(index, banks)
        place, column = divmod(place, near.v_packing.columns)
        head, dimension = self.near._value_place(channel, place * banks + bank)
        begin = column * near.use.values
        if dimension is not None:
            self._window_values[head, begin : begin + near.use.values, dimension] = _floats(burst)

    def _scales(self, channel: int, index: int, burst: Floats | Bytes) -> None:
        """Scales and offsets of V: those of K, beside them in other caches, stay as they are."""
        room, found = self._scale_room(channel, index, burst)
        room[:, 2:] = found[: len(room)]


def _floats(burst: Bytes) -> Singles:
    return from_bf16(np.ascontiguousarray(burst).view(np.uint16))


def attention_for(cache: CachePlacement, target: Target, arithmetic: AsicArithmetic = EXACT) -> CachedAttention:
    """The ASIC's side for a cache's method."""
    if cache.groups:
        return WindowedAttention(cache, target, arithmetic)
    return (PastAttention if cache.newest_exact else CachedAttention)(cache, target, arithmetic)

"""What a token attends, and what the commands of attention must know: where its cache lies, for which channel."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nearbank.mapping.cache_placement import CachePlacement
from nearbank.mapping.matmul import Rows
from nearbank.mapping.packing import Packing
from nearbank.mapping.sweep import WINDOW, Address
from nearbank.mapping.target import Target
from nearbank.units import ceil_div


@dataclass(frozen=True, slots=True)
class Span:
    """Positions [first, last] that a token attends, widened to multiples of the banks: [begin, end)."""

    begin: int
    end: int

    @classmethod
    def of(cls, first: int, last: int, banks: int) -> Span:
        return cls(first // banks * banks, (last // banks + 1) * banks)

    @property
    def length(self) -> int:
        return self.end - self.begin


NOTHING = Span(0, 0)


@dataclass(frozen=True, slots=True)
class Reach:
    """What a token attends: rounded keys and values, slots of the window's K and V, and itself on the ASIC or not."""

    keys: Span
    values: Span
    window_keys: Span = NOTHING
    window_values: Span = NOTHING
    newest: bool = False

    @classmethod
    def of(cls, cache: CachePlacement, first: int, last: int, banks: int) -> Reach:
        """Positions [first, last], of a token at the last of them."""
        if cache.newest_exact:
            past = Span.of(first, last - 1, banks) if last > first else NOTHING
            return cls(past, past, newest=True)
        if not cache.groups:
            span = Span.of(first, last, banks)
            return cls(span, span)
        size = cache.groups.tokens
        until = last // size * size
        keys = Span(first // size * size, until) if until > first else NOTHING
        values = Span.of(first, last - size, banks) if last - size >= first else NOTHING
        ring = Span(0, min((last // banks + 1) * banks, size))
        return cls(keys, values, Span(0, (last % size // banks + 1) * banks), ring)

    @property
    def length(self) -> int:
        """Scores in each head's softmax."""
        return self.keys.length + self.window_keys.length + self.newest


@dataclass(frozen=True, slots=True)
class Attention:
    """What the functions below need to know: the cache, the machine, the channel, where its layer's rows are.

    `area` is added to all data. `new`: the token whose K and V are written in place, as (token, counter to add to its
    bank); None where they have rows opened for them, or are not written.
    """

    cache: CachePlacement
    target: Target
    channel: int
    rows: Rows
    area: int = 0
    new: tuple[int, Address] | None = None

    @property
    def slots(self) -> int:
        """KV heads of this channel."""
        return self.cache.slots_of(self.channel, self.target.channels)

    @property
    def member(self) -> int:
        """Which of its team the channel is."""
        return self.channel % self.cache.team

    @property
    def quantised(self) -> bool:
        return self.cache.scales is not None

    @property
    def window(self) -> Attention:
        """The same for the exact tokens of KIVI."""
        assert self.cache.window is not None
        return replace(self, cache=self.cache.window, area=WINDOW)


def key_packing(at: Attention) -> Packing:
    """Records of the channel's own number of slots."""
    columns = at.cache.head_columns * (at.slots if at.cache.joined else 1)
    return Packing(max(columns, 1), at.target.columns, False)


def scale_rows(at: Attention) -> int:
    """Rows of the scales of one slot."""
    assert at.cache.scales is not None
    return at.cache.scales.rows // at.cache.slots


def scale_bursts(cache: CachePlacement, target: Target, span: Span) -> int:
    """Bursts of scales that a channel reads for one slot: whole columns of all banks."""
    bursts = ceil_div(target.bursts(cache.scale_bytes * span.end), cache.team)
    return ceil_div(bursts, target.banks) * target.banks

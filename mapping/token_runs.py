"""Runs of neighbouring tokens that share a program: all their addresses are the same but for the bank of K."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nearbank.mapping.cache_placement import CachePlacement
from nearbank.mapping.reach import Reach
from nearbank.trace import Operation


@dataclass(frozen=True)
class Position:
    """`count` tokens from `token` on that share a program. It is that of token `run`, begun some rounds later."""

    token: int
    count: int
    run: int


@dataclass(frozen=True)
class TokenRuns:
    """How the tokens of a sequence fall into runs, by the cache that they are written to."""

    cache: CachePlacement
    banks: int
    column_bytes: int

    def positions(self, begin: int, end: int) -> Iterator[Position]:
        """Tokens [begin, end) in runs with the same addresses but for the bank of K."""
        while begin < end:
            count = 1 if self._stands_alone(begin) else min(end, (begin // self.size + 1) * self.size) - begin
            yield Position(begin, count, begin)
            begin += count

    @property
    def size(self) -> int:
        """So many tokens have the same addresses, but for the bank of K."""
        cache = self.cache
        bursts = cache.scales is not None and not cache.groups  # scales of each token
        return self.column_bytes // cache.scale_bytes if bursts else self.banks

    def _stands_alone(self, token: int) -> bool:
        """True where the tokens after this one attend more rows of the past, or a group was full before it."""
        cache = self.cache
        if cache.newest_exact:
            return token % self.banks == 0
        return cache.groups is not None and token > 0 and token % cache.groups.tokens == 0

    def same_addresses(self, token: int) -> int:
        """The first token whose V and scales have the same addresses."""
        if self.cache.groups:
            return token // self.banks * self.banks
        return next(
            p.token for p in self.positions(token // self.banks * self.banks, token + 1) if p.token + p.count > token
        )

    def reach(self, operations: tuple[Operation, ...], position: Position) -> Reach:
        """What the tokens of a run attend."""
        return Reach.of(self.cache, *_attended(operations, position), self.banks)


def _attended(operations: tuple[Operation, ...], position: Position) -> tuple[int, int]:
    """(first, last) position that the tokens of a run attend: all before them, or a window."""
    score = next(o for o in operations if o.op == "score")
    ends = [o.context for o in operations if o.op == "append"]
    last = position.token + position.count - 1
    window = score.context if ends and ends[0] and score.context and score.context < ends[0] else None
    return (0 if window is None else max(position.token + 1 - window, 0)), last

"""The rules as flat arrays for the compiled engine: where each "last time of …" is kept, who reads it, who writes it.

One state vector holds, for every command, the cycle of its last issue in every scope that some rule looks at, and for
every windowed rule the last few cycles. Of a pair of commands a rule is looked up in the coarsest of the rule's scope
and both commands' reach: the last PRE of any bank bounds the next ACT16 of all banks. With that, one read per rule
decides, however many banks a command reaches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nearbank.sim.rules import Limit, RuleBook
from nearbank.sim.standard import Effect, Row, Scope

NEVER = -(1 << 60)
FIXED_REASONS = ("refresh", "end of program", "clock edge")

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pull:
    """A later command's look at one entry: `base + ((bank >> shift) ^ flip) * stride`, plus `delay`, bounds it.

    Over all banks the look falls within `reads`; of a windowed rule that is every age of the entry.
    """

    base: int
    shift: int
    flip: int
    stride: int
    delay: int
    limit: int
    reads: range


@dataclass(frozen=True, slots=True)
class Push:
    """An issued command's mark: `count` runs of `width` entries from `base + (bank >> shift) * width`."""

    base: int
    shift: int
    width: int
    count: int


@dataclass(slots=True)
class Layout:
    """All entries, and per command what it reads (`pulls`) and writes (`pushes`)."""

    book: RuleBook
    names: tuple[str, ...]
    size: int = 0
    pulls: dict[str, list[Pull]] = field(default_factory=dict)
    pushes: dict[str, list[Push]] = field(default_factory=dict)
    owners: list[frozenset[str]] = field(default_factory=list)
    channel_entry: dict[str, int] = field(default_factory=dict)


def layout(book: RuleBook) -> Layout:
    """Place every entry that the rules of the book need."""
    result = Layout(book, tuple(book.specs))
    result.pulls = {name: [] for name in result.names}
    result.pushes = {name: [] for name in result.names}
    levels: dict[tuple[str, int], int] = {}
    for name in result.names:
        result.channel_entry[name] = _entry(result, levels, name, book.banks)
    for number, limit in enumerate(book.limits):
        place = _place_window if limit.window > 1 else _place_last
        place(result, levels, number, limit)
    return result


def _entry(result: Layout, levels: dict[tuple[str, int], int], name: str, size: int) -> int:
    """Where the last issue of `name` in each run of `size` banks is kept; made on first use."""
    if (name, size) not in levels:
        count = result.book.banks // size
        levels[name, size] = _allocate(result, count, frozenset([name]))
        result.pushes[name].append(Push(levels[name, size], _shift(result.book, size), 1, 1))
    return levels[name, size]


def _allocate(result: Layout, count: int, owners: frozenset[str]) -> int:
    base = result.size
    result.size += count
    result.owners += [owners] * count
    return base


def _shift(book: RuleBook, size: int) -> int:
    return 63 if size == book.banks else size.bit_length() - 1


def _place_last(result: Layout, levels: dict[tuple[str, int], int], number: int, limit: Limit) -> None:
    for earlier in sorted(limit.earlier):
        for later in sorted(limit.later):
            size = max(limit.size, result.book.reach[earlier], result.book.reach[later])
            if limit.others and size > limit.size:
                continue  # a command that reaches every scope has no other one
            base = _entry(result, levels, earlier, size)
            reads = range(base, base + result.book.banks // size)
            for flip in _flips(limit):
                pull = Pull(base, _shift(result.book, size), flip, 1, limit.delay, number, reads)
                result.pulls[later].append(pull)


def _flips(limit: Limit) -> Iterable[int]:
    """Which scopes to look at, as differences from one's own: only one's own, or all others."""
    return range(1, limit.within // limit.size) if limit.others else (0,)


def _place_window(result: Layout, levels: dict[tuple[str, int], int], number: int, limit: Limit) -> None:
    """A run of `window` cycles per scope, newest first; a command that reaches several scopes enters each."""
    book = result.book
    total = book.banks // limit.size * limit.window
    base = _allocate(result, total, limit.earlier)
    shift = _shift(book, limit.size)
    for earlier in sorted(limit.earlier):
        count = max(book.reach[earlier] // limit.size, 1)
        result.pushes[earlier].append(Push(base, shift, limit.window, count))
    for later in sorted(limit.later):
        for scope in range(max(book.reach[later] // limit.size, 1)):
            oldest = base + scope * limit.window + limit.window - 1
            pull = Pull(oldest, shift, 0, limit.window, limit.delay, number, range(base, base + total))
            result.pulls[later].append(pull)


@dataclass(frozen=True, slots=True)
class Lists:
    """Several lists laid end to end: list i is `rows[start[i]:start[i + 1]]`."""

    start: Ints
    rows: Ints


def lists(parts: Sequence[Sequence[tuple[int, ...]]], width: int) -> Lists:
    """Lay out lists of `width`-tuples."""
    start = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
    flat = [item for part in parts for item in part]
    return Lists(start, np.array(flat, dtype=np.int64).reshape(len(flat), width))


def pull_lists(result: Layout, used: frozenset[str]) -> Lists:
    """What each command reads: entries that a used command writes, each once.

    Delays of one cycle are left out, since the command bus alone makes a command wait that long.
    """
    rows = []
    for name in result.names:
        best: dict[tuple[int, int, int, int], Pull] = {}
        for pull in result.pulls[name]:
            key = (pull.base, pull.shift, pull.flip, pull.stride)
            if pull.delay > 1 and used & result.owners[pull.base] and (key not in best or best[key].delay < pull.delay):
                best[key] = pull
        ordered = sorted(best.values(), key=lambda p: p.limit)
        rows.append([_pull_row(p) for p in ordered])
    return lists(rows, 7)


def _pull_row(p: Pull) -> tuple[int, ...]:
    """In the order of the engine's PULL constants; the bank matters unless there is one entry for the channel."""
    banked = int(p.shift != 63 or p.flip != 0)
    return p.base, p.delay, banked, p.limit, p.shift, p.flip, p.stride


def push_lists(result: Layout, used: frozenset[str]) -> Lists:
    """What each used command writes."""
    return lists(
        [
            [(p.base, p.shift, p.width, p.count) for p in result.pushes[name]] if name in used else []
            for name in result.names
        ],
        4,
    )


def written_list(result: Layout, used: frozenset[str], body: frozenset[str]) -> list[tuple[int, int]]:
    """Entries that commands of a loop body write, with the age beyond which no rule looks at them."""
    horizon = horizons(result, used)
    return [(i, horizon[i]) for i in range(result.size) if result.owners[i] & body]


def fixed_list(result: Layout, used: frozenset[str], body: frozenset[str]) -> list[tuple[int, int]]:
    """Entries that the body reads and never writes, with the age from which they bind none of its commands."""
    ages: dict[int, int] = {}
    for later in body:
        for pull in result.pulls[later]:
            if not (result.owners[pull.base] & body) and (used & result.owners[pull.base]):
                for index in pull.reads:
                    ages[index] = max(ages.get(index, 0), pull.delay)
    return sorted(ages.items())


def seen_list(result: Layout, body: frozenset[str]) -> list[tuple[int, int]]:
    """Entries on which it may depend what the body does, with the age beyond which it does not."""
    ages: dict[int, int] = {}
    forgotten = horizons(result, frozenset(result.names))
    for name in body:
        for pull in result.pulls[name]:
            for index in pull.reads:
                ages[index] = max(ages.get(index, 0), pull.delay)
        for push in result.pushes[name]:
            if push.width > 1:  # what leaves one place of a window enters the next one
                scopes = max(result.book.banks >> push.shift, 1)
                ages |= {i: forgotten[i] for i in range(push.base, push.base + scopes * push.width)}
    return sorted(ages.items())


def binding_limits(result: Layout, used: frozenset[str], body: frozenset[str]) -> list[int]:
    """The rules that may hold a command of the body up."""
    pulls = (pull for name in body for pull in result.pulls[name])
    return sorted({pull.limit for pull in pulls if used & result.owners[pull.base]})


def horizons(result: Layout, used: frozenset[str]) -> list[int]:
    """For every entry the greatest age at which anything may still depend on it."""
    ages = [0] * result.size
    for name in used:
        data = result.channel_entry[name]
        ages[data] = max(ages[data], result.book.latency[name])
        for pull in result.pulls[name]:
            for index in pull.reads:
                ages[index] = max(ages[index], pull.delay)
    return ages


def command_table(result: Layout) -> Ints:
    """Per command: banks reached, row need (any, closed, open), effect (none, opens, closes), banks as bits, on clock.

    A command on clock waits for the first half of a clock, which only machines that count half clocks have.
    """
    needs = {Row.ANY: 0, Row.CLOSED: 1, Row.OPEN: 2}
    effects = {Effect.NONE: 0, Effect.OPENS: 1, Effect.CLOSES: 2}
    reach = result.book.reach
    bits = {name: -1 if banks == 64 else (1 << banks) - 1 for name, banks in reach.items()}
    on_clock = result.book.is_on_clock
    rows = [(needs[s.row], effects[s.effect], s.name) for s in result.book.specs.values()]
    return np.array([(reach[n], need, effect, bits[n], on_clock(n)) for need, effect, n in rows], dtype=np.int64)


def uses_bank(book: RuleBook, name: str) -> bool:
    """Whether the command's `bank` field means anything."""
    return book.specs[name].reach not in (Scope.CHANNEL, Scope.ALL_BANKS)

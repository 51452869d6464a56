"""What the memory is told: nested loops over commands, for groups of channels that do the same.

A program is compact whatever its size: a GEMV of a million commands is a few nodes. Addresses are affine in the
loop counters (`Index`). Beside commands there are jobs of the units next to the memory (`Start`, `Wait`) and labels
that say what the time is spent on (`Mark`). How long anything takes is the engine's business, not this module's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from nearbank.errors import NearbankError


@dataclass(frozen=True, slots=True)
class Index:
    """`base + Σ strides[d] · counter of the loop at depth d` (depth 0 is the outermost loop)."""

    base: int = 0
    strides: tuple[int, ...] = ()

    def __add__(self, other: Index | int) -> Index:
        if isinstance(other, int):
            return Index(self.base + other, self.strides)
        depth = max(len(self.strides), len(other.strides))
        pairs = zip(_padded(self.strides, depth), _padded(other.strides, depth), strict=True)
        return Index(self.base + other.base, tuple(a + b for a, b in pairs))

    __radd__ = __add__

    def __mul__(self, factor: int) -> Index:
        return Index(self.base * factor, tuple(s * factor for s in self.strides))

    __rmul__ = __mul__

    def at(self, counters: tuple[int, ...]) -> int:
        """The value for the given loop counters, outermost first."""
        return self.base + sum(s * c for s, c in zip(self.strides, counters, strict=False))


def _padded(strides: tuple[int, ...], depth: int) -> tuple[int, ...]:
    return strides + (0,) * (depth - len(strides))


ZERO = Index()


@dataclass(frozen=True, slots=True)
class Command:
    """One DRAM command. Fields a command does not use stay 0.

    `bank` is the flat bank number in the channel; commands for all banks ignore it, commands for four banks take a
    multiple of four. `column` counts column accesses (32 B in GDDR6), `data` counts the same bursts in the memory of
    the unit beside the DRAM: where WR and WRGB read from and RD and RDMAC write to. `format` names the weight format
    of a MAC; it decides how many MACs the command does and what they cost, not when it issues. `register` says which
    accumulator of a bank a MAC adds to or RDMAC reads, in units that have several; `scale` which of the scales that
    LDSC loaded MACSC multiplies a group's sum with.
    """

    name: str
    bank: Index = ZERO
    row: Index = ZERO
    column: Index = ZERO
    data: Index = ZERO
    format: str = ""
    register: Index = ZERO
    scale: Index = ZERO


@dataclass(frozen=True, slots=True)
class Loop:
    """`body`, `count` times; the counter goes from `first` up."""

    count: int
    body: tuple[Node, ...]
    first: int = 0

    @property
    def rounds(self) -> range:
        """The counter's values."""
        return range(self.first, self.first + self.count)


@dataclass(frozen=True, slots=True)
class Start:
    """Queue a job on a serial unit beside the memory (such as "asic"), without stopping the channel.

    The job begins when the unit is free, every stream of the program has come this far, and the data of all their
    earlier commands are there; it takes `duration_ps`.
    """

    unit: str
    job: str
    duration_ps: int


@dataclass(frozen=True, slots=True)
class Wait:
    """No later command issues before every job queued so far on `unit` has ended."""

    unit: str


@dataclass(frozen=True, slots=True)
class Mark:
    """From here on, time counts towards `label`, until the next mark or the end of the program.

    The time of a mark is when the last stream comes to it, so labels add up to the wall time of the program.
    """

    label: str


Node = Command | Loop | Start | Wait | Mark


@dataclass(frozen=True, slots=True)
class Stream:
    """What each channel in `channels` is told; they are identical, so one is simulated and counted for all."""

    channels: tuple[int, ...]
    body: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """Streams that run side by side and meet at every `Start`, `Wait` and `Mark`, which all hold in the same order.

    Loops around such nodes must be the same in every stream. A program begins when the one before it has ended:
    data arrived, units idle, due refreshes done.
    """

    name: str
    streams: tuple[Stream, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One command of an expanded program, addresses worked out; `stream` says whose."""

    stream: int
    command: str
    bank: int
    row: int
    column: int
    data: int
    format: str
    register: int = 0
    scale: int = 0


def expand(program: Program) -> Iterator[Step]:
    """All commands in order, one stream after the other, made as they are asked for; starts, waits and marks left out.

    When each issues is the engine's business: `Player.record` lists issued commands with their cycles.
    """
    for number, stream in enumerate(program.streams):
        for node, counters in unrolled(stream.body):
            if isinstance(node, Command):
                fields = (node.bank, node.row, node.column, node.data)
                bank, row, column, data = (i.at(counters) for i in fields)
                register, scale = node.register.at(counters), node.scale.at(counters)
                yield Step(number, node.name, bank, row, column, data, node.format, register, scale)


def unrolled(body: tuple[Node, ...], counters: tuple[int, ...] = ()) -> Iterator[tuple[Node, tuple[int, ...]]]:
    """The nodes in the order of execution, loops unrolled, each with the loop counters it runs under."""
    for node in body:
        if isinstance(node, Loop):
            for i in node.rounds:
                yield from unrolled(node.body, (*counters, i))
        else:
            yield node, counters


Kept = dict[tuple[int, Hashable], tuple[Node, ...]]
_MOST_KEPT = 1 << 13


@dataclass
class Builder:
    """Writes a stream's body in the shape of the loop nest it makes.

    >>> b = Builder()
    >>> with b.loop(4) as row:
    ...     b.command("ACT16", row=100 + row)
    ...     with b.loop(64) as column:
    ...         b.command("MACAB", row=100 + row, column=column)
    ...     b.command("PREA")
    >>> len(b.body())
    1
    """

    _open: list[list[Node]] = field(default_factory=lambda: [[]])
    kept: Kept = field(default_factory=dict)

    def command(
        self,
        name: str,
        *,
        bank: Index | int = 0,
        row: Index | int = 0,
        column: Index | int = 0,
        data: Index | int = 0,
        format: str = "",  # noqa: A002  (the field's own name)
        register: Index | int = 0,
        scale: Index | int = 0,
    ) -> None:
        """Append one DRAM command."""
        where = (_index(bank), _index(row), _index(column), _index(data))
        self.add(Command(name, *where, format, _index(register), _index(scale)))

    def add(self, node: Node) -> None:
        """Append any node; one like it that was appended before stands for it."""
        key = (node.count, node.first, *map(id, node.body)) if isinstance(node, Loop) else node
        self._open[-1].append(self._once((0, key), lambda: (node,))[0])

    def again(self, key: Hashable, write: Callable[[], None]) -> None:
        """Append what `write` appends: the very same nodes wherever `key`, which says all of it, came at this depth.

        Nodes that come again cost nothing to encode. Builders may share what they have `kept`.
        """
        body = self._open[-1]

        def written() -> tuple[Node, ...]:
            self._open[-1] = []
            write()
            return tuple(self._open[-1])

        nodes = self._once((len(self._open), key), written)
        self._open[-1] = [*body, *nodes]

    def _once(self, key: tuple[int, Hashable], make: Callable[[], tuple[Node, ...]]) -> tuple[Node, ...]:
        """What `make` gives, or gave for this key."""
        if (found := self.kept.get(key)) is None:
            found = make()
            if len(self.kept) >= _MOST_KEPT:
                self.kept.clear()
            self.kept[key] = found
        return found

    @contextmanager
    def loop(self, count: int, first: int = 0) -> Iterator[Index]:
        """Repeat what is added inside `count` times; yields the counter, which begins at `first`, for addresses.

        A loop of zero rounds adds nothing; a loop of one round is kept, so that depths do not depend on sizes.
        """
        if count < 0:
            raise NearbankError(f"loop of {count} rounds; expected 0 or more")
        self._open.append([])
        depth = len(self._open) - 2
        yield Index(0, (0,) * depth + (1,))
        body = tuple(self._open.pop())
        if count and body:
            self.add(Loop(count, body, first))

    def body(self) -> tuple[Node, ...]:
        """The finished stream body."""
        if len(self._open) != 1:
            raise NearbankError("a loop is still open; finish it before taking the body")
        return tuple(self._open[0])


def _index(value: Index | int) -> Index:
    return value if isinstance(value, Index) else Index(value)

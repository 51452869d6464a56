"""Issued commands as a timeline for ui.perfetto.dev, in Perfetto's own protobuf format.

One process per channel, with a track for the command bus and one for the open row of every bank. The viewer knows no
picoseconds: it shows one for a nanosecond, and the names of the processes say so.

Field numbers: perfetto/trace/{trace_packet, track_event/track_event, track_event/track_descriptor}.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nearbank.sim.engine import Issued
from nearbank.sim.rules import RuleBook
from nearbank.sim.standard import Effect, Row

_PACKET, _TIMESTAMP, _SEQUENCE, _EVENT, _DESCRIPTOR = 1, 8, 10, 11, 60
_TYPE, _TRACK, _NAME, _ANNOTATION = 9, 11, 23, 4
_ANNOTATION_NAME, _ANNOTATION_INT = 10, 4
_UUID, _TRACK_NAME, _PROCESS, _PARENT, _PID, _PROCESS_NAME = 1, 2, 3, 5, 1, 6
_BEGIN, _END = 1, 2


def write_timeline(path: Path, issued: Iterable[Issued], book: RuleBook, tck_ps: int) -> None:
    """Write the commands, in order of their cycles within each channel, as a timeline file."""
    channels: dict[int, _Channel] = {}
    with path.open("wb") as file:
        for command in issued:
            channel = channels.get(command.channel)
            if channel is None:
                channel = channels[command.channel] = _Channel(command.channel, book, tck_ps)
                file.writelines(channel.descriptors())
            file.writelines(channel.events(command))
        for channel in channels.values():
            file.writelines(channel.close())


@dataclass
class _Channel:
    """Turns the commands of one channel into packets; remembers which rows are open."""

    number: int
    book: RuleBook
    tck_ps: int
    open: dict[int, int] = field(default_factory=dict)
    now: int = 0

    def descriptors(self) -> Iterator[bytes]:
        """The channel's tracks."""
        name = f"channel {self.number} (1 ns shown is 1 ps)"
        process = _number(_PID, self.number + 1) + _text(_PROCESS_NAME, name)
        yield _packet(_bytes(_DESCRIPTOR, _number(_UUID, self._uuid(0)) + _bytes(_PROCESS, process)))
        names = ["command bus", *(f"bank {bank}: open row" for bank in range(self.book.banks))]
        for i, track in enumerate(names, start=1):
            yield _packet(_bytes(_DESCRIPTOR, self._track(i, track)))

    def _track(self, i: int, name: str) -> bytes:
        return _number(_UUID, self._uuid(i)) + _text(_TRACK_NAME, name) + _number(_PARENT, self._uuid(0))

    def _uuid(self, track: int) -> int:
        return (self.number + 1) * 1000 + track

    def events(self, issued: Issued) -> Iterator[bytes]:
        """The command on the bus, and what it does to its banks' rows."""
        spec = self.book.specs[issued.command]
        self.now = issued.cycle * self.tck_ps
        numbers = {"bank": issued.bank} if self.book.reach[issued.command] == 1 else {}
        if spec.row is Row.OPEN or spec.effect is Effect.OPENS:
            numbers["row"] = issued.row
        if spec.row is Row.OPEN:
            numbers["column"] = issued.column
        yield self._begin(1, self.now, issued.command, numbers)
        yield self._end(1, self.now + self.tck_ps)
        for bank in range(issued.bank, issued.bank + self.book.reach[issued.command]):
            yield from self._row(bank, spec.effect, issued.row)

    def _row(self, bank: int, effect: Effect, row: int) -> Iterator[bytes]:
        if effect is Effect.CLOSES and self.open.pop(bank, None) is not None:
            yield self._end(bank + 2, self.now)
        if effect is Effect.OPENS:
            self.open[bank] = row
            yield self._begin(bank + 2, self.now, f"row {row}", {})

    def close(self) -> Iterator[bytes]:
        """End what is still open."""
        for bank in self.open:
            yield self._end(bank + 2, self.now + self.tck_ps)

    def _begin(self, track: int, time_ps: int, name: str, numbers: dict[str, int]) -> bytes:
        event = _number(_TYPE, _BEGIN) + _number(_TRACK, self._uuid(track)) + _text(_NAME, name)
        for key, value in numbers.items():
            event += _bytes(_ANNOTATION, _text(_ANNOTATION_NAME, key) + _number(_ANNOTATION_INT, value))
        return _packet(_number(_TIMESTAMP, time_ps) + _bytes(_EVENT, event))

    def _end(self, track: int, time_ps: int) -> bytes:
        event = _number(_TYPE, _END) + _number(_TRACK, self._uuid(track))
        return _packet(_number(_TIMESTAMP, time_ps) + _bytes(_EVENT, event))


def _packet(content: bytes) -> bytes:
    return _bytes(_PACKET, content + _number(_SEQUENCE, 1))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode())

"""Stretches of code between meetings, numbered, so that what one does can be kept and done again."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nearbank.sim import vm
from nearbank.sim.layout import Ints
from nearbank.sim.numbering import Numbering
from nearbank.sim.passage_texts import said_by

_MOST = 4000  # stretches that are known; numbers are never given again
_LEAST = 4  # rows of a stretch that is worth keeping: a loop with two commands


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Where a stretch's first command is, counted from its first row, and what that row says of it."""

    at: int
    fields: tuple[int, int, int, int, int]


@dataclass
class Stretches:
    """Numbers the stretches of code between meetings: those that do the same, on whatever rows, have one number.

    Of a stretch that is not worth keeping, or whose banks depend on loops around it, or whose rows do in several ways,
    it is known that it has none.
    """

    numbering: Numbering
    known: dict[bytes, _Stretch | None] = field(default_factory=dict)
    count: int = 0

    def mark(self, rows: Ints) -> None:
        """Write what is known of every stretch to its first command."""
        rows[:, vm.STRETCH :] = 0
        op = rows[:, vm.OP]
        stops = np.flatnonzero((op >= vm.START) | ((rows[:, vm.MEETS] != 0) & (op != vm.COMMAND)))
        begins = np.concatenate([[0], stops[:-1] + 1])
        long = stops - begins >= _LEAST
        begins, stops = begins[long], stops[long]
        if not len(begins):
            return
        texts = self._texts(rows, begins, stops)
        for begin, stop, text in zip(begins.tolist(), stops.tolist(), texts, strict=True):
            if text not in self.known:
                if len(self.known) > _MOST:
                    self.known.clear()
                self.known[text] = self._stretch(rows[begin : stop + 1])
            if found := self.known[text]:
                rows[begin + found.at, vm.STRETCH :] = found.fields

    def _texts(self, rows: Ints, begins: Ints, stops: Ints) -> list[bytes]:
        """All that a stretch's time depends on: its rows without columns, addresses counted from its first."""
        said = said_by(rows)
        places = np.flatnonzero(said[:, vm.HAS_ROW])
        stretch = np.searchsorted(begins, places, side="right") - 1
        inside = (stretch >= 0) & (places < stops[stretch])
        places, stretch = places[inside], stretch[inside]
        first = np.diff(stretch, prepend=-1) != 0
        origin = np.zeros(len(begins), dtype=np.int64)
        origin[stretch[first]] = said[places[first], vm.ROW]
        said[places, vm.ROW] -= origin[stretch]
        ends = rows[stops, vm.DEPTH] + (rows[stops, vm.OP] == vm.END)
        spans = zip(begins.tolist(), stops.tolist(), ends.tolist(), strict=True)
        return [said[begin:stop].tobytes() + bytes([depth]) for begin, stop, depth in spans]

    def _stretch(self, rows: Ints) -> _Stretch | None:
        """Of a stretch's rows and the meeting behind it."""
        own, stop = rows[:-1], rows[-1]
        depth = int(stop[vm.DEPTH] + (stop[vm.OP] == vm.END))
        commands, rowed = own[:, vm.OP] == vm.COMMAND, own[:, vm.HAS_ROW] != 0
        around = own[:, vm.ROW_STRIDES : vm.ROW_STRIDES + depth][rowed]
        banks = own[:, vm.BANK_STRIDES : vm.BANK_STRIDES + depth]
        if not commands.any() or banks.any() or (around != around[:1]).any():
            return None
        at = int(np.argmax(commands))
        self.count += 1
        body = self.numbering.body_of(own[commands])
        first = int(np.argmax(rowed)) - at if rowed.any() else -1
        return _Stretch(at, (self.count, body, len(own) - at, first, depth))

"""What the engine is told of a program beside its code: where lanes read the same, and where passages lead."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nearbank.sim import vm
from nearbank.sim.code import Code
from nearbank.sim.lanes.twins import twins
from nearbank.sim.layout import Ints
from nearbank.sim.passage_texts import PassageTexts
from nearbank.sim.passages import through

_ROOMS = (1 << 20, 1 << 23, 1 << 20)  # integers for what passages of each kind did: 80 MB, if all of it is used


def _empty() -> Ints:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _Told:
    """`twin` is what `twins` says, `through` what `passages` says of these streams of the code."""

    code: Code
    streams: list[int]
    twin: Ints
    through: Ints


@dataclass
class Ways:
    """Worked out once for programs that share their code. `passed` is room for what passages did."""

    passed: Ints = field(default_factory=_empty)
    _sizes: tuple[tuple[int, int], ...] = ()
    _texts: PassageTexts = field(default_factory=PassageTexts)
    _last: _Told | None = None

    def of(self, code: Code, streams: list[int], entries: Ints) -> tuple[Ints, Ints]:
        """The lanes' twins and passages; lane i plays a stream of the code, which begins at a row of `entries`."""
        if self._last is None or self._last.code is not code or self._last.streams != streams:
            twin = twins(code.rows, entries) if len(entries) > 1 else entries
            self._last = _Told(code, streams, twin, through(code, streams, self._texts))
        return self._last.twin, self._last.through

    def forget(self) -> None:
        """What passages did holds no longer: there are more entries that commands write, or counters."""
        self._sizes = ()

    def make_room(self, tables: Ints, shared: Ints, lanes: int) -> None:
        """Room for as many passages as fit; what is kept of them holds as long as all is as large."""
        one, all_lanes = _sizes(tables, shared, 1), _sizes(tables, shared, lanes)
        if self._sizes == (one, all_lanes):
            return
        self._sizes = one, all_lanes
        sizes = [sum(one), sum(one), sum(all_lanes)]
        counts = [1 << (room // size).bit_length() >> 1 for room, size in zip(_ROOMS, sizes, strict=True)]
        if not tables[vm.KEPT]:
            counts = [0, 0, 0]
        begin = vm.P_KEY + all_lanes[0]
        places = np.cumsum([begin, *(count * size for count, size in zip(counts, sizes, strict=True))])
        self.passed = np.zeros(places[-1], dtype=np.int64)
        self.passed[: vm.P_KEY : 2] = places[:-1]
        self.passed[1 : vm.P_KEY : 2] = counts


def _sizes(tables: Ints, shared: Ints, lanes: int) -> tuple[int, int]:
    """Integers of a key and of what was done, for so many lanes."""
    t, state = tables, int(tables[vm.SNAP])
    key = vm.PK_SHARED + lanes * (vm.PK_SIZE + state - int(t[vm.LAST]))
    done = vm.PD_BUSY + 2 * int(shared[vm.G_JOBS]) + int(shared[vm.G_LABELS])
    return key, done + lanes * (vm.PD_SIZE + state - vm.COUNT)

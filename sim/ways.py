"""What the engine is told of a program beside its code: where lanes read the same, and where passages lead."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nearbank.sim import vm
from nearbank.sim.code import Code
from nearbank.sim.lanes.twins import twins
from nearbank.sim.layout import Ints
from nearbank.sim.passages import through

_ROOM = 1 << 21  # integers for what passages did: 16 MB


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
    _sizes: tuple[int, int] = (0, 0)
    _numbers: int = 0
    _last: _Told | None = None

    def of(self, code: Code, streams: list[int], entries: Ints) -> tuple[Ints, Ints]:
        """The lanes' twins and passages; lane i plays a stream of the code, which begins at a row of `entries`."""
        if self._last is None or self._last.code is not code or self._last.streams != streams:
            twin = twins(code.rows, entries) if len(entries) > 1 else entries
            self._last = _Told(code, streams, twin, through(code, streams, self._numbers + 1))
            self._numbers += len(code.rows)  # more than it has passages
        return self._last.twin, self._last.through

    def make_room(self, tables: Ints, shared: Ints, lanes: int) -> None:
        """Room for as many passages as fit; what is kept of them holds as long as all is as large."""
        t, state = tables, int(tables[vm.SNAP])
        key = vm.PK_SHARED + lanes * (vm.PK_SIZE + state - int(t[vm.LAST]))
        done = vm.PD_BUSY + 2 * int(shared[vm.G_JOBS]) + int(shared[vm.G_LABELS])
        size = key + done + lanes * (vm.PD_SIZE + state - vm.COUNT)
        if self._sizes == (key, size):
            return
        self._sizes = key, size
        count = 1 << (_ROOM // size).bit_length() >> 1 if t[vm.KEPT] else 0
        self.passed = np.zeros(vm.P_KEY + (key + count * size if count else 0), dtype=np.int64)
        self.passed[vm.P_COUNT] = count

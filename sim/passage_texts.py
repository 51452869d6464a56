"""What passages do, as text: those of any program that do the same have one number, and are kept once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise

import numpy as np

from nearbank.sim import vm
from nearbank.sim.layout import Ints

_MOST = 100_000  # texts that are known; numbers are never given again


@dataclass
class PassageTexts:
    """Numbers passages, and tells what code between meetings is new since the last program."""

    count: int = 0
    _numbers: dict[bytes, int] = field(default_factory=dict)
    _last: frozenset[bytes] = frozenset()

    def fresh(self, said: Ints, meetings: Ints) -> Ints:
        """Of one stream's meetings, in their rows of the code: if the last program had not what is from one to it."""
        texts = [said[begin:end].tobytes() for begin, end in pairwise([0, *meetings.tolist()])]
        found = np.array([text not in self._last for text in texts], dtype=bool)
        self._last = frozenset(texts)
        return found

    def number(self, said: Ints, ends: Ints, strides: Sequence[int]) -> tuple[int, bool]:
        """The number of the passage from row `ends[lane, 0]` up to row `ends[lane, 1]`, and if lanes say the same."""
        own = [said[first:last] for first, last in ends.tolist()]
        alike = all(np.array_equal(rows, own[0]) for rows in own[1:])
        texts = [blake2b(rows.tobytes(), digest_size=16).digest() for rows in (own[:1] if alike else own)]
        return self._number(np.array(strides).tobytes() + b"".join(texts)), alike

    def _number(self, text: bytes) -> int:
        known = self._numbers.get(text)
        if known is None:
            if len(self._numbers) >= _MOST:
                self._numbers.clear()
            self.count += 1
            known = self._numbers[text] = self.count
        return known


def said_by(rows: Ints) -> Ints:
    """All of a code's rows that time depends on: columns do not."""
    said = rows[:, : vm.COLUMN_STRIDES].copy()
    said[:, vm.COLUMN] = 0
    return said

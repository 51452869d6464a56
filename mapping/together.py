"""Which vectors go through the model together: tokens of a prompt, or a token of each of several sequences.

Together they share every open row of the weights. Each has its own K and V, so attention takes one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

from nearbank.errors import NearbankError
from nearbank.mapping.asic import Work
from nearbank.mapping.matmul import Rows
from nearbank.mapping.sweep import Address, repeat
from nearbank.sim.program import Builder
from nearbank.trace import Block, Operation, Step


@dataclass(frozen=True, slots=True)
class Together:
    """`count` vectors: tokens `first` … of a run of tokens, or a token of each of the sequences from `first` on.

    The `sequences` have caches `cache_rows` apart; 0 where vectors are tokens of one sequence.
    """

    count: int = 1
    first: int = 0
    cache_rows: int = 0

    def of_all(self, work: Callable[[int], Work]) -> Callable[[int], Work]:
        """The ASIC's work for so many elements of each vector."""
        return lambda elements: work(elements).times(self.count)

    @contextmanager
    def each(self, b: Builder, counter: Address, rows: Rows) -> Iterator[tuple[Address, Rows]]:
        """One vector after another: which token of the run it is, and where the rows of its cache are.

        `counter` counts passes where vectors are tokens, and tokens where they are sequences.
        """
        with repeat(b, self.count) as i:
            if self.cache_rows:
                yield counter, lambda row: rows(row) + (i + self.first) * self.cache_rows
            else:
                yield counter * self.count + i + self.first, rows


Turn = tuple[int, tuple[Together, ...]]  # so often, these one after another


def token_turns(tokens: int, reuse: int) -> list[Turn]:
    """A run of tokens of one sequence, as many at once as may be, then the rest."""
    full, rest = divmod(tokens, reuse)
    turns: list[Turn] = [(full, (Together(reuse),))] if full else []
    return turns + ([(1, (Together(rest, full * reuse),))] if rest else [])


def sequence_groups(sequences: int, reuse: int, cache_rows: int) -> tuple[Together, ...]:
    """All sequences, as many at once as may be, in groups that differ by one at most."""
    groups = -(-sequences // reuse)
    edges = [sequences * i // groups for i in range(groups + 1)]
    return tuple(Together(end - first, first, cache_rows) for first, end in pairwise(edges))


def one_sequence(step: Step) -> tuple[Step, int]:
    """The step as the first sequence sees it, and how many sequences do the same.

    `NearbankError` where sequences differ, or share parts of a cache.
    """
    numbers = {o.sequence for b in step.blocks for o in b.operations}
    count = max(numbers) + 1
    if count == 1:
        return step, 1
    blocks = tuple(replace(b, operations=_of_first(step, b, count)) for b in step.blocks)
    return replace(step, blocks=blocks), count


def _of_first(step: Step, block: Block, count: int) -> tuple[Operation, ...]:
    shared = [o for o in block.operations if o.op not in _OF_ONE]
    each: list[list[Operation]] = [[] for _ in range(count)]
    for o in block.operations:
        if o.op in _OF_ONE:
            each[o.sequence].append(replace(o, sequence=0))
    if any(other != each[0] for other in each) or any(o.holder is not None for o in each[0]):
        raise NearbankError(
            f"step {step.index} has sequences that differ or share a cache; this mapping takes sequences of equal "
            "length with a cache each"
        )
    if any((o.m or 0) % count for o in shared):
        raise NearbankError(f"step {step.index}: its tokens cannot be shared out evenly over {count} sequences")
    kept = [o for o in block.operations if o.op not in _OF_ONE or o.sequence == 0]
    return tuple(o if o.op in _OF_ONE else replace(o, m=(o.m or 0) // count) for o in kept)


_OF_ONE = ("append", "fork", "score", "softmax", "context", "sample")

"""Who holds which page of a pool: counts of holders, and each sequence's own list."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from nearbank.errors import NearbankError
from nearbank.kernels.arrays import checked_size
from nearbank.kernels.store import PAGE


class PageBook:
    """How many sequences hold each of `count` pages."""

    def __init__(self, count: int, owner: str) -> None:
        checked_size(count, f"{owner}: pages")
        self.count, self.owner = count, owner
        self.holders = np.zeros(count, np.int64)

    @property
    def free(self) -> int:
        """Pages that no sequence holds."""
        return int((self.holders == 0).sum())

    def check_free(self, wanted: int) -> None:
        """An error unless so many pages are free."""
        if self.free < wanted:
            raise NearbankError(
                f"{self.owner}: {wanted} more pages of {PAGE} tokens are needed and {self.free} of {self.count} are "
                "free; clear a sequence or make the pool larger"
            )

    def take(self, wanted: int) -> list[int]:
        """So many free pages, or none of them and an error."""
        self.check_free(wanted)
        taken = [int(page) for page in np.flatnonzero(self.holders == 0)[:wanted]]
        self.holders[taken] = 1
        return taken

    def release(self, pages: list[int]) -> None:
        """One sequence less holds these pages; the list is emptied."""
        self.holders[pages] -= 1
        pages.clear()


class HeldPages:
    """The pages of one sequence in the order of its tokens; `owner` gone, they go back."""

    def __init__(self, book: PageBook, owner: object) -> None:
        self.book = book
        self.pages: list[int] = []
        weakref.finalize(owner, book.release, self.pages)

    def shared(self, first: int, last: int) -> list[int]:
        """Those of its pages `first` … `last` (places in the list) that other sequences hold too."""
        return [i for i in range(first, min(last, len(self.pages))) if self.book.holders[self.pages[i]] > 1]

    def lacking(self, first: int, last: int) -> int:
        """Free pages that `own` would take."""
        return len(self.shared(first, last)) + max(0, last - len(self.pages))

    def own(self, first: int, last: int) -> list[tuple[int, int]]:
        """Make pages `first` … `last` of the sequence its own: new ones, and others for those that are shared.

        Returns (page, its copy to be) of the latter. An error and no change where too few pages are free.
        """
        shared = self.shared(first, last)
        taken = self.book.take(self.lacking(first, last))
        copies = [(self.pages[i], new) for i, new in zip(shared, taken, strict=False)]
        for i, (old, new) in zip(shared, copies, strict=True):
            self.book.holders[old] -= 1
            self.pages[i] = new
        self.pages += taken[len(shared) :]
        return copies

    def share(self, other: HeldPages) -> None:
        """Hold what another sequence holds, and nothing else."""
        pages = list(other.pages)
        self.book.holders[pages] += 1
        self.book.release(self.pages)
        self.pages += pages


def pages_between(start: int, tokens: int) -> tuple[int, int]:
    """The first page that tokens from position `start` are written to, and the one behind the last."""
    return start // PAGE, -(-(start + tokens) // PAGE)


def copy_page(store: Any, page: int, new: int) -> None:
    """A page's K and V of all layers into another page of the same memory."""
    for rows in (store.keys, store.values, store.key_params, store.value_params):
        rows[:, new] = rows[:, page]


def checked_sequences(sequences: Sequence[Any], pool: Any, kind: type[Any]) -> Sequence[Any]:
    """Refuse what is not a list of different sequences of that pool."""
    for one in sequences:
        if not isinstance(one, kind) or one.pool is not pool:
            raise NearbankError(f"{pool.book.owner}: a {type(one).__name__} is no sequence of this pool")
    if not sequences or len({id(one) for one in sequences}) < len(sequences):
        raise NearbankError(f"{pool.book.owner}: {len(sequences)} sequences; expected one or more, each of them once")
    return sequences

"""What a mapping may decide beside the published one: values that the mapper searches, each with its default.

The defaults are PIM-GPT's mapping. A choice changes where things lie or in which order commands come, never a result
beyond the order in which partial sums are added.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class MatrixChoice:
    """How one matrix lies.

    `split` channels share an output: each holds the weights of its part of the inputs and is sent that part of the
    vector only; the ASIC adds what they return. `chunk` bounds the columns of a chunk below what the buffer holds.
    `narrow_first`: the chunk that is left over comes first.
    `crossing`: outputs lie end to end over rows (True) or whole per row (False); None: the quicker, chunk by chunk.
    """

    split: int = 1
    chunk: int | None = None
    crossing: bool | None = None
    narrow_first: bool = False


@dataclass(frozen=True, slots=True)
class Choices:
    """One mapping among those that there are.

    `matrices`: choices by the name of the matrix. `team`: channels that share a KV head. `joined`: heads of a channel
    side by side in the rows of K. Both None: as the model and the machine suggest. `pieces`: hand-overs of a product's
    results to the ASIC. `padding`: percent of outputs that may be added so that all channels do the same.
    `early_rows`: the first row of a product opens before its vector is sent, or waited for. `reuse`: vectors that an
    open row is multiplied with before it closes; chunks are narrow enough for the buffer to hold them all. `by_use`:
    no refresh commands, as the run opens every row that holds data often enough (`nearbank.mapping.kept`).
    `in_place`: K and V of a token are written into rows that its scores and context products open anyway, in caches
    without scales.
    """

    matrices: tuple[tuple[str, MatrixChoice], ...] = ()
    team: int | None = None
    joined: bool | None = None
    pieces: int = 16
    padding: int = 1
    early_rows: bool = False
    reuse: int = 1
    by_use: bool = False
    in_place: bool = False

    def of(self, name: str) -> MatrixChoice:
        """What is chosen for a matrix."""
        return dict(self.matrices).get(name, MatrixChoice())

    def with_matrix(self, name: str, choice: MatrixChoice) -> Choices:
        """The same with another choice for one matrix."""
        return replace(self, matrices=tuple(sorted({**dict(self.matrices), name: choice}.items())))

"""Where every tensor of a model lies: rows of every bank, columns of a row, chunks of a matrix, space for K and V.

The way of PIM-GPT: output rows are dealt out over channels and banks, a matrix wider than the global buffer is cut
in chunks, space for K and V is reserved for the longest context, K is row-major and V column-major. All channels use
the same rows, so a region is a range of rows of every bank; what a layer has lies a fixed stride after the layer
before. Embedding tables and biases stay with the host and the ASIC, which add them; they take no space here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nearbank.cache_formats import FEEDBACK, cache_format
from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.mapping.cache_placement import CachePlacement, size_cache
from nearbank.mapping.matrix_placement import MatrixPlacement, size_matrix
from nearbank.mapping.region import Region
from nearbank.mapping.target import Target
from nearbank.trace import ModelDescription
from nearbank.trace.operation import HEAD


@dataclass(frozen=True, slots=True)
class Placement:
    """All tensors of a model in one machine. `rows` of every bank are taken.

    `cache` is that of the first sequence; that of the next lies `sequence_rows` further, those of all in `others`.
    """

    matrices: tuple[MatrixPlacement, ...]
    cache: CachePlacement
    rows: int
    sequence_rows: int = 0
    others: Region | None = None

    def matrix(self, name: str) -> MatrixPlacement:
        """The placement of a matrix; `NearbankError` lists the known ones."""
        for matrix in self.matrices:
            if matrix.name == name:
                return matrix
        known = ", ".join(m.name for m in self.matrices)
        raise NearbankError(f"the placed model has no matrix {name!r}; it has: {known}")

    @property
    def regions(self) -> tuple[Region, ...]:
        """Every region, by address."""
        cache = self.cache
        found = [m.region for m in self.matrices] + [m.scales for m in self.matrices if m.scales]
        found += [*cache.regions, *([self.others] if self.others else [])]
        return tuple(sorted(found, key=lambda r: r.first_row))


def place(
    model: ModelDescription,
    target: Target,
    *,
    weights: str,
    head: str,
    kv: str,
    inputs: str | None,
    max_context: int,
    v_block: int | None = None,
    sequences: int = 1,
    dequant: str | None = None,
) -> Placement:
    """Place every matrix in `weights` (the LM head in `head`) and reserve K and V in `kv` for `max_context` tokens
    of each of `sequences`.

    `inputs` is the format of the blocks' activations, by default int8 for integer weights and as the weights otherwise.
    `v_block` bounds how many tokens of one dimension lie in a row of V, by default as many as the row takes; `dequant`
    says who applies the scales of weights, "bank" or "asic", by default what suits the machine.
    Raises `NearbankError` with the tensor and the missing bytes when the machine is too small.
    """
    if model.encoder_layers:
        raise NearbankError(
            f"{model.name} has an encoder of {model.encoder_layers} layers; this mapping places decoders only, "
            "so replay a model without an encoder"
        )
    if cache_format(kv).fed_back:
        raise NearbankError(
            f"KV cache '{kv}' feeds errors of rounding back, which no ASIC here does; map '{kv.removesuffix(FEEDBACK)}'"
        )
    formats = {m.name: format_named(head if m.name == HEAD else weights) for m in model.matrices}
    sized = [
        size_matrix(m, formats[m.name], None if m.name == HEAD else inputs, target, dequant) for m in model.matrices
    ]
    cache = size_cache(model, cache_format(kv), max_context, target, v_block)
    return _addressed(sized, {m.name: m.per_layer for m in model.matrices}, cache, model.layers, target, sequences)


def _addressed(
    matrices: list[MatrixPlacement],
    per_layer: dict[str, bool],
    cache: CachePlacement,
    layers: int,
    target: Target,
    sequences: int,
) -> Placement:
    """Give every region its rows: first all that layers have, layer by layer, then the rest."""
    others = Region("K and V of other sequences", 0, (sequences - 1) * _cache_rows(cache), 0, 1, 0)
    stride = _layer_rows([m for m in matrices if per_layer[m.name]], cache) + others.rows
    allocate = _Allocator(layers, stride)
    placed = {m.name: allocate.matrix(m, inside=True) for m in matrices if per_layer[m.name]}
    cache = cache.placed([allocate.region(region, inside=True) for region in cache.regions])
    others = allocate.region(others, inside=True)
    placed |= {m.name: allocate.matrix(m, inside=False) for m in matrices if not per_layer[m.name]}
    held = tuple(placed[m.name] for m in matrices)
    placement = Placement(held, cache, allocate.outside, _cache_rows(cache), others if others.rows else None)
    _check_capacity(placement, target)
    return placement


def _layer_rows(matrices: list[MatrixPlacement], cache: CachePlacement) -> int:
    weights = sum(m.region.rows + (m.scales.rows if m.scales else 0) for m in matrices)
    return weights + _cache_rows(cache)


def _cache_rows(cache: CachePlacement) -> int:
    return sum(region.rows for region in cache.regions)


class _Allocator:
    """Hands out rows: `inside` those of layer 0, `outside` those after the last layer."""

    def __init__(self, layers: int, stride: int) -> None:
        self._layers, self._stride = layers, stride
        self._inside = 0
        self.outside = layers * stride

    def region(self, region: Region, *, inside: bool) -> Region:
        if inside:
            placed = replace(region, first_row=self._inside, stride=self._stride, copies=self._layers)
            self._inside += region.rows
        else:
            placed = replace(region, first_row=self.outside)
            self.outside += region.rows
        return placed

    def matrix(self, matrix: MatrixPlacement, *, inside: bool) -> MatrixPlacement:
        region = self.region(matrix.region, inside=inside)
        scales = self.region(matrix.scales, inside=inside) if matrix.scales else None
        row, chunks = region.first_row, []
        for chunk in matrix.chunks:
            chunks.append(replace(chunk, first_row=row))
            row += chunk.rows * chunk.count
        return replace(matrix, region=region, scales=scales, chunks=tuple(chunks))


def _check_capacity(placement: Placement, target: Target) -> None:
    """`NearbankError` with the missing bytes and the first tensor that does not fit."""
    if placement.rows <= target.rows:
        return
    region, layer = _at_row(placement, target.rows)
    missing = (placement.rows - target.rows) * target.row_in_all_banks
    where = f" of layer {layer}" if region.copies > 1 else ""
    raise NearbankError(
        f"the model does not fit machine {target.name}: it needs {missing} bytes more than there are "
        f"({target.rows * target.row_in_all_banks}); the first tensor without room is {region.tensor}{where}; "
        "use fewer bits per weight, a shorter context or more channels"
    )


def _at_row(placement: Placement, row: int) -> tuple[Region, int]:
    """The region that holds a row, and of which layer."""
    for region in placement.regions:
        layer = min((row - region.first_row) // region.stride, region.copies - 1) if region.stride else 0
        if layer >= 0 and row in region.rows_of(layer):
            return region, layer
    raise AssertionError(f"no region holds row {row} of {placement.rows}")

"""Where every tensor of a model lies: rows of every bank, columns of a row, chunks of a matrix, space for K and V.

The way of PIM-GPT: output rows are dealt out over channels and banks, a matrix wider than the global buffer is cut
in chunks, space for K and V is reserved for the longest context, K is row-major and V column-major. All channels use
the same rows, so a region is a range of rows of every bank; what a layer has lies a fixed stride after the layer
before. Embedding tables and biases stay with the host and the ASIC, which add them; they take no space here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nearbank.errors import NearbankError
from nearbank.formats import Format, format_named
from nearbank.mapping.packing import Packing, best_packing
from nearbank.mapping.target import ColumnUse, Target, value_bytes
from nearbank.trace import Matrix, ModelDescription
from nearbank.trace.operation import HEAD
from nearbank.units import ceil_div


@dataclass(frozen=True, slots=True)
class Region:
    """Rows [first_row, first_row + rows) of every bank, and again `stride` rows later for each further layer.

    `data_bytes` are the bytes of the tensor itself in one layer, without what rows leave empty.
    """

    tensor: str
    first_row: int
    rows: int
    stride: int
    copies: int
    data_bytes: int

    def rows_of(self, layer: int) -> range:
        """The rows of one layer (0 outside the layers)."""
        first = self.first_row + layer * self.stride
        return range(first, first + self.rows)


@dataclass(frozen=True, slots=True)
class Chunks:
    """`count` equal chunks of a matrix: inputs [first, first + width) of every output, the next chunk after them.

    Each begins at a row of its own, `rows` after the one before. An output's columns in a chunk are `parts` stretches
    with an accumulator read after each (formats with scales per group); `scale_columns` columns at the end of each
    row hold the scales of what lies in it.
    """

    first: int
    width: int
    count: int
    packing: Packing
    parts: int
    rows: int
    scale_columns: int
    first_row: int = 0


@dataclass(frozen=True, slots=True)
class MatrixPlacement:
    """A weight matrix [n, k]. `input_bytes` per input value in the global buffer; `scales` are those per row."""

    region: Region
    name: str
    n: int
    k: int
    use: ColumnUse
    input_format: str
    input_bytes: int
    chunks: tuple[Chunks, ...]
    scales: Region | None

    @property
    def chunk_count(self) -> int:
        return sum(chunks.count for chunks in self.chunks)


@dataclass(frozen=True, slots=True)
class CachePlacement:
    """Space for K and V of `max_context` tokens.

    `team` channels share a KV head: every team has `slots` heads. K of token t lies in bank t mod banks of the
    channel whose turn it is in the team, in record t // (banks · team); a record holds one token of each bank, of all
    slots side by side (`joined`) or of one slot. V of a slot has its dimensions dealt out over the team's banks; a
    row holds `v_dims` dimensions of `v_block` tokens. With a quantised cache, `scales` holds scale and offset of K
    and V of every token and head.
    """

    keys: Region
    values: Region
    scales: Region | None
    format: str
    use: ColumnUse
    input_bytes: int
    kv_heads: int
    queries: int
    head_dim: int
    max_context: int
    team: int
    slots: int
    joined: bool
    key_packing: Packing
    key_rows: int
    v_packing: Packing
    v_block: int
    v_local: int
    scale_bytes: int

    @property
    def head_columns(self) -> int:
        """Columns of one head's K of one token."""
        return self.use.columns(self.head_dim)

    @property
    def v_dims(self) -> int:
        return min(self.v_packing.per_row, self.v_local)

    @property
    def v_rows(self) -> int:
        """Rows of one slot's V of one block of tokens."""
        return ceil_div(self.v_local, self.v_dims)

    @property
    def v_blocks(self) -> int:
        return ceil_div(self.max_context, self.v_block)

    def teams(self, channels: int) -> int:
        return channels // self.team

    def slots_of(self, channel: int, channels: int) -> int:
        """KV heads of a channel: head h belongs to team h mod teams."""
        share, extra = divmod(self.kv_heads, self.teams(channels))
        return share + (channel // self.team < extra)

    def heads_in_slot(self, slot: int, channels: int) -> int:
        """KV heads that the channels hold together in one slot."""
        return min(self.teams(channels), self.kv_heads - slot * self.teams(channels))


@dataclass(frozen=True, slots=True)
class Placement:
    """All tensors of a model in one machine. `rows` of every bank are taken."""

    matrices: tuple[MatrixPlacement, ...]
    cache: CachePlacement
    rows: int

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
        found += [cache.keys, cache.values] + ([cache.scales] if cache.scales else [])
        return tuple(sorted(found, key=lambda r: r.first_row))


def place(
    model: ModelDescription, target: Target, *, weights: str, head: str, kv: str, inputs: str | None, max_context: int
) -> Placement:
    """Place every matrix in `weights` (the LM head in `head`) and reserve K and V in `kv` for `max_context` tokens.

    `inputs` is the format of the activations, by default int8 for integer weights and as the weights otherwise.
    Raises `NearbankError` with the tensor and the missing bytes when the machine is too small.
    """
    formats = {m.name: format_named(head if m.name == HEAD else weights) for m in model.matrices}
    sized = [_matrix(m, formats[m.name], inputs, target) for m in model.matrices]
    cache = _cache(model, format_named(kv), max_context, target)
    return _addressed(sized, {m.name: m.per_layer for m in model.matrices}, cache, model.layers, target)


def _matrix(matrix: Matrix, fmt: Format, inputs: str | None, target: Target) -> MatrixPlacement:
    """A matrix with the sizes of its chunks, not yet with addresses."""
    use = target.use(fmt)
    input_format = inputs if inputs and not fmt.is_float else fmt.name if fmt.is_float else "int8"
    input_bytes = value_bytes(input_format)
    chunks = _chunks(matrix, fmt, use, input_bytes, target)
    rows = sum(c.rows * c.count for c in chunks)
    region = Region(matrix.name, 0, rows, 0, 1, matrix.n * fmt.row_bytes(matrix.k) + _group_scales(fmt, matrix))
    per_row = fmt.scaling.per == "row"
    scales = _scale_region(matrix, fmt.scaling.scale_bytes, target) if per_row else None
    return MatrixPlacement(region, matrix.name, matrix.n, matrix.k, use, input_format, input_bytes, chunks, scales)


def _group_scales(fmt: Format, matrix: Matrix) -> int:
    return fmt.scaling.bytes_for(matrix.n, matrix.k) if fmt.scaling.per == "group" else 0


def _scale_region(matrix: Matrix, scale_bytes: int, target: Target) -> Region:
    """One scale per output: each channel has those of its own outputs, dealt out over banks, columns, rows."""
    bursts = target.bursts(target.outputs_of(0, matrix.n) * target.banks * scale_bytes)
    rows = ceil_div(bursts, target.banks * target.columns)
    return Region(f"{matrix.name} scales", 0, rows, 0, 1, matrix.n * scale_bytes)


def _chunks(matrix: Matrix, fmt: Format, use: ColumnUse, input_bytes: int, target: Target) -> tuple[Chunks, ...]:
    """Full chunks as wide as the global buffer, and one for the rest."""
    width = _chunk_width(matrix, fmt, use, input_bytes, target)
    full, rest = divmod(matrix.k, width)
    found: list[Chunks] = []
    for first, wide, count in ((0, width, full), (full * width, rest, 1 if rest else 0)):
        if count:
            found.append(_chunk(matrix.n, first, wide, count, fmt, use, target))
    return tuple(found)


def _chunk_width(matrix: Matrix, fmt: Format, use: ColumnUse, input_bytes: int, target: Target) -> int:
    """Inputs of one chunk: what the buffer holds, in whole columns; with scales per group, what fills rows best."""
    held = target.buffer_bytes // input_bytes
    if fmt.scaling.per != "group":
        return max(held // use.values, 1) * use.values
    group = fmt.scaling.group
    if group % use.values or group > held:
        raise NearbankError(
            f"machine {target.name}: scales per {group} values do not fit columns of {use.values} values "
            f"and a global buffer of {held} values; use a multiple of {use.values} up to {held}"
        )
    widths = [count * group for count in range(1, held // group + 1)]
    return min(widths, key=lambda width: (_grouped_rows(matrix, fmt, use, width, target), -width))


def _grouped_rows(matrix: Matrix, fmt: Format, use: ColumnUse, width: int, target: Target) -> int:
    """Rows of a matrix in chunks of `width` inputs with their scales; one more than can be when a chunk has no room."""
    packing, scale_columns = _with_scales(fmt, use, width, target)
    if packing.row_columns + scale_columns > target.columns:
        return target.rows + 1
    return ceil_div(matrix.k, width) * packing.rows(target.outputs_of(0, matrix.n))


def _chunk(n: int, first: int, width: int, count: int, fmt: Format, use: ColumnUse, target: Target) -> Chunks:
    outputs = target.outputs_of(0, n)
    if fmt.scaling.per != "group":
        packing = best_packing(use.columns(width), target.columns, use.steps, target.row_change, target.readout)
        return Chunks(first, width, count, packing, 1, packing.rows(outputs), 0)
    packing, scale_columns = _with_scales(fmt, use, width, target)
    return Chunks(
        first, width, count, packing, ceil_div(width, fmt.scaling.group), packing.rows(outputs), scale_columns
    )


def _with_scales(fmt: Format, use: ColumnUse, width: int, target: Target) -> tuple[Packing, int]:
    """Whole outputs per row, and the columns at the row's end for the scales of their groups."""
    columns = use.columns(width)
    scale_bytes = fmt.scaling.bytes_for(1, width)
    per_row = max(target.columns // columns, 1)
    while per_row > 1 and per_row * columns + target.bursts(per_row * scale_bytes) > target.columns:
        per_row -= 1
    return Packing(columns, per_row * columns, False), target.bursts(per_row * scale_bytes)


def _cache(model: ModelDescription, fmt: Format, max_context: int, target: Target) -> CachePlacement:
    use = target.use(fmt)
    queries = model.heads // model.kv_heads
    team = _team(model, use, max_context, target)
    slots = ceil_div(model.kv_heads, target.channels // team)
    input_bytes = value_bytes("bf16")
    joined = _joins(model, use, slots, max_context, input_bytes, target)
    _check_query(queries * use.columns(model.head_dim) * use.values * input_bytes, model, target)
    in_record = use.columns(model.head_dim) * (slots if joined else 1)
    records = ceil_div(max_context, target.banks * team)
    key_packing = Packing(in_record, target.columns, False)
    key_rows = key_packing.rows(records)
    v_block = min(target.buffer_bytes // input_bytes, target.columns * use.values, _rounded(max_context, use.values))
    v_local = ceil_div(model.head_dim // team, target.banks)
    v_packing = Packing(use.columns(v_block), target.columns, False)
    scaling = fmt.for_cache().scaling
    data = max_context * model.kv_heads * fmt.row_bytes(model.head_dim)
    scale_bytes = 0 if fmt.is_float else 2 * (scaling.scale_bytes + scaling.zero_bytes)
    blocks = slots * ceil_div(max_context, v_block) * ceil_div(v_local, min(v_packing.per_row, v_local))
    return CachePlacement(
        keys=Region("K", 0, key_rows * (1 if joined else slots), 0, 1, data),
        values=Region("V", 0, blocks, 0, 1, data),
        scales=_cache_scales(slots, team, max_context, scale_bytes, model, target) if scale_bytes else None,
        format=fmt.name,
        use=use,
        input_bytes=input_bytes,
        kv_heads=model.kv_heads,
        queries=queries,
        head_dim=model.head_dim,
        max_context=max_context,
        team=team,
        slots=slots,
        joined=joined,
        key_packing=key_packing,
        key_rows=key_rows,
        v_packing=v_packing,
        v_block=v_block,
        v_local=v_local,
        scale_bytes=scale_bytes,
    )


def _check_query(size_bytes: int, model: ModelDescription, target: Target) -> None:
    if size_bytes > target.buffer_bytes:
        raise NearbankError(
            f"machine {target.name}: the {model.heads // model.kv_heads} queries of one KV head take {size_bytes} "
            f"bytes, but the global buffer has {target.buffer_bytes}; use a machine with a larger buffer"
        )


def _rounded(value: int, unit: int) -> int:
    return ceil_div(value, unit) * unit


def _cache_scales(
    slots: int, team: int, max_context: int, scale_bytes: int, model: ModelDescription, target: Target
) -> Region:
    """A slot's scales, in bursts of whole tokens dealt out over the team's channels and their banks, in own rows."""
    bursts = ceil_div(target.bursts(max_context * scale_bytes), team)
    rows = ceil_div(ceil_div(bursts, target.banks), target.columns)
    return Region("K and V scales", 0, slots * rows, 0, 1, max_context * model.kv_heads * scale_bytes)


# Larger teams make more kinds of channels, so they must save at least this much of the attention's time.
TEAM_GAIN = 0.1


def _team(model: ModelDescription, use: ColumnUse, max_context: int, target: Target) -> int:
    """Channels that share a head: more than one only where that clearly helps at half the longest context.

    A larger team has fewer heads in work at once, which a long context may need to fit the ASIC's memory.
    """
    useful = [
        size
        for size in range(1, target.channels + 1)
        if target.channels % size == 0 and model.head_dim % size == 0 and model.head_dim // size >= target.banks
    ]
    fitting = [size for size in useful if _asic_holds(model, heads_at_work(model, target, size), max_context, target)]
    best, *others = fitting or useful or [1]
    least = _attention_cycles(model, use, max_context // 2, best, target)
    for size in others:
        cycles = _attention_cycles(model, use, max_context // 2, size, target)
        if cycles < (1 - TEAM_GAIN) * least:
            best, least = size, cycles
    return best


def heads_at_work(model: ModelDescription, target: Target, team: int) -> int:
    """Query heads whose scores the ASIC holds when heads go one after another: a slot scored, a slot in softmax."""
    return min(2 * (target.channels // team) * (model.heads // model.kv_heads), model.heads)


def _asic_holds(model: ModelDescription, heads: int, max_context: int, target: Target) -> bool:
    need = score_bytes(heads, max_context, value_bytes("bf16")) + vector_bytes(model)
    return need <= target.asic.sram_bytes


def _attention_cycles(model: ModelDescription, use: ColumnUse, context: int, team: int, target: Target) -> int:
    """Roughly what the busiest channel spends on scores and context products of one token."""
    slots = ceil_div(model.kv_heads, target.channels // team)
    records = ceil_div(context, target.banks * team)
    score = records * (use.columns(model.head_dim) * use.steps + target.readout)
    sent = target.bursts(context * value_bytes("bf16"))
    product = ceil_div(model.head_dim // team, target.banks) * (use.columns(context) * use.steps + target.row_change)
    return slots * (model.heads // model.kv_heads) * (score + sent + product)


def _joins(
    model: ModelDescription, use: ColumnUse, slots: int, max_context: int, input_bytes: int, target: Target
) -> bool:
    """True when all slots' heads fit side by side: in a row, in the global buffer and, as scores, in the ASIC."""
    columns = slots * use.columns(model.head_dim)
    vectors = slots * (model.heads // model.kv_heads) * use.columns(model.head_dim) * use.values * input_bytes
    held = _asic_holds(model, model.heads, max_context, target)
    return columns <= target.columns and vectors <= target.buffer_bytes and held


def score_bytes(heads: int, max_context: int, input_bytes: int) -> int:
    """ASIC memory for the scores of so many heads; the softmax overwrites them."""
    return heads * max_context * input_bytes


def vector_bytes(model: ModelDescription) -> int:
    """ASIC memory for one token: the residual stream, a matrix product's vector and its results, in 16 bits."""
    widest = max((m.n for m in model.matrices if m.per_layer), default=model.width)
    longest = max((m.k for m in model.matrices), default=model.width)
    return 2 * (model.width + longest + widest)


def _addressed(
    matrices: list[MatrixPlacement], per_layer: dict[str, bool], cache: CachePlacement, layers: int, target: Target
) -> Placement:
    """Give every region its rows: first all that layers have, layer by layer, then the rest."""
    stride = _layer_rows([m for m in matrices if per_layer[m.name]], cache)
    allocate = _Allocator(layers, stride)
    placed = {m.name: allocate.matrix(m, inside=True) for m in matrices if per_layer[m.name]}
    cache = replace(
        cache,
        keys=allocate.region(cache.keys, inside=True),
        values=allocate.region(cache.values, inside=True),
        scales=allocate.region(cache.scales, inside=True) if cache.scales else None,
    )
    placed |= {m.name: allocate.matrix(m, inside=False) for m in matrices if not per_layer[m.name]}
    placement = Placement(tuple(placed[m.name] for m in matrices), cache, allocate.outside)
    _check_capacity(placement, target)
    return placement


def _layer_rows(matrices: list[MatrixPlacement], cache: CachePlacement) -> int:
    weights = sum(m.region.rows + (m.scales.rows if m.scales else 0) for m in matrices)
    return weights + cache.keys.rows + cache.values.rows + (cache.scales.rows if cache.scales else 0)


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

"""How a weight matrix is cut in chunks and laid in rows, before it has an address.

The outputs are dealt out over channels and banks; a chunk has as many inputs as the global buffer holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from nearbank.errors import NearbankError
from nearbank.formats import Format, format_named
from nearbank.mapping.bank_scales import ASIC, BankScales, bank_scales, scaled_in_bank
from nearbank.mapping.choices import MatrixChoice
from nearbank.mapping.packing import Packing, best_packing
from nearbank.mapping.region import Region
from nearbank.mapping.target import ColumnUse, Target, activation_bits
from nearbank.trace import Matrix
from nearbank.units import ceil_div


@dataclass(frozen=True, slots=True)
class Chunks:
    """`count` equal chunks of a matrix: inputs [first, first + width) of every output, the next chunk after them.

    Each begins at a row of its own, `rows` after the one before. An output's columns in a chunk are `parts` stretches
    with an accumulator read after each (formats with scales per group); `scale_columns` columns at the end of each
    row hold the scales of what lies in it. `bank`: the banks apply the scales themselves; then an output is one part.
    """

    first: int
    width: int
    count: int
    packing: Packing
    parts: int
    rows: int
    scale_columns: int
    first_row: int = 0
    bank: BankScales | None = None

    def steps(self, use: ColumnUse) -> int:
        """MAC commands per column: fewer where an output does not fill its only column."""
        return use.steps if self.packing.columns > 1 else use.steps_for(self.width)


@dataclass(frozen=True, slots=True)
class MatrixPlacement:
    """A weight matrix [n, k]. `input_bits` per input value in the global buffer; `scales` are those per row.

    `split` channels share an output: member i of such a team has inputs [i · inputs, (i + 1) · inputs), and `chunks`
    count from the first of them.
    """

    region: Region
    name: str
    n: int
    k: int
    use: ColumnUse
    input_format: str
    input_bits: int
    chunks: tuple[Chunks, ...]
    scales: Region | None
    split: int = 1

    @property
    def integer_inputs(self) -> bool:
        """True when vectors are rounded to integers with a scale."""
        return not format_named(self.input_format).is_float

    @property
    def scaled_in_bank(self) -> bool:
        """True when the banks apply the scales of weights."""
        return any(chunks.bank for chunks in self.chunks)

    @property
    def inputs(self) -> int:
        """Inputs of one channel: all, unless several share an output; the last of those may have fewer."""
        return sum(chunks.width * chunks.count for chunks in self.chunks)

    def needs(self, inputs: int) -> int:
        """Inputs of the whole matrix that are needed before all channels have the first `inputs` of theirs."""
        return min((self.split - 1) * self.inputs + inputs, self.k)

    def outputs_of(self, channel: int, target: Target) -> int:
        """Outputs in each bank of a channel."""
        return target.outputs_of(channel, self.n, self.split)

    def finished(self, outputs: int, target: Target) -> int:
        """Values that so many outputs per bank of all channels are, once the shares of a team are added."""
        return min(outputs * target.banks * target.channels // self.split, self.n)

    @property
    def chunk_count(self) -> int:
        return sum(chunks.count for chunks in self.chunks)


def size_matrix(
    matrix: Matrix, fmt: Format, inputs: str | None, target: Target, dequant: str | None = None
) -> MatrixPlacement:
    """A matrix with the sizes of its chunks, not yet with addresses."""
    input_format = inputs if inputs and not fmt.is_float else fmt.name if fmt.is_float else "int8"
    if inputs:
        activation_bits(inputs)
    use = target.use(fmt, input_format)
    input_bits = activation_bits(input_format)
    _check_padding(matrix, fmt, input_format)
    choice = target.choices.of(matrix.name)
    in_bank = scaled_in_bank(fmt, use, dequant, target)
    chunks = _chunks(matrix, fmt, use, input_bits, target, choice, in_bank)
    rows = sum(c.rows * c.count for c in chunks)
    size = matrix.n * fmt.row_bytes(matrix.k) + _scales_beside(fmt, matrix, chunks)
    region = Region(matrix.name, 0, rows, 0, 1, size)
    per_row = fmt.scaling.per == "row" and not in_bank
    scales = _scale_region(matrix, fmt.scaling.scale_bytes, target) if per_row else None
    return MatrixPlacement(
        region, matrix.name, matrix.n, matrix.k, use, input_format, input_bits, chunks, scales, choice.split
    )


def _check_padding(matrix: Matrix, fmt: Format, inputs: str) -> None:
    """Where neither weights nor inputs have a zero, what fills the last column must cancel out, two by two."""
    if (fmt.name, inputs) == ("binary", "binary") and matrix.k % 2:
        raise NearbankError(
            f"{matrix.name}: {matrix.k} binary inputs of binary weights are odd, so that padding would count; "
            "use ternary inputs, or an even number"
        )


def _scales_beside(fmt: Format, matrix: Matrix, chunks: tuple[Chunks, ...]) -> int:
    """Bytes of the scales in the rows of the weights."""
    if any(c.bank for c in chunks):
        groups = ((c.count * c.packing.columns // c.bank.group, c.bank.entry) for c in chunks if c.bank)
        return matrix.n * sum(count * entry for count, entry in groups)
    return fmt.scaling.bytes_for(matrix.n, matrix.k) if fmt.scaling.per == "group" else 0


def _scale_region(matrix: Matrix, scale_bytes: int, target: Target) -> Region:
    """One scale per output: each channel has those of its own outputs, dealt out over banks, columns, rows."""
    bursts = target.bursts(target.outputs_of(0, matrix.n) * target.banks * scale_bytes)
    rows = ceil_div(bursts, target.banks * target.columns)
    return Region(f"{matrix.name} scales", 0, rows, 0, 1, matrix.n * scale_bytes)


def _chunks(
    matrix: Matrix, fmt: Format, use: ColumnUse, input_bits: int, target: Target, choice: MatrixChoice, in_bank: bool
) -> tuple[Chunks, ...]:
    """Full chunks as wide as the global buffer, and one for the rest behind or before them."""
    _check_split(matrix, fmt, target, choice.split)
    width = _chunk_width(matrix, fmt, use, input_bits, target, in_bank)
    if choice.chunk:
        unit = fmt.scaling.group if in_bank and fmt.scaling.per == "group" else use.values
        width = min(width, max(choice.chunk * use.values // unit, 1) * unit)
    inputs = matrix.k if choice.split == 1 else ceil_div(use.columns(matrix.k), choice.split) * use.values
    full, rest = divmod(inputs, width)
    found: list[Chunks] = []
    cuts = [(0, width, full), (full * width, rest, 1)]
    if choice.narrow_first:
        _check_narrow_first(matrix, rest, input_bits, use, target)
        cuts = [(0, rest, 1), (rest, width, full)]
    for first, wide, count in cuts:
        if count and wide:
            how = _bank_chunk if in_bank else _chunk
            found.append(how(matrix.n, first, wide, count, fmt, use, target, choice))
    return tuple(found)


def _check_narrow_first(matrix: Matrix, rest: int, input_bits: int, use: ColumnUse, target: Target) -> None:
    """What comes before other chunks ends with a column, and its vector with a burst."""
    if rest % use.values or rest * input_bits % (8 * target.column_bytes):
        raise NearbankError(
            f"{matrix.name}: {rest} inputs left over do not fill columns of {use.values} and bursts of "
            f"{target.column_bytes} bytes, so they cannot come first; leave out narrow_first"
        )


def _check_split(matrix: Matrix, fmt: Format, target: Target, split: int) -> None:
    if split == 1:
        return
    if split < 1 or target.channels % split:
        raise NearbankError(
            f"{matrix.name}: {split} channels cannot share an output on {target.channels} channels; use a divisor"
        )
    if not splits(fmt):
        raise NearbankError(
            f"{matrix.name}: {fmt.spec} has scales per {fmt.scaling.per}, which channels cannot share; use split=1"
        )


def splits(fmt: Format) -> bool:
    """True when channels may share outputs of a format: the ASIC has its scale, if any."""
    return fmt.scaling.per not in ("row", "group")


def _chunk_width(matrix: Matrix, fmt: Format, use: ColumnUse, input_bits: int, target: Target, in_bank: bool) -> int:
    """Inputs of one chunk: what the buffer holds, in whole columns; with scales per group, what fills rows best.

    Where several vectors share an open row, the buffer holds all of them, and a row at least one output.
    """
    held = 8 * target.buffer_bytes // input_bits
    if target.choices.reuse > 1:
        held = _held_of_each(matrix, use, input_bits, target)
    if fmt.scaling.per != "group":
        if in_bank and target.choices.reuse > 1:
            held = min(held, (target.columns - 1) * use.values)  # a column of the row is for scales
        return max(held // use.values, 1) * use.values
    group = fmt.scaling.group
    if group % use.values or group > held:
        raise NearbankError(
            f"machine {target.name}: scales per {group} values do not fit columns of {use.values} values "
            f"and a global buffer of {held} values; use a multiple of {use.values} up to {held}"
        )
    if in_bank:
        most = bank_scales(fmt, use, use.columns(group), target).used * use.values
        return max(min(held, most if target.choices.reuse > 1 else held) // group, 1) * group
    widths = [count * group for count in range(1, held // group + 1)]
    return min(widths, key=lambda width: (_grouped_rows(matrix, fmt, use, width, target), -width))


def _held_of_each(matrix: Matrix, use: ColumnUse, input_bits: int, target: Target) -> int:
    """Inputs of each of the vectors that share an open row: whole columns, in the buffer whole bursts."""
    reuse, burst = target.choices.reuse, 8 * target.column_bytes
    unit = use.values * (burst // gcd(input_bits * use.values, burst))
    held = 8 * target.buffer_bytes // input_bits // unit * unit
    each = held // reuse // unit * unit
    if not each:
        raise NearbankError(
            f"{matrix.name}: the global buffer of machine {target.name} holds {held} inputs, too few for {unit} of "
            f"each of {reuse} vectors; use reuse={held // unit} or less"
        )
    return min(each, target.columns * use.values)


def _grouped_rows(matrix: Matrix, fmt: Format, use: ColumnUse, width: int, target: Target) -> int:
    """Rows of a matrix in chunks of `width` inputs with their scales; one more than can be when a chunk has no room."""
    packing, scale_columns = _with_scales(fmt, use, width, target)
    if packing.row_columns + scale_columns > target.columns:
        return target.rows + 1
    return ceil_div(matrix.k, width) * packing.rows(target.outputs_of(0, matrix.n))


def _chunk(
    n: int, first: int, width: int, count: int, fmt: Format, use: ColumnUse, target: Target, choice: MatrixChoice
) -> Chunks:
    outputs = target.outputs_of(0, n, choice.split)
    if fmt.scaling.per != "group":
        packing = _packed(use.columns(width), target.columns, use, target, choice, target.readout)
        return Chunks(first, width, count, packing, 1, packing.rows(outputs), 0)
    packing, scale_columns = _with_scales(fmt, use, width, target)
    return Chunks(
        first, width, count, packing, ceil_div(width, fmt.scaling.group), packing.rows(outputs), scale_columns
    )


def _bank_chunk(
    n: int, first: int, width: int, count: int, fmt: Format, use: ColumnUse, target: Target, choice: MatrixChoice
) -> Chunks:
    """A chunk whose scales the banks apply: those of its groups, or one of each output, in its rows."""
    grouped = fmt.scaling.per == "group"
    group = use.columns(fmt.scaling.group if grouped else width)
    scales = bank_scales(fmt, use, group, target)
    columns = ceil_div(width, fmt.scaling.group) * group if grouped else group
    packing = _packed(columns, scales.used, use, target, choice, target.readout + target.scaling)
    _check_together(fmt, packing, target)
    outputs = target.outputs_of(0, n, choice.split)
    return Chunks(first, width, count, packing, 1, packing.rows(outputs), 0, bank=scales)


def _check_together(fmt: Format, packing: Packing, target: Target) -> None:
    """Vectors that share an open row need an accumulator each until their groups end, and rows of whole outputs."""
    reuse, most = target.choices.reuse, target.accumulators
    if reuse > 1 and (reuse > most or not packing.per_row):
        raise NearbankError(
            f"{reuse} vectors cannot share a row of {fmt.spec}: the banks of machine {target.name} have {most} "
            f"accumulators for their scaled sums, and a row holds {packing.row_columns} columns; use a smaller reuse, "
            f"or dequant={ASIC}"
        )


def _packed(
    columns: int, row_columns: int, use: ColumnUse, target: Target, choice: MatrixChoice, readout: int
) -> Packing:
    """How outputs lie in rows: the quicker way, unless the choice or weights used again say how."""
    if choice.crossing is None and target.choices.reuse == 1:
        return best_packing(columns, row_columns, use.steps, target.row_change, readout, target.accumulators)
    return Packing(columns, row_columns, bool(choice.crossing) and target.choices.reuse == 1)


def _with_scales(fmt: Format, use: ColumnUse, width: int, target: Target) -> tuple[Packing, int]:
    """Whole outputs per row, and the columns at the row's end for the scales of their groups."""
    columns = ceil_div(width, fmt.scaling.group) * use.columns(fmt.scaling.group)
    scale_bytes = fmt.scaling.bytes_for(1, width)
    per_row = max(target.columns // columns, 1)
    while per_row > 1 and per_row * columns + target.bursts(per_row * scale_bytes) > target.columns:
        per_row -= 1
    return Packing(columns, per_row * columns, False), target.bursts(per_row * scale_bytes)

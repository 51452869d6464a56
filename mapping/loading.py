"""Weights as bytes in the banks, where a placement puts them, and where each result comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Format, Quantised, format_named
from nearbank.mapping.bank_arithmetic import Bytes
from nearbank.mapping.bank_scales import BankScales, scale_bytes
from nearbank.mapping.functional import BankMemory
from nearbank.mapping.matrix_placement import Chunks, MatrixPlacement
from nearbank.mapping.target import Target

Codes = npt.NDArray[Any]


def chunks_of(matrix: MatrixPlacement) -> Iterator[tuple[Chunks, int, int, int]]:
    """Every chunk in the order it is multiplied: (its kind, first input, inputs, first row)."""
    for chunks in matrix.chunks:
        for i in range(chunks.count):
            yield chunks, chunks.first + i * chunks.width, chunks.width, chunks.first_row + i * chunks.rows


def load_matrix(memory: BankMemory, matrix: MatrixPlacement, weights: Quantised, layer: int = 0) -> None:
    """Write codes [n, k] (and scales per row) of one layer's matrix to the banks."""
    fmt = format_named(matrix.use.format)
    if weights.codes.shape != (matrix.n, matrix.k):
        raise NearbankError(
            f"{matrix.name}: weights are {list(weights.codes.shape)}; placed are [{matrix.n}, {matrix.k}]"
        )
    offset = layer * matrix.region.stride
    if fmt.stores_zeros and fmt.scaling.per != "group" and not matrix.scaled_in_bank:
        raise NearbankError(
            f"{matrix.name}: the ASIC takes no zeros off sums of {fmt.spec}, so that they cannot be executed; "
            "use scales per group, or banks that apply them (dequant=bank)"
        )
    for chunks, first, width, row in chunks_of(matrix):
        room = chunks.packing.columns * matrix.use.values
        starts = [member * matrix.inputs + first for member in range(matrix.split)]
        parts = [_packed(fmt, weights.codes[:, start : start + width], room) for start in starts]
        _write_outputs(memory, chunks, _dealt_to_teams(parts, memory.target), row + offset)
        if chunks.bank:
            _write_bank_scales(memory, chunks, chunks.bank, weights, first // max(fmt.scaling.group, 1), row + offset)
        elif chunks.scale_columns:
            _write_group_scales(memory, chunks, weights, first // fmt.scaling.group, row + offset)
    if matrix.scales and weights.scales is not None:
        _write_scales(memory, matrix, weights.scales, matrix.scales.first_row + offset)


def _packed(fmt: Format, codes: Codes, width: int) -> Bytes:
    """Outputs [n, bytes] filled up to `width` values, whole columns, with the format's neutral code."""
    padded = np.full((len(codes), width), fmt.zero, dtype=codes.dtype)
    padded[:, : codes.shape[1]] = codes
    return fmt.pack(padded)


def _dealt(per_output: Bytes, target: Target) -> Bytes:
    """[n, bytes] → [outputs per bank, channels, banks, bytes]: a bank's worth to one channel after another."""
    each = target.outputs_of(0, len(per_output))
    room = np.zeros((each * target.channels * target.banks, per_output.shape[1]), dtype=np.uint8)
    room[: len(per_output)] = per_output
    return room.reshape(each, target.channels, target.banks, -1)


def _dealt_to_teams(parts: list[Bytes], target: Target) -> Bytes:
    """What each member of the teams that share outputs has of them [n, bytes], as `_dealt`: members are neighbours."""
    teams = replace(target, channels=target.channels // len(parts))
    dealt = np.stack([_dealt(part, teams) for part in parts], axis=2)
    return dealt.reshape(len(dealt), target.channels, target.banks, -1)


def _write_outputs(memory: BankMemory, chunks: Chunks, dealt: Bytes, first_row: int) -> None:
    size = memory.target.column_bytes
    for output in range(len(dealt)):
        for offset in range(chunks.packing.columns):
            row, column = chunks.packing.place(output, offset)
            memory.column(first_row + row, column)[:] = dealt[output, :, :, offset * size : (offset + 1) * size]


def _write_scales(memory: BankMemory, matrix: MatrixPlacement, scales: npt.NDArray[np.float32], first_row: int) -> None:
    """Each channel's own scales, in the order of its outputs, dealt out over banks, columns, rows."""
    target = memory.target
    per_output = np.ascontiguousarray(scales.reshape(matrix.n, 1), dtype=np.float32).view(np.uint8)
    dealt = _dealt(per_output, target)  # [outputs, channels, banks, 4]
    flat = dealt.transpose(1, 0, 2, 3).reshape(target.channels, -1)
    for burst in range(target.bursts(flat.shape[1])):
        columns, bank = divmod(burst, target.banks)
        row, column = divmod(columns, target.columns)
        part = flat[:, burst * target.column_bytes : (burst + 1) * target.column_bytes]
        memory.column(first_row + row, column)[:, bank, : part.shape[1]] = part


def _write_group_scales(memory: BankMemory, chunks: Chunks, weights: Quantised, group: int, first_row: int) -> None:
    """At the end of each row, output after output: the scales of its groups, then their zeros."""
    assert weights.scales is not None
    assert weights.zeros is not None
    taken = slice(group, group + chunks.parts)
    scales = np.ascontiguousarray(weights.scales[:, taken], dtype=np.float32).view(np.uint8)
    per_output = np.concatenate([scales, weights.zeros[:, taken]], axis=1)
    dealt = _dealt(per_output, memory.target)
    first_byte = chunks.packing.row_columns * memory.target.column_bytes
    for output in range(len(dealt)):
        row, place = divmod(output, chunks.packing.per_row)
        start = first_byte + place * per_output.shape[1]
        memory.row(first_row + row)[:, :, start : start + per_output.shape[1]] = dealt[output]


def _write_bank_scales(
    memory: BankMemory, chunks: Chunks, bank: BankScales, weights: Quantised, group: int, first_row: int
) -> None:
    """In the row where each group ends: its scale in the unit's format, and its zero; one per row in every chunk."""
    assert weights.scales is not None
    parts = chunks.packing.columns // bank.group
    taken = slice(None) if weights.scales.shape[1] == 1 else slice(group, group + parts)
    zeros = None if weights.zeros is None else weights.zeros[:, taken]
    entries = scale_bytes(bank.format, weights.scales[:, taken], zeros)
    dealt = _dealt(entries.reshape(len(entries), -1), memory.target)
    for output in range(len(dealt)):
        for part in range(entries.shape[1]):
            row, index = bank.place(chunks.packing, output, part)
            found = dealt[output, :, :, part * bank.entry : (part + 1) * bank.entry]
            memory.row(first_row + row)[:, :, bank.byte(index) : bank.byte(index) + bank.entry] = found


def output_index(target: Target, n: int, split: int = 1) -> npt.NDArray[np.int64]:
    """The output that [outputs per bank, teams of channels, banks] compute; n and more where there is none."""
    each, teams = target.outputs_of(0, n, split), target.channels // split
    return np.arange(each * teams * target.banks).reshape(each, teams, target.banks)

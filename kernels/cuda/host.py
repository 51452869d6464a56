"""Matrix launches: which kernel, how many blocks, how much workspace. The same for a GPU and for the emulation.

A `Runtime` is a device: it owns memory and starts kernels. Nothing here waits for the device or copies from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels.cuda import layout, sources
from nearbank.kernels.cuda.sources import Kernel
from nearbank.kernels.packed import PackedMatrix

WARPS = 8
THREADS = 32 * WARPS
GROUP_SUM_BYTES = 48 * 1024
GEMV_TOKENS = 16  # up to here weights are the traffic; above, blocks of tokens share them
GEMM_TOKENS = 1 << 20  # per launch: 65 535 blocks of 64 tokens would be the hardware's limit
GEMM_STAGES = 3
WIDE_TOKENS = 128  # from here the warpgroup kernel's blocks are at least half full
WIDE_SHARED_BYTES = 4 * 256 * 128 + 1024
TENSOR_CORES, DOT_PRODUCTS = 80, 61  # lowest compute capability (× 10) of each path


class Runtime(Protocol):
    """What a device can do. Arrays are the device's own; every launch is asynchronous."""

    multiprocessors: int
    capability: int

    def asarray(self, array: Any) -> Any: ...
    def empty(self, shape: Any, dtype: Any) -> Any: ...
    def zeros(self, shape: Any, dtype: Any) -> Any: ...
    def kernel(self, kernel: Kernel) -> Callable[..., None]: ...
    def has_wide(self) -> bool: ...


@dataclass(frozen=True)
class Tiles:
    """Integer weights on the device, still packed, with the scratch memory of their launches."""

    format: Format
    shape: layout.Shape
    words: Any
    scales: Any
    zeros: Any
    row_ones: Any  # binary weights, one scale per row: how many are +1 in each row
    partial: Any = field(repr=False)
    arrived: Any = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of device memory, scratch included."""
        arrays = (self.words, self.scales, self.zeros, self.row_ones, self.partial, self.arrived)
        return sum(int(a.nbytes) for a in arrays if a is not None)


@dataclass(frozen=True)
class StagedRows:
    """int8 activations on the device: codes [M, padded columns], scales [M], sums [M, groups]."""

    codes: Any
    scales: Any
    sums: Any
    in_steps: bool = False  # ordered for `launch_wide`, which alone can read it then


def upload(runtime: Runtime, packed: PackedMatrix) -> Tiles:
    """Repack weights and copy them to the device."""
    shape, tiles = layout.tile_matrix(packed)
    assert packed.scales is not None
    row_blocks = shape.row_tiles * 16 // layout.ROW_BLOCK
    return Tiles(
        packed.format,
        shape,
        runtime.asarray(tiles),
        runtime.asarray(packed.scales),
        None if packed.zeros is None else runtime.asarray(packed.zeros),
        runtime.asarray(_ones_in_rows(packed)) if packed.format.name == "binary" else None,
        runtime.zeros(row_blocks * layout.ROW_BLOCK * GEMV_TOKENS, np.int32),
        runtime.zeros(row_blocks, np.int32),
    )


def quantise(
    runtime: Runtime,
    x: Any,
    kind: int,
    shape: layout.Shape,
    norm: int = 0,
    gain: Any = None,
    bias: Any = None,
    epsilon: float = 1e-5,
    into: StagedRows | None = None,
) -> StagedRows:
    """Round rows of x [M, cols] to int8, after a norm if asked for (0 none, 1 RMS, 2 layer)."""
    rows = staging(runtime, x.shape[0], shape) if into is None else into
    arguments = (
        *(x, rows.codes, rows.scales, rows.sums),
        *_sizes(shape, rows),
        *(gain, bias, np.float32(epsilon)),
    )
    runtime.kernel(sources.quantise(norm, kind))((x.shape[0],), 256, 1024, arguments)
    return rows


def stage(runtime: Runtime, codes: Any, scales: Any, shape: layout.Shape) -> StagedRows:
    """Bring the caller's int8 codes [M, cols] into the padded layout."""
    rows = staging(runtime, codes.shape[0], shape)
    arguments = (codes, rows.codes, rows.sums, *_sizes(shape, rows))
    runtime.kernel(sources.STAGE_CODES)((codes.shape[0],), 256, 1024, arguments)
    return replace(rows, scales=scales)


def _sizes(shape: layout.Shape, rows: StagedRows) -> tuple[np.int32, ...]:
    bits = shape.bits if rows.in_steps else 0
    return tuple(map(np.int32, (shape.cols, shape.width, shape.padded, shape.groups, bits)))


def staging(runtime: Runtime, tokens: int, shape: layout.Shape) -> StagedRows:
    """Memory for staged activations, to be used again and again."""
    return StagedRows(
        runtime.empty((tokens, shape.columns), np.int8),
        runtime.empty(tokens, np.float32),
        runtime.empty((tokens, shape.groups), np.int32),
        takes_wide(runtime, tokens, shape),
    )


def takes_wide(runtime: Runtime, tokens: int, shape: layout.Shape) -> bool:
    """Whether the warpgroup kernel serves this product: many tokens, one group, Hopper."""
    fits = tokens >= WIDE_TOKENS and shape.groups == 1 and shape.bits in sources.WIDE_BITS
    return fits and runtime.has_wide()


def matmul(runtime: Runtime, rows: StagedRows, tiles: Tiles, y: Any = None) -> Any:
    """Staged activations [M, K] times packed weights → y [M, N] float32."""
    tokens = rows.codes.shape[0]
    y = runtime.empty((tokens, tiles.shape.rows), np.float32) if y is None else y
    plan = Plan(GEMM_TOKENS, launch_wide) if rows.in_steps else _plan_for(runtime, tiles, tokens)
    for first, count in _token_slices(tokens, plan.most_tokens):
        part = slice(first, first + count)
        epilogue = epilogue_of(tiles, rows.scales[part], rows.sums[part], y[part], count)
        plan.launch(runtime, rows.codes[part], tiles, count, epilogue)
    return y


@dataclass(frozen=True)
class Plan:
    """A kernel family with the most tokens that one launch takes."""

    most_tokens: int
    launch: Callable[..., None]


def _plan_for(runtime: Runtime, tiles: Tiles, tokens: int) -> Plan:
    if runtime.capability < DOT_PRODUCTS:
        major, minor = divmod(runtime.capability, 10)
        raise NearbankError(f"this GPU has compute capability {major}.{minor}; int8 kernels need 6.1 or later")
    if runtime.capability < TENSOR_CORES:
        return Plan(65535, launch_dot4)
    if tokens > GEMV_TOKENS:
        return Plan(GEMM_TOKENS, launch_gemm)
    if tiles.shape.groups > 1:
        return Plan(GEMV_TOKENS, launch_groups)
    few_rows = 2 * -(-tiles.shape.rows // 16) < runtime.multiprocessors
    return Plan(GEMV_TOKENS, launch_stream if few_rows else launch_rows)


def _token_slices(tokens: int, most: int) -> list[tuple[int, int]]:
    return [(first, min(most, tokens - first)) for first in range(0, tokens, most)]


def epilogue_of(tiles: Tiles, x_scales: Any, x_sums: Any, y: Any, tokens: int) -> tuple[Any, ...]:
    """The arguments that every integer kernel ends with: how its sums become values."""
    fmt = tiles.format
    stride = 0 if fmt.scaling.per == "tensor" else tiles.shape.groups
    numbers = (stride, tiles.shape.groups, fmt.step, fmt.zero, tiles.shape.rows, tokens)
    return (tiles.scales, tiles.zeros, x_scales, x_sums, y, *map(np.int32, numbers))


def launch_stream(runtime: Runtime, codes: Any, tiles: Tiles, tokens: int, epilogue: tuple[Any, ...]) -> None:
    """Cut all work in equal shares, two blocks per multiprocessor, at most one share per step of work."""
    blocks = -(-tokens // 8)
    row_blocks = -(-tiles.shape.rows // layout.ROW_BLOCK)
    steps = -(-(tiles.shape.columns // tiles.shape.tile_columns) // WARPS)
    grid = min(2 * runtime.multiprocessors, row_blocks * steps)
    shared = WARPS * layout.ROW_BLOCK * 8 * blocks * 4
    sizes = (np.int32(tiles.shape.columns), np.int32(row_blocks))
    kernel = runtime.kernel(sources.gemv_stream(tiles.shape.bits, blocks))
    kernel((grid,), THREADS, shared, (tiles.words, codes, *sizes, tiles.partial, tiles.arrived, *epilogue))


def launch_rows(runtime: Runtime, codes: Any, tiles: Tiles, tokens: int, epilogue: tuple[Any, ...]) -> None:
    """Whole rows in each thread block."""
    blocks = -(-tokens // 8)
    tiling = _rows_tiling(runtime, tiles.shape, blocks)
    grid, shared = (-(-tiles.shape.rows // (16 * tiling[0])),), WARPS * 128 * tiling[0] * blocks * 4
    kernel = runtime.kernel(sources.gemv_rows(tiles.shape.bits, blocks, tiling))
    kernel(grid, THREADS, shared, (tiles.words, codes, np.int32(tiles.shape.columns), *epilogue))


def _rows_tiling(runtime: Runtime, shape: layout.Shape, blocks: int) -> tuple[int, int, int]:
    """So many rows per thread block that all blocks run at once, two per multiprocessor, if up to 64 rows do that."""
    tiles, at_once = -(-shape.rows // 16), 2 * runtime.multiprocessors
    if tiles <= at_once:
        return sources.ROWS_LONG if shape.columns > 4 * WARPS * shape.tile_columns else sources.ROWS_SHORT
    fitting = [t for t in sources.gemv_tilings(shape.bits, blocks) if t[0] > 1 and tiles <= t[0] * at_once]
    return fitting[0] if fitting else sources.ROWS_SHORT


ONE_COLUMNS = 16384  # longer rows are rounded once, by a kernel of their own
ONE_SHARED_BYTES = 56 * 1024  # four blocks fit in a multiprocessor


def takes_one(runtime: Runtime, tokens: int, shape: layout.Shape) -> bool:
    """Whether `linear_one` serves: one token, and a row that every thread block may round for itself."""
    fits = tokens == 1 and shape.columns <= ONE_COLUMNS and _one_shared_bytes(shape) <= ONE_SHARED_BYTES
    return fits and runtime.capability >= TENSOR_CORES


def _one_shared_bytes(shape: layout.Shape) -> int:
    brought = shape.groups if shape.groups > 1 else WARPS
    return 4 * THREADS + 2 * 64 * brought + shape.columns + 4 * max(shape.groups, WARPS)


def linear_one(
    runtime: Runtime, x: Any, kind: int, tiles: Tiles, norm: int, gain: Any, bias: Any, epsilon: float, y: Any = None
) -> Any:
    """`quantise` and `matmul` of one row x [1, K] in one launch, with the same bits → y [1, N] float32."""
    shape = tiles.shape
    y = runtime.empty((1, shape.rows), np.float32) if y is None else y
    row_tiles, grouped = -(-shape.rows // 16), shape.groups > 1
    grid = (min(row_tiles, sources.gemv_one_resident(shape.bits, grouped) * runtime.multiprocessors),)
    sizes = map(np.int32, (shape.cols, shape.width, shape.padded, row_tiles))
    arguments = (tiles.words, x, *sizes, gain, bias, np.float32(epsilon), *epilogue_of(tiles, None, None, y, 1))
    kernel = runtime.kernel(sources.gemv_one(shape.bits, 3 * norm + kind, grouped))
    kernel(grid, THREADS, _one_shared_bytes(shape), arguments)
    return y


def launch_groups(runtime: Runtime, codes: Any, tiles: Tiles, tokens: int, epilogue: tuple[Any, ...]) -> None:
    """One block per 16 rows; as many groups at a time as fit in shared memory."""
    blocks = -(-tokens // 8)
    bytes_per_group = 128 * blocks * 4
    batch = min(tiles.shape.groups, GROUP_SUM_BYTES // bytes_per_group)
    sizes = (tiles.shape.columns, tiles.shape.padded // tiles.shape.tile_columns, batch)
    kernel = runtime.kernel(sources.gemv_groups(tiles.shape.bits, blocks))
    grid = (-(-tiles.shape.rows // 16),)
    kernel(grid, THREADS, batch * bytes_per_group, (tiles.words, codes, *map(np.int32, sizes), *epilogue))


def launch_dot4(runtime: Runtime, codes: Any, tiles: Tiles, tokens: int, epilogue: tuple[Any, ...]) -> None:
    """One warp per 16 rows and token."""
    sizes = (tiles.shape.columns, tiles.shape.padded // tiles.shape.tile_columns)
    kernel = runtime.kernel(sources.gemv_dot4(tiles.shape.bits))
    grid = (-(-tiles.shape.rows // (16 * WARPS)), tokens)
    kernel(grid, THREADS, 0, (tiles.words, codes, *map(np.int32, sizes), *epilogue))


def launch_gemm(runtime: Runtime, codes: Any, tiles: Tiles, tokens: int, epilogue: tuple[Any, ...]) -> None:
    """Large blocks when they fill the device, else small ones."""
    small, large = sources.GEMM_TILES
    # Byte weights with group scales would hold a large block's sums twice over: too many registers.
    heavy = tiles.shape.bits == 8 and tiles.shape.groups > 1
    fills = np.prod(_gemm_grid(tiles, tokens, large)) >= runtime.multiprocessors
    chosen = large if fills and not heavy else small
    step = max(128, tiles.shape.tile_columns)
    shared = GEMM_STAGES * 16 * chosen[1] * step
    sizes = (tiles.shape.columns, tiles.shape.padded // tiles.shape.tile_columns, tiles.shape.row_tiles)
    kernel = runtime.kernel(sources.gemm(tiles.shape.bits, *chosen, tiles.shape.groups > 1))
    grid = _gemm_grid(tiles, tokens, chosen)
    kernel(grid, THREADS, shared, (tiles.words, codes, *map(np.int32, sizes), *epilogue))


def launch_wide(runtime: Runtime, codes: Any, tiles: Tiles, tokens: int, epilogue: tuple[Any, ...]) -> None:
    """Blocks of 128 rows and 256 tokens."""
    sizes = (np.int32(tiles.shape.columns), np.int32(tiles.shape.row_tiles))
    grid = (-(-tiles.shape.rows // 128), -(-tokens // 256))
    kernel = runtime.kernel(sources.gemm_wide(tiles.shape.bits))
    kernel(grid, THREADS, WIDE_SHARED_BYTES, (tiles.words, codes, *sizes, *epilogue))


def _gemm_grid(tiles: Tiles, tokens: int, chosen: tuple[int, int]) -> tuple[int, int]:
    return -(-tiles.shape.rows // (64 * chosen[0])), -(-tokens // (16 * chosen[1]))


@dataclass(frozen=True)
class FloatRows:
    """Float weights on the device, interleaved for 16 lanes."""

    format: Format
    shape: tuple[int, int]
    words: Any

    @property
    def nbytes(self) -> int:
        """Bytes of device memory."""
        return int(self.words.nbytes)


def upload_floats(runtime: Runtime, packed: PackedMatrix) -> FloatRows:
    """Float weights to the device, at their own precision."""
    words = layout.interleave_floats(packed.quantised().codes)
    return FloatRows(packed.format, packed.shape, runtime.asarray(words))


KIND = {"fp32": 0, "fp16": 1, "bf16": 2}


def matmul_floats(runtime: Runtime, x: Any, weights: Tiles | FloatRows, y: Any = None) -> Any:
    """x [M, K] float32 times weights of any format → y [M, N] float32, summed in the definition's order."""
    rows = weights.shape[0] if isinstance(weights, FloatRows) else weights.shape.rows
    y = runtime.empty((x.shape[0], rows), np.float32) if y is None else y
    for first, count in _token_slices(x.shape[0], 65535):
        part, grid = slice(first, first + count), (-(-rows // 16), count)
        if isinstance(weights, FloatRows):
            sizes = (weights.shape[1], weights.words.shape[1], rows)
            kernel = runtime.kernel(sources.floats_by_floats(KIND[weights.format.name]))
            kernel(grid, THREADS, 0, (weights.words, x[part], y[part], *map(np.int32, sizes)))
        else:
            _floats_by_codes(runtime, x[part], weights, y[part], grid)
    return y


def _floats_by_codes(runtime: Runtime, x: Any, tiles: Tiles, y: Any, grid: tuple[int, int]) -> None:
    fmt, shape = tiles.format, tiles.shape
    stride = 0 if fmt.scaling.per == "tensor" else shape.groups
    sizes = (shape.cols, shape.width, shape.padded, shape.groups, stride, fmt.step, fmt.zero, shape.rows)
    kernel = runtime.kernel(sources.floats_by_codes(shape.bits))
    kernel(grid, THREADS, 0, (tiles.words, x, y, tiles.scales, tiles.zeros, *map(np.int32, sizes)))


def _ones_in_rows(packed: PackedMatrix) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.asarray(packed.quantised().codes.sum(axis=1, dtype=np.int32))


def matmul_bits(runtime: Runtime, codes: Any, scales: Any, tiles: Tiles, signed: bool, y: Any = None) -> Any:
    """One-bit activations codes [M, K] int8, −1 and 1 (signed) or 0 and 1, times binary weights → y [M, N] float32.

    A row with any other code comes out as NaN.
    """
    if tiles.format.name != "binary" or tiles.shape.groups != 1:
        raise NearbankError(
            f"one-bit activations need binary weights scaled per row or tensor, not {tiles.format.spec}"
        )
    if runtime.capability < TENSOR_CORES:
        raise NearbankError("one-bit matrix instructions need compute capability 8.0; use int8 activations")
    tokens, rows = codes.shape[0], tiles.shape.rows
    y = runtime.empty((tokens, rows), np.float32) if y is None else y
    column_blocks = tiles.shape.columns // tiles.shape.tile_columns
    bits = runtime.empty((tokens, column_blocks * 8), np.uint32)
    checked, ones = runtime.empty(tokens, np.float32), runtime.empty(tokens, np.int32)
    sizes = (np.int32(tiles.shape.cols), np.int32(column_blocks))
    runtime.kernel(sources.pack_bits(signed))((tokens,), THREADS, 8, (codes, scales, bits, checked, ones, *sizes))
    blocks = 1 if tokens <= 8 else 4
    numbers = (rows, tokens, 0 if tiles.format.scaling.per == "tensor" else 1)
    arguments = (tiles.words, bits, tiles.scales, checked, ones, tiles.row_ones, y, *sizes, *map(np.int32, numbers))
    grid = (-(-rows // 16), -(-tokens // (8 * blocks)))
    runtime.kernel(sources.binary_gemm(blocks, signed))(grid, THREADS, WARPS * 128 * blocks * 4, arguments)
    return y

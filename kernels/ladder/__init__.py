"""Two ladders to read: ternary matrix-vector product and decode attention, from the first idea to the kernel in use.

Each rung is a CUDA kernel that runs (in the emulation too), with one idea more than the rung below. `GEMV` and
`ATTENTION` say which; what a rung gained is in the file that `benchmarks/gpu.py` writes, once a GPU has run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.kernels.cuda import cache, host, sources
from nearbank.kernels.cuda.cache import DevicePages
from nearbank.kernels.cuda.host import Runtime
from nearbank.kernels.cuda.sources import Kernel
from nearbank.kernels.packed import PackedMatrix

FOLDER = Path(__file__).parent
GEMV_FILE, ATTENTION_FILE = (str(FOLDER / name) for name in ("ternary_gemv.cuh", "attention.cuh"))


@dataclass(frozen=True)
class Rung:
    """One step: the kernel's name, and the idea that it adds."""

    name: str
    idea: str


GEMV = (
    Rung("gemv_thread_per_row", "one thread per row, byte by byte"),
    Rung("gemv_warp_per_row", "one warp per row: neighbouring lanes read neighbouring bytes"),
    Rung("gemv_wide_loads", "16-byte loads; one shift and mask make four operands; dp4a multiplies four at a time"),
    Rung("gemv_four_rows", "four rows per warp: x is read once for four, four loads are in flight"),
    Rung("gemv_groups", "matrix instructions over a tile layout: 16 rows × 8 tokens for the price of one token"),
    Rung("gemv_stream", "equal shares of all work for every multiprocessor, wherever rows end; two loads ahead"),
    Rung("gemv_rows", "whole rows in a block, so nothing meets in memory; weights come while the last kernel ends"),
)
ATTENTION = (
    Rung("attend_thread_per_head", "one thread per head, three passes"),
    Rung("attend_block_per_head", "one block per head: a thread per token, then a thread per dimension"),
    Rung("attend_one_pass", "one pass with a running peak: no scores in memory, lanes read neighbouring bytes"),
    Rung("attend_split", "tokens split over blocks, parts joined by a second kernel"),
    Rung("attend", "heads that share K and V read them once, on matrix instructions; parts joined in the same kernel"),
)


IN_USE = {
    "gemv_groups": host.launch_groups,
    "gemv_stream": host.launch_stream,
    "gemv_rows": host.launch_rows,
}


def kernels() -> tuple[Kernel, ...]:
    """Every rung's kernel that is not one of those in use."""
    gemv = tuple(Kernel(GEMV_FILE, rung.name) for rung in GEMV[:4])
    attention = tuple(Kernel(ATTENTION_FILE, rung.name) for rung in ATTENTION[:4])
    return (*gemv, *attention, Kernel(ATTENTION_FILE, "attend_join"))


@dataclass(frozen=True)
class GemvInput:
    """What every rung of the product works on, on the device."""

    packed: Any
    codes: Any
    shuffled: Any
    scales: Any
    x_scale: np.float32
    x_sum: np.int32
    shape: tuple[int, int]
    tiles: host.Tiles
    staged: host.StagedRows


def gemv_input(runtime: Runtime, matrix: PackedMatrix, codes: npt.NDArray[np.int8], x_scale: float) -> GemvInput:
    """Ternary weights with a scale per row, and one token's int8 codes [K]."""
    if matrix.format.name != "ternary" or matrix.format.scaling.per != "row":
        raise NearbankError(f"the ladder takes 'ternary' weights with a scale per row, not {matrix.format.spec}")
    rows, row_bytes = matrix.packed.shape[0], -(-matrix.packed.shape[1] // 16) * 16
    packed = np.zeros((rows, row_bytes), np.uint8)
    packed[:, : matrix.packed.shape[1]] = matrix.packed
    padded = np.zeros(4 * row_bytes, np.int8)
    padded[: codes.shape[0]] = codes
    shuffled = padded.reshape(-1, 4, 4).transpose(0, 2, 1)
    assert matrix.scales is not None
    tiles, one = host.upload(runtime, matrix), np.full(1, x_scale, np.float32)
    return GemvInput(
        packed=runtime.asarray(packed),
        codes=runtime.asarray(padded),
        shuffled=runtime.asarray(np.ascontiguousarray(shuffled)),
        scales=runtime.asarray(np.ascontiguousarray(matrix.scales[:, 0])),
        x_scale=np.float32(x_scale),
        x_sum=np.int32(codes.sum(dtype=np.int32)),
        shape=(rows, row_bytes),
        tiles=tiles,
        staged=host.stage(runtime, runtime.asarray(codes[None]), runtime.asarray(one), tiles.shape),
    )


def gemv(runtime: Runtime, rung: Rung, given: GemvInput) -> Any:
    """One rung of the product → y [N] float32."""
    y = runtime.empty(given.shape[0], np.float32)
    if rung.name in IN_USE:
        staged, launch = given.staged, IN_USE[rung.name]
        epilogue = host.epilogue_of(given.tiles, staged.scales, staged.sums, y[None, :], 1)
        launch(runtime, staged.codes, given.tiles, 1, epilogue)
        return y
    per_block = {"gemv_thread_per_row": 128, "gemv_four_rows": 16}.get(rung.name, 4)
    x = given.shuffled if rung.name in ("gemv_wide_loads", "gemv_four_rows") else given.codes
    sizes = map(np.int32, given.shape)
    arguments = (given.packed, x, given.scales, y, given.x_scale, given.x_sum, *sizes)
    runtime.kernel(Kernel(GEMV_FILE, rung.name))((-(-given.shape[0] // per_block),), 128, 0, arguments)
    return y


def attend(runtime: Runtime, rung: Rung, pages: DevicePages, length: int, q: Any, scale: float, splits: int = 8) -> Any:
    """One rung of the attention: q [1, heads, head_dim] over the `length` tokens of layer 0 of an int4 cache."""
    if pages.format.name != "int4" or pages.head_dim > 256:
        raise NearbankError(f"the ladder takes int4 caches up to head dimension 256, not {pages.format.name}")
    heads, dim = q.shape[1:]
    if rung.name == "attend":
        return cache.attend(runtime, pages, 0, q, scale, cache.attend_scratch(runtime, pages, 1, heads))
    out = runtime.empty(q.shape, np.float32)
    scratch = runtime.empty(heads * max(length, splits * (dim + 2)), np.float32)
    memory = (pages.keys, pages.values, pages.key_params, pages.value_params)
    sizes = tuple(map(np.int32, (length, heads, dim, pages.pages, pages.kv_heads)))
    grids = {"attend_thread_per_head": (-(-heads // 32),), "attend_split": (heads, splits)}
    threads = 32 if rung.name == "attend_thread_per_head" else 256
    shared = 8 * (max(dim, 32) + 2) * 4
    arguments = (q, *memory, out, scratch, np.float32(scale), *sizes)
    runtime.kernel(Kernel(ATTENTION_FILE, rung.name))(grids.get(rung.name, (heads,)), threads, shared, arguments)
    if rung.name == "attend_split":
        last = (scratch, out, np.int32(splits), np.int32(dim))
        runtime.kernel(Kernel(ATTENTION_FILE, "attend_join"))((heads,), 256, 0, last)
    return out


def kernels_in_use() -> tuple[Kernel, ...]:
    """The kernels at the top of the ladders, for an emulated library that has all rungs."""
    rows = (sources.gemv_rows(2, 1, tiling) for tiling in sources.GEMV_TILINGS)
    top = (sources.gemv_stream(2, 1), sources.gemv_groups(2, 1), sources.STAGE_CODES)
    return (*top, *rows, sources.attend("int4", 64), sources.attend("int4", 128), sources.append_rows("int4", 0))

"""Which cut of the few-token product is fastest for which shape: what `host.launch_rows` chooses by.

    python benchmarks/gpu_tilings.py [--out FILE.json]

Every cut (16-row tiles per block, loads ahead, blocks per multiprocessor) and the kernel of equal shares, each on cold
ternary weights in a CUDA graph, started early and not; each compared with the others' bits first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gpu import SHAPES, random_tiles
from gpu_measure import Captured, copies_for, describe, log, time_us

from nearbank.kernels import cupy_backend as ours
from nearbank.kernels.cuda import host, sources

Launch = Callable[..., None]


def rows_launch(tiling: tuple[int, int, int]) -> Launch:
    """`host.launch_rows` with a cut of our choice."""

    def launch(runtime: Any, codes: Any, tiles: Any, tokens: int, epilogue: tuple[Any, ...]) -> None:
        blocks = -(-tokens // 8)
        kernel = runtime.kernel(sources.gemv_rows(tiles.shape.bits, blocks, tiling))
        grid, shared = (-(-tiles.shape.rows // (16 * tiling[0])),), host.WARPS * 128 * tiling[0] * blocks * 4
        kernel(grid, host.THREADS, shared, (tiles.words, codes, np.int32(tiles.shape.columns), *epilogue))

    return launch


LAUNCHES: dict[str, Launch] = {"equal shares": host.launch_stream} | {
    str(tiling): rows_launch(tiling) for tiling in sources.GEMV_TILINGS
}


def times(runtime: Any, rows: int, cols: int, tokens: int, early: bool) -> dict[str, float]:
    """Microseconds of every launch on one shape. Raises where one's bits differ from the first's."""
    xp = runtime.xp
    tiles = [random_tiles(runtime, "ternary", rows, cols)]
    tiles += [random_tiles(runtime, "ternary", rows, cols) for _ in range(copies_for(int(tiles[0].words.nbytes)) - 1)]
    staged = host.quantise(runtime, xp.random.standard_normal((tokens, cols), dtype=xp.float32), 0, tiles[0].shape)
    calls, first, found = max(len(tiles), 20), None, {}
    runtime.early = early
    for name, launch in LAUNCHES.items():
        y = xp.full((tokens, rows), np.nan, np.float32)

        def one(matrix: Any, launch: Launch = launch, y: Any = y) -> None:
            launch(
                runtime, staged.codes, matrix, tokens, host.epilogue_of(matrix, staged.scales, staged.sums, y, tokens)
            )

        one(tiles[0])
        first = y.copy() if first is None else first
        if not bool((first == y).all()):
            raise RuntimeError(f"{name} differs at {rows} × {cols}, {tokens} tokens")
        captured = Captured(xp, lambda one=one: [one(tiles[i % len(tiles)]) for i in range(calls)], calls)
        found[name] = round(time_us(captured), 2)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the rows to this file too")
    options = parser.parse_args()
    if problem := ours.device_problem():
        sys.exit(f"no GPU benchmark here: {problem}")
    runtime, rows = ours.current_runtime(), []
    starts = (False, True) if runtime.early else (False,)
    for n, k in SHAPES:
        for tokens in (1, 8):
            for early in starts:
                found = times(runtime, n, k, tokens, early)
                rows.append({"n": n, "k": k, "m": tokens, "early": early, "time_us": found})
                log(f"{n}×{k}, {tokens} tokens{', early' if early else ''}: {found}")
    if options.out:
        options.out.write_text(json.dumps({**describe(runtime), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

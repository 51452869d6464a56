"""The machine's memory read bandwidth: a compiled loop that reads and adds, nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from nearbank.compiled import compiled
from nearbank.kernels.bench.timing import time_us
from nearbank.kernels.cpu import vectors as v
from nearbank.kernels.cpu.tiles import aligned_empty
from nearbank.kernels.threads import in_parts

WORDS = v.vector(v.I64, 8)
AT_ONCE = 8


def _make_read() -> Any:
    @intrinsic
    def read(typing, data, start, steps):  # type: ignore[no-untyped-def]
        """The sum of `steps` times 512 bytes."""

        def generate(context, b, sig, args):  # type: ignore[no-untyped-def]
            first = v.data(context, b, sig, args, 0, 1)

            def body(i: Any, sums: list[Any]) -> list[Any]:
                here = v.at(b, first, b.mul(i, v.I64(64 * AT_ONCE)))
                return [b.add(s, v.load(b, WORDS, v.at(b, here, 64 * j))) for j, s in enumerate(sums)]

            sums = v.loop(b, args[2], [v.constant(WORDS, 0)] * AT_ONCE, body)
            total = sums[0]
            for more in sums[1:]:
                total = b.add(total, more)
            return v.call(b, "llvm.vector.reduce.add.v8i64", v.I64, [total])

        return types.int64(data, types.int64, types.int64), generate

    return read


_read = _make_read()


@compiled(nogil=True)
def _read_part(data, first, last):  # type: ignore[no-untyped-def]
    return _read(data, first * 512, last - first)


def read_gb_per_s(nbytes: int = 16 * 1024 * 1024, total_bytes: int = 256 * 1024 * 1024) -> float:
    """Cold reads of blocks of `nbytes`, with the threads that kernels may use."""
    memory = aligned_empty(total_bytes)
    memory[:] = 1
    blocks = [memory[i : i + nbytes] for i in range(0, total_bytes - nbytes + 1, nbytes)]

    def read(block: np.ndarray[Any, Any]) -> None:
        in_parts(lambda first, last: _read_part(block, first, last), nbytes // 512, work=nbytes)

    return nbytes / time_us(read, blocks) / 1000

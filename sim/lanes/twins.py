"""Where lanes read the same code up to their next meeting."""

import numpy as np

from nearbank.compiled import compiled, compiled_part
from nearbank.sim import vm


@compiled
def twins(code, entry):  # type: ignore[no-untyped-def]
    """For every row the first lane's row from which on all is the same up to the next meeting."""
    twin = np.arange(code.shape[0])
    lanes = entry.shape[0]
    start = entry.copy()
    stop = entry.copy()
    ended = False
    while not ended:
        for lane in range(lanes):
            row = start[lane]
            while not _is_meeting(code, row):
                row += 1
            stop[lane] = row
            for other in range(lane):
                twin[row] = min(twin[row], twin[stop[other]])
                _match(code, twin, start, stop, lane, other)
                if start[lane] == row or twin[start[lane]] != start[lane]:
                    break
        ended = code[stop[0], vm.OP] == vm.HALT
        start = stop + 1
    return twin


@compiled_part
def _is_meeting(code, row):  # type: ignore[no-untyped-def]
    """Whether lanes stop at the row."""
    op = code[row, vm.OP]
    return op >= vm.START or (op == vm.END and code[row, vm.MEETS] != 0)


@compiled_part
def _alike(code, a, b):  # type: ignore[no-untyped-def]
    different = np.int64(0)
    for i in range(vm.WIDTH):
        different |= code[a, i] ^ code[b, i]
    return different == 0


@compiled_part
def _match(code, twin, start, stop, lane, other):  # type: ignore[no-untyped-def]
    """From the meeting backwards, as far as both lanes' rows are the same."""
    for back in range(1, min(stop[lane] - start[lane], stop[other] - start[other]) + 1):
        row = stop[lane] - back
        if not _alike(code, row, stop[other] - back):
            break
        if twin[row] == row:
            twin[row] = twin[stop[other] - back]

"""Rounding with errors fed back, compiled: the nine ranges of a token and head side by side in one vector.

The definition is `nearbank.kernels.reference.feedback`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from nearbank.compiled import compiled, compiled_part
from nearbank.kernels.cpu import vectors as v
from nearbank.kernels.reference.feedback import Feedback, ranges
from nearbank.kernels.reference.lanes import padded
from nearbank.kernels.store import PAGE, CacheStore
from nearbank.kernels.threads import in_parts

Floats = npt.NDArray[np.float32]
LANES = 16  # of which the nine ranges take nine; the others repeat the first
SIDE = v.vector(v.F32, LANES)
RANGES = padded(ranges(), LANES, axis=0)


def _typed_round_channels(typingctx, x, shares, weights, costs, count, top):  # type: ignore[no-untyped-def]
    """x [count, 16] in steps → codes, in place, and what they cost [16] in squared steps.

    shares [count, count], weights [count].
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        rows, shared, weighed, out = (v.data_at(context, builder, sig, args, i) for i in range(4))
        channels = args[4]
        zero, most = v.constant(SIDE, 0.0), v.splat(builder, args[5], LANES)

        def number(pointer: Any, index: Any) -> Any:
            address = v.at(builder, pointer, builder.mul(index, v.I64(4)))
            return builder.load(builder.bitcast(address, v.F32.as_pointer()))

        def channel(k: Any, carried: list[Any]) -> list[Any]:
            place = v.at(builder, rows, builder.mul(k, v.I64(4 * LANES)))
            here = v.load(builder, SIDE, place)
            held = builder.select(builder.fcmp_ordered(">", here, zero), here, zero)
            held = builder.select(builder.fcmp_ordered("<", held, most), held, most)
            code = v.call(builder, f"llvm.rint.v{LANES}f32", SIDE, [held])
            error = builder.fsub(here, code)
            v.store(builder, code, place)
            weight = v.splat(builder, number(weighed, k), LANES)
            part = builder.fmul(error, weight)
            next_k = builder.add(k, v.I64(1))
            row = builder.mul(k, channels)

            def later(i: Any, _: list[Any]) -> list[Any]:
                j = builder.add(next_k, i)
                share = v.splat(builder, number(shared, builder.add(row, j)), LANES)
                there = v.at(builder, rows, builder.mul(j, v.I64(4 * LANES)))
                v.store(builder, builder.fsub(v.load(builder, SIDE, there), builder.fmul(share, error)), there)
                return []

            v.loop(builder, builder.sub(channels, next_k), [], later)
            return [builder.fadd(carried[0], builder.fmul(part, part))]

        (cost,) = v.loop(builder, channels, [zero], channel)
        v.store(builder, cost, out)
        return context.get_dummy_value()

    return types.void(x, shares, weights, costs, types.int64, types.float32), codegen


_round_channels: Any = intrinsic(_typed_round_channels)


@compiled_part
def _grid(least, most, top, trims, word, steps, starts):  # type: ignore[no-untyped-def]
    """Scale and offset of every range as floats; word [1] uint32: scratch."""
    value = word.view(np.float32)
    for lane in range(LANES):
        below, above = trims[lane, 0], trims[lane, 1]
        value[0] = least + (below * most - below * least)
        word[0] = ((word[0] + (np.uint32(0xFFFF) if word[0] >> 31 == 1 else np.uint32(0))) >> 16) << 16
        starts[lane] = value[0]
        value[0] = ((most - (above * most - above * least)) - starts[lane]) / top
        word[0] = ((word[0] + np.uint32(0xFFFF)) >> 16) << 16
        steps[lane] = value[0]


@compiled(nogil=True, error_model="numpy")
def _encode(first, last, new, start, table, rows, params, bits, shares, weights, trims):  # type: ignore[no-untyped-def]
    """Items first … last, token by token and head by head, of new [T, heads, D] into their rows."""
    heads, dim = new.shape[1], new.shape[2]
    top, places = np.float32((1 << bits) - 1), 8 // bits
    word = np.zeros(1, np.uint32)
    steps, starts, inverse = (np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32))
    x, cost = np.empty((dim, LANES), np.float32), np.empty(LANES, np.float32)
    for item in range(first, last):
        t, h = item // heads, item % heads
        token, zero = new[t, h], np.float32(0)
        least, most = token[0], token[0]
        for d in range(dim):
            least, most = min(least, token[d]), max(most, token[d])
        _grid(least + zero, most + zero, top, trims, word, steps, starts)
        for lane in range(LANES):
            inverse[lane] = np.float32(1) / steps[lane] if steps[lane] != 0 else zero
        for d in range(dim):
            for lane in range(LANES):
                x[d, lane] = (token[d] - starts[lane]) * inverse[lane]
        _round_channels(x, shares[h], weights[h], cost, dim, top)
        best = 0
        for lane in range(LANES):
            if cost[lane] * steps[lane] * steps[lane] < cost[best] * steps[best] * steps[best]:
                best = lane
        page, slot = table[(start + t) // PAGE], (start + t) % PAGE
        bits_of = steps.view(np.uint32), starts.view(np.uint32)
        params[page, h, slot, 0] = np.uint16(bits_of[0][best] >> 16)
        params[page, h, slot, 1] = np.uint16(bits_of[1][best] >> 16)
        row = rows[page, h, slot]
        row[:] = 0
        for d in range(dim):
            block, inside = d // (16 * places), d % (16 * places)
            row[16 * block + inside % 16] |= np.uint8(np.uint8(x[d, best]) << (bits * (inside // 16)))


def write_fed_back(
    store: CacheStore,
    rows: npt.NDArray[Any],
    params: npt.NDArray[np.uint16],
    start: int,
    new: Floats,
    feedback: Feedback,
) -> None:
    """new [T, kv heads, head_dim] → one layer's rows and params, from position `start`."""
    bits, factors = int(store.format.code_bits), (feedback.shares, feedback.weights)

    def run(first: int, last: int) -> None:
        _encode(first, last, new, start, store.table, rows, params, bits, *factors, RANGES)

    tokens, heads, dim = new.shape
    in_parts(run, tokens * heads, work=tokens * heads * dim * dim * LANES)

"""GEMVs as AiM instruction traces: the loop nest a host sends, without data."""

from __future__ import annotations

from nearbank.errors import NearbankError

_BANKS, _LANES, _BUFFER = 16, 16, 1024  # banks a channel, 2-byte elements a column, elements of the global buffer


def aim_gemv(inputs: int, outputs: int, channels: int = 1, reuse: int = 1) -> list[str]:
    """The lines of y[outputs] = W[outputs, inputs]·x[inputs] in 2-byte numbers on `channels` of 16 banks.

    For each 1,024 inputs: the vector into the global buffers, then, for each `reuse` outputs a bank, accumulators
    loaded, rows multiplied, accumulators read. A row of W lies in whole DRAM rows of one bank.
    """
    if min(inputs, outputs, channels, reuse) < 1 or channels > 32:
        raise NearbankError(
            f"GEMV {outputs}x{inputs} on {channels} channels, reuse {reuse}: expected 1 or more, 1 to 32"
        )
    per_bank = -(-outputs // (_BANKS * channels))
    chunks, groups = -(-inputs // _BUFFER), -(-per_bank // reuse)
    group = -(-per_bank // groups)
    mask = hex(((1 << channels) - 1) << (32 - channels))
    lines = []
    for chunk in range(chunks):
        columns = -(-min(inputs - _BUFFER * chunk, _BUFFER) // _LANES)
        lines.append(f"AiM WR_GB {columns} 0 {mask}")
        for first in range(0, per_bank, group):
            mine = range(first, min(first + group, per_bank))
            lines += [f"AiM WR_BIAS 0 {mask}" for _ in mine]
            lines += [f"AiM MAC_ABK {columns} {mask} {output * chunks + chunk}" for output in mine]
            lines += [f"AiM RD_MAC 0 {mask}" for _ in mine]
    return [*lines, "AiM EOC"]

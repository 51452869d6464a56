"""What a mapping decided, in lines of text."""

from __future__ import annotations

from nearbank.mapping.cache_placement import CachePlacement
from nearbank.mapping.matrix_placement import Chunks, MatrixPlacement
from nearbank.mapping.plan import Plan
from nearbank.mapping.region import Region
from nearbank.mapping.target import Target


def describe(plan: Plan) -> list[str]:
    """Lines for a person: what lies where, how full the memory is, how K and V are kept."""
    target, placement = plan.target, plan.placement
    used = 100 * placement.rows / target.rows
    lines = [
        f"{plan.model.name} on {target.name}: {placement.rows} of {target.rows} rows of every bank ({used:.1f} %), "
        f"{target.channels} channels x {target.banks} banks, rows of {target.row_bytes} bytes",
        f"embedding tables and biases: with the host and the ASIC; cache of {placement.cache.max_context} tokens",
    ]
    lines += [_matrix(m, target) for m in placement.matrices]
    return lines + _cache(plan) + [_streams(plan)]


def _rows(region: Region) -> str:
    rows = region.rows_of(0)
    repeats = f", again every {region.stride} rows for {region.copies} layers" if region.copies > 1 else ""
    return f"rows {rows.start} to {rows.stop - 1}{repeats}"


def _matrix(matrix: MatrixPlacement, target: Target) -> str:
    use = matrix.use
    outputs = {target.outputs_of(c, matrix.n) for c in range(target.channels)}
    each = " or ".join(str(n) for n in sorted(outputs))
    steps = "step" if use.steps == 1 else "steps"
    return (
        f"{matrix.name} [{matrix.n}, {matrix.k}] {use.format} x {matrix.input_format}: {_rows(matrix.region)}; "
        f"{each} outputs per bank, {use.lanes} lanes, {use.steps} {steps} per column; "
        + " + ".join(_chunks(chunks) for chunks in matrix.chunks)
        + (f"; scales in {_rows(matrix.scales)}" if matrix.scales else "")
    )


def _chunks(chunks: Chunks) -> str:
    packing = chunks.packing
    if packing.crossing:
        how = "end to end over rows"
    elif packing.per_row:
        how = f"{packing.per_row} per row"
    else:
        how = f"{packing.period[1]} rows each"
    scales = f", {chunks.scale_columns} columns of scales per row" if chunks.scale_columns else ""
    if chunks.bank:
        scales = f", {chunks.bank.columns} columns of {chunks.bank.format} scales per row, applied by the banks"
    return f"{chunks.count} x {chunks.width} inputs in {packing.columns} columns, {how}{scales}"


def _cache(plan: Plan) -> list[str]:
    cache = plan.placement.cache
    share = f"{cache.team} channels share a head" if cache.team > 1 else "a head lies in one channel"
    heads = f"{cache.slots} heads side by side" if cache.joined else "head after head"
    lines = [
        f"K {cache.format}, row-major: {_rows(cache.keys)}; one token per bank, {heads}, {share}",
        f"V {cache.format}, column-major: {_rows(cache.values)}; "
        f"{cache.v_dims} dimensions of {cache.v_block} tokens per row",
    ]
    if cache.scales:
        whose = "V" if cache.groups else "K and V"
        lines.append(f"scales of {whose}, {cache.scale_bytes} bytes per token and head: {_rows(cache.scales)}")
    if cache.newest_exact:
        lines.append("the newest token's K and V stay exact with the ASIC, which adds what they contribute")
    return lines + _window(cache)


def _window(cache: CachePlacement) -> list[str]:
    """Groups of keys and the exact tokens, of caches that have them."""
    groups, window = cache.groups, cache.window
    if not groups or not window:
        return []
    return [
        f"scales of K's channels, per {groups.tokens} tokens and head: {_rows(groups.scales)}; {groups.visit} groups "
        "multiplied at a time",
        f"exact K and V of {window.max_context} tokens in {window.format}, a ring: {_rows(window.keys)} and "
        f"{_rows(window.values)}",
    ]


def _streams(plan: Plan) -> str:
    groups = plan.channel_groups
    if len(groups) == 1:
        return "all channels run the same program"
    return f"{len(groups)} kinds of channels: " + "; ".join(", ".join(str(c) for c in group) for group in groups)

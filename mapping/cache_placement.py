"""How K and V are laid in rows, before they have addresses: teams of channels, slots, records, blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nearbank.cache_formats import KIVI_GROUP, PARAM_BYTES, CacheFormat, cache_format
from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.mapping.asic import softmax_work
from nearbank.mapping.key_groups import KeyGroups, able_teams, check_banks, group_columns, size_groups
from nearbank.mapping.packing import Packing
from nearbank.mapping.region import Region
from nearbank.mapping.target import ColumnUse, Target, value_bytes
from nearbank.trace import ModelDescription
from nearbank.units import ceil_div


@dataclass(frozen=True, slots=True)
class CachePlacement:
    """Space for K and V of `max_context` tokens.

    `team` channels share a KV head: every team has `slots` heads. K of token t lies in bank t mod banks of the
    channel whose turn it is in the team, in record t // (banks · team); a record holds one token of each bank, of all
    slots side by side (`joined`) or of one slot. V of a slot has its dimensions dealt out over the team's banks; a
    row holds `v_dims` dimensions of `v_block` tokens. With a quantised cache, `scales` holds scale and offset of K
    and V of every token and head. `slow_softmax`: the ASIC takes longer than the banks, so heads are scored apart.

    `method` is that of `nearbank.cache_formats`. KIVI's keys lie in `groups`, with the scales of channels beside them
    (`scales` holds those of V alone), and its exact tokens in `window`: a ring of one group's tokens in bf16, laid out
    as a cache of that many tokens. Past-only caches need no place for the one exact token, which the ASIC has.
    """

    keys: Region
    values: Region
    scales: Region | None
    format: str
    use: ColumnUse
    input_bytes: int
    kv_heads: int
    queries: int
    head_dim: int
    max_context: int
    team: int
    slots: int
    joined: bool
    key_packing: Packing
    key_rows: int
    v_packing: Packing
    v_block: int
    v_local: int
    scale_bytes: int
    slow_softmax: bool
    method: str = "plain"
    groups: KeyGroups | None = None
    window: CachePlacement | None = None

    @property
    def regions(self) -> tuple[Region, ...]:
        """All that a layer has of the cache."""
        inner = self.window.regions if self.window else ()
        found = (self.keys, self.values, self.scales, self.groups.scales if self.groups else None)
        return tuple(region for region in found if region) + inner

    def placed(self, regions: Sequence[Region]) -> CachePlacement:
        """The same with `regions` for its own, in the same order."""
        rest = list(regions)
        keys, values = rest.pop(0), rest.pop(0)
        scales = rest.pop(0) if self.scales else None
        groups = replace(self.groups, scales=rest.pop(0)) if self.groups else None
        window = self.window.placed(rest) if self.window else None
        return replace(self, keys=keys, values=values, scales=scales, groups=groups, window=window)

    @property
    def newest_exact(self) -> bool:
        """A token attends its own K and V exactly, which the ASIC computes."""
        return self.method in ("past", "wkv")

    @property
    def record_columns(self) -> int:
        """Columns of one record of keys, of the channels with most heads."""
        return self.head_columns * (self.slots if self.joined else 1)

    @property
    def head_columns(self) -> int:
        """Columns of one head's K of one token."""
        return self.use.columns(self.head_dim)

    @property
    def v_dims(self) -> int:
        return min(self.v_packing.per_row, self.v_local)

    @property
    def v_rows(self) -> int:
        """Rows of one slot's V of one block of tokens."""
        return ceil_div(self.v_local, self.v_dims)

    @property
    def v_blocks(self) -> int:
        return ceil_div(self.max_context, self.v_block)

    def teams(self, channels: int) -> int:
        return channels // self.team

    def slots_of(self, channel: int, channels: int) -> int:
        """KV heads of a channel: head h belongs to team h mod teams."""
        share, extra = divmod(self.kv_heads, self.teams(channels))
        return share + (channel // self.team < extra)

    def heads_in_slot(self, slot: int, channels: int) -> int:
        """KV heads that the channels hold together in one slot."""
        return min(self.teams(channels), self.kv_heads - slot * self.teams(channels))


def size_cache(
    model: ModelDescription, kv: CacheFormat, max_context: int, target: Target, v_block: int | None = None
) -> CachePlacement:
    """Sizes of K and V of `max_context` tokens; `v_block` bounds the tokens of one dimension in a row of V."""
    use = _use(kv.format, target)
    if kv.key_group:
        check_banks(target)
    sizes = team_sizes(model, target, kv.method)
    team = target.choices.team or _team(model, use, max_context, sizes, target)
    _check_team(team, sizes, model, target)
    slots = ceil_div(model.kv_heads, target.channels // team)
    slow = _softmax_is_slow(model, use, max_context, team, target)
    joined = target.choices.joined is not False and not slow and _joins(model, use, slots, max_context, target)
    if kv.key_group:
        exact = _use(cache_format("bf16").format, target)
        joined = joined and _joins(model, exact, slots, max_context, target)
        joined = joined and group_columns(use.columns(model.head_dim) * slots, team, target) <= target.columns
    cache = replace(_sized(model, kv.format, max_context, target, v_block, (team, joined, slow)), method=kv.method)
    return _with_window(cache, model, target) if kv.key_group else cache


def _with_window(cache: CachePlacement, model: ModelDescription, target: Target) -> CachePlacement:
    """Keys in groups that share scales, and the exact tokens in a small cache of their own."""
    beside = cache.slots if cache.joined else 1
    regions = 1 if cache.joined else cache.slots
    vectors = beside * cache.queries * cache.head_columns * cache.use.values * cache.input_bytes
    sizes = (cache.team, beside, regions, cache.max_context)
    heads = model.heads if cache.joined else heads_at_work(model, target, cache.team)
    spare = target.asic.sram_bytes - score_bytes(heads, cache.max_context, cache.input_bytes) - vector_bytes(model)
    holds = spare // group_bytes(model, heads)
    groups = size_groups(cache.head_dim, cache.record_columns, vectors, *sizes, holds, target)
    key_rows = ceil_div(ceil_div(cache.max_context, groups.tokens), groups.per_row)
    exact = cache_format("bf16").format
    window = _sized(model, exact, KIVI_GROUP, target, KIVI_GROUP, (cache.team, cache.joined, cache.slow_softmax))
    named = [replace(region, tensor=f"{region.tensor} window") for region in window.regions]
    scales = _cache_scales(cache.slots, cache.team, cache.max_context, PARAM_BYTES, model, target)
    return replace(
        cache,
        keys=replace(cache.keys, rows=key_rows * regions),
        key_rows=key_rows,
        scales=replace(scales, tensor="V scales"),
        scale_bytes=PARAM_BYTES,
        groups=groups,
        window=window.placed(named),
    )


def _use(fmt: Format, target: Target) -> ColumnUse:
    return target.use(fmt, "bf16", "the format of the KV cache; pass --kv or MappingOptions(kv=...) with another")


def _sized(
    model: ModelDescription,
    fmt: Format,
    max_context: int,
    target: Target,
    v_block: int | None,
    shape: tuple[int, bool, bool],
) -> CachePlacement:
    """A cache of tokens that are all kept alike; `shape`: channels in a team, heads side by side, a slow softmax."""
    use, queries, input_bytes = _use(fmt, target), model.heads // model.kv_heads, value_bytes("bf16")
    team, joined, slow = shape
    slots = ceil_div(model.kv_heads, target.channels // team)
    _check_query(queries * use.columns(model.head_dim) * use.values * input_bytes, model, target)
    in_record = use.columns(model.head_dim) * (slots if joined else 1)
    records = ceil_div(max_context, target.banks * team)
    key_packing = Packing(in_record, target.columns, False)
    key_rows = key_packing.rows(records)
    v_local = ceil_div(model.head_dim // team, target.banks)
    most = min(target.buffer_bytes // input_bytes, target.columns * use.values, max_context)
    wanted = min(most, v_block) if v_block else _best_block(most, v_local, use, max_context // 2, target)
    v_block = min(_rounded(wanted, max(use.values, target.banks)), target.buffer_bytes // input_bytes)
    v_packing = Packing(use.columns(v_block), target.columns, False)
    scaling = fmt.for_cache().scaling
    data = max_context * model.kv_heads * fmt.row_bytes(model.head_dim)
    scale_bytes = 0 if fmt.is_float else 2 * (scaling.scale_bytes + scaling.zero_bytes)
    blocks = slots * ceil_div(max_context, v_block) * ceil_div(v_local, min(v_packing.per_row, v_local))
    return CachePlacement(
        keys=Region("K", 0, key_rows * (1 if joined else slots), 0, 1, data),
        values=Region("V", 0, blocks, 0, 1, data),
        scales=_cache_scales(slots, team, max_context, scale_bytes, model, target) if scale_bytes else None,
        format=fmt.name,
        use=use,
        input_bytes=input_bytes,
        kv_heads=model.kv_heads,
        queries=queries,
        head_dim=model.head_dim,
        max_context=max_context,
        team=team,
        slots=slots,
        joined=joined,
        key_packing=key_packing,
        key_rows=key_rows,
        v_packing=v_packing,
        v_block=v_block,
        v_local=v_local,
        scale_bytes=scale_bytes,
        slow_softmax=slow,
    )


def _best_block(most: int, v_local: int, use: ColumnUse, context: int, target: Target) -> int:
    """Tokens of a row of V: `most` or a half, a quarter, … of a row's; the quickest at `context` tokens.

    Smaller blocks open fewer rows to append, and to read while the context is short; each block reads every dimension.
    """
    largest = min(target.columns * use.values, target.buffer_bytes // value_bytes("bf16"))
    halves = [largest >> i for i in range(largest.bit_length()) if use.values <= largest >> i < most]
    return min([most, *halves], key=lambda tokens: _block_cycles(tokens, v_local, use, context, target))


def _block_cycles(tokens: int, v_local: int, use: ColumnUse, context: int, target: Target) -> int:
    """Cycles that depend on the block: its rows read and written, accumulators read within rows, vectors begun."""
    per_row = max(target.columns // use.columns(tokens), 1)
    rows = ceil_div(v_local, min(per_row, v_local))
    block = (rows + 1) * target.row_change + (v_local - rows) * (target.readout + 1)
    return ceil_div(max(context, 1), tokens) * block + 2 * rows * target.row_change


def _check_query(size_bytes: int, model: ModelDescription, target: Target) -> None:
    if size_bytes > target.buffer_bytes:
        raise NearbankError(
            f"machine {target.name}: the {model.heads // model.kv_heads} queries of one KV head take {size_bytes} "
            f"bytes, but the global buffer has {target.buffer_bytes}; use a machine with a larger buffer"
        )


def _rounded(value: int, unit: int) -> int:
    return ceil_div(value, unit) * unit


def _cache_scales(
    slots: int, team: int, max_context: int, scale_bytes: int, model: ModelDescription, target: Target
) -> Region:
    """A slot's scales, in bursts of whole tokens dealt out over the team's channels and their banks, in own rows."""
    bursts = ceil_div(target.bursts(max_context * scale_bytes), team)
    rows = ceil_div(ceil_div(bursts, target.banks), target.columns)
    return Region("K and V scales", 0, slots * rows, 0, 1, max_context * model.kv_heads * scale_bytes)


# Larger teams make more kinds of channels, so they must save at least this much of the attention's time.
TEAM_GAIN = 0.1


def _team(model: ModelDescription, use: ColumnUse, max_context: int, useful: list[int], target: Target) -> int:
    """Channels that share a head: more than one only where that clearly helps at half the longest context.

    A larger team has fewer heads in work at once, which a long context may need to fit the ASIC's memory.
    """
    fitting = [size for size in useful if _asic_holds(model, heads_at_work(model, target, size), max_context, target)]
    best, *others = fitting or useful or [1]
    least = _attention_ps(model, use, max_context // 2, best, target)
    for size in others:
        time_ps = _attention_ps(model, use, max_context // 2, size, target)
        if time_ps < (1 - TEAM_GAIN) * least:
            best, least = size, time_ps
    return best


def team_sizes(model: ModelDescription, target: Target, method: str = "plain") -> list[int]:
    """How many channels may share a KV head: divisors that leave every bank a dimension, and whole groups of keys."""
    able = able_teams(target) if method == "kivi" else range(1, target.channels + 1)
    return [
        size
        for size in able
        if target.channels % size == 0 and model.head_dim % size == 0 and model.head_dim // size >= target.banks
    ]


def _check_team(team: int, sizes: list[int], model: ModelDescription, target: Target) -> None:
    if target.choices.team is not None and team not in sizes:
        raise NearbankError(
            f"{team} channels cannot share a KV head of {model.head_dim} values on {target.channels} channels; "
            f"possible: {', '.join(str(size) for size in sizes)}"
        )


def _attention_ps(model: ModelDescription, use: ColumnUse, context: int, team: int, target: Target) -> float:
    """Roughly the time of one token's attention. A slow ASIC waits for the first slot, the banks end with the last."""
    slots = ceil_div(model.kv_heads, target.channels // team)
    banks_ps = _attention_cycles(model, use, context, team, target) * target.tck_ps
    softmax_ps = target.asic.time_ps(softmax_work(model.heads, context))
    return banks_ps if softmax_ps <= banks_ps else banks_ps / slots + softmax_ps


def heads_at_work(model: ModelDescription, target: Target, team: int) -> int:
    """Query heads whose scores the ASIC holds when heads go one after another: a slot scored, a slot in softmax."""
    return min(2 * (target.channels // team) * (model.heads // model.kv_heads), model.heads)


def _asic_holds(model: ModelDescription, heads: int, max_context: int, target: Target) -> bool:
    need = score_bytes(heads, max_context, value_bytes("bf16")) + vector_bytes(model)
    return need <= target.asic.sram_bytes


def _attention_cycles(model: ModelDescription, use: ColumnUse, context: int, team: int, target: Target) -> int:
    """Roughly what the busiest channel spends on scores and context products of one token."""
    slots = ceil_div(model.kv_heads, target.channels // team)
    records = ceil_div(context, target.banks * team)
    score = records * (use.columns(model.head_dim) * use.steps + target.readout)
    sent = target.bursts(context * value_bytes("bf16"))
    product = ceil_div(model.head_dim // team, target.banks) * (use.columns(context) * use.steps + target.row_change)
    return slots * (model.heads // model.kv_heads) * (score + sent + product)


def _joins(model: ModelDescription, use: ColumnUse, slots: int, max_context: int, target: Target) -> bool:
    """True when all slots' heads fit side by side: in a row, in the global buffer and, as scores, in the ASIC."""
    columns = slots * use.columns(model.head_dim)
    vectors = slots * (model.heads // model.kv_heads) * use.columns(model.head_dim) * use.values * value_bytes("bf16")
    held = _asic_holds(model, model.heads, max_context, target)
    return columns <= target.columns and vectors <= target.buffer_bytes and held


def _softmax_is_slow(model: ModelDescription, use: ColumnUse, max_context: int, team: int, target: Target) -> bool:
    """True when at half the longest context the ASIC takes longer for softmax than the banks for scores and context."""
    context = max_context // 2
    banks_ps = _attention_cycles(model, use, context, team, target) * target.tck_ps
    return target.asic.time_ps(softmax_work(model.heads, context)) > banks_ps


def score_bytes(heads: int, max_context: int, input_bytes: int) -> int:
    """ASIC memory for the scores of so many heads; the softmax overwrites them."""
    return heads * max_context * input_bytes


def group_bytes(model: ModelDescription, heads: int) -> int:
    """ASIC memory for a group of keys (KIVI): its queries until they are sent, the next one's scales being read."""
    return model.head_dim * (heads * value_bytes("bf16") + ceil_div(heads * model.kv_heads, model.heads) * PARAM_BYTES)


def vector_bytes(model: ModelDescription, tokens: int = 1) -> int:
    """ASIC memory for tokens that go together: the residual stream, a product's vector and its results, in 16 bits.

    For one the widest vector and the most results may be those of two products; for several they are of one.
    """
    if tokens > 1:
        most = max((m.n + m.k for m in model.matrices if m.per_layer), default=model.width)
        return max(2 * tokens * (model.width + most), vector_bytes(model))
    widest = max((m.n for m in model.matrices if m.per_layer), default=model.width)
    longest = max((m.k for m in model.matrices), default=model.width)
    return 2 * (model.width + longest + widest)

"""The least cycles of one layer's attention, over the channels that may share a head and the blocks of V."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from nearbank.mapping import asic
from nearbank.mapping.cache_placement import CachePlacement, team_sizes
from nearbank.mapping.least_rows import Count, Vectors
from nearbank.mapping.plan import Plan
from nearbank.mapping.target import Target
from nearbank.units import ceil_div


def attention_least(plan: Plan, contexts: Sequence[int], turn: int, waited: float, *, ahead: bool = False) -> Count:
    """The mean over tokens that attend so many positions; the query comes `waited` cycles after the MAC before.

    Every team has whole heads, and the busiest as many as a channel of it has slots. Blocks of V have the same number
    of tokens throughout, so one size serves all contexts.
    """
    cache, target = plan.placement.cache, plan.target
    teams = team_sizes(plan.model, target, cache.method) or [1]
    most = min(target.columns, target.buffer_bytes // cache.input_bytes // cache.use.values)
    ways = product(teams, range(1, max(most, 1) + 1))
    tokens = [_in_banks(cache, context) for context in contexts]
    burst = cache.use.values * cache.input_bytes / target.column_bytes
    vectors = Vectors(burst, most, turn, waited, None, ahead)
    scores = {team: _scores_least(plan, tokens, team, vectors) for team in teams}
    total = [scores[team] + _products(plan, tokens, team, width, vectors) + _writes(plan, team) for team, width in ways]
    return min(total, key=lambda count: count.cycles)


def _scores_least(plan: Plan, tokens: Sequence[int], team: int, vectors: Vectors) -> Count:
    """Heads one after another, each scored beside the softmax before; or side by side, with one softmax waited for."""
    apart = _scores(plan, tokens, team, vectors, joined=False)
    if _slots(plan, team) * plan.placement.cache.head_columns > plan.target.columns:
        return apart
    joined = _scores(plan, tokens, team, vectors, joined=True)
    return min(apart, joined, key=lambda count: count.cycles)


def _in_banks(cache: CachePlacement, context: int) -> int:
    """Positions that the banks attend at least, in one cache: the ASIC has a past-only cache's newest token."""
    if cache.groups:
        return max(context - 2 * cache.groups.tokens, 0)
    return context - cache.newest_exact


def _slots(plan: Plan, team: int) -> int:
    return ceil_div(plan.model.kv_heads, plan.target.channels // team)


def _scores(plan: Plan, tokens: Sequence[int], team: int, vectors: Vectors, *, joined: bool) -> Count:
    """Every record of every head; a query comes before the first MAC."""
    cache, target, slots = plan.placement.cache, plan.target, _slots(plan, team)
    width, steps = min(cache.head_columns, target.columns), cache.use.steps_for(cache.head_dim)
    begun = vectors.first(cache.queries * width, 0, target)
    total = Count()
    for count in tokens:
        records = ceil_div(ceil_div(count, target.banks), team)
        if not records:
            continue
        beside = target.columns // (slots * width) if joined else 0
        visits = ceil_div(records, beside) if beside else slots * ceil_div(records * width, target.columns)
        sums = slots * records * cache.queries
        total += _visited(visits, sums, sums * width * steps, target) + begun
        if joined and not cache.slow_softmax:  # where it is slow, the part of qkv that gives v may fill the wait
            total += Count(dependencies=_softmax_waited(plan, count, team, vectors))
    return total.times(1 / len(tokens))


def _softmax_waited(plan: Plan, count: int, team: int, vectors: Vectors) -> float:
    """For the first head of each channel, of which those with most slots cannot spare any time: beyond a change of rows
    and the writes of V in the rows of that head. The query's own wait has the same way to the ASIC and back."""
    target, slots = plan.target, _slots(plan, team)
    heads = plan.model.kv_heads - (slots - 1) * (target.channels // team)
    work = asic.softmax_work(heads * plan.placement.cache.queries, count)
    more_ps = target.asic.time_ps(work) - target.asic.time_ps(asic.add_work(1))
    waited = (vectors.before or 0) + more_ps / target.tck_ps
    return max(waited - (target.row_change - 1) - plan.placement.cache.head_dim // team, 0)


def _products(plan: Plan, tokens: Sequence[int], team: int, width: int, vectors: Vectors) -> Count:
    """Every dimension of every head and block; a block's dimensions have `width` columns each."""
    cache, target = plan.placement.cache, plan.target
    dims = ceil_div(cache.head_dim // team, target.banks)
    rows = ceil_div(dims, max(target.columns // width, 1))
    total = Count()
    for count in tokens:
        columns = ceil_div(count, cache.use.values)
        work = dims * columns * cache.use.steps * cache.queries
        blocks = ceil_div(columns, width)
        total += _visited(blocks * rows, blocks * dims * cache.queries, work, target)
        parts = [min(columns - first, width) for first in range(0, columns, width)]
        total += Count(vectors=cache.queries * sum(vectors.later(part, width, dims, target) for part in parts))
    return total.times(_slots(plan, team) / len(tokens))


def _visited(visits: int, sums: int, work: int, target: Target) -> Count:
    """So many MAC commands in so many visits of rows, each of which hides one batch of reads."""
    waited = max(ceil_div(sums, target.accumulators) - visits, 0)
    return Count(work, (target.row_change - 1) * visits, target.readout * waited)


def _writes(plan: Plan, team: int) -> Count:
    """One command for every element of V, and for every column of K in the team's channel whose turn it is."""
    cache = plan.placement.cache
    return Count(writes=_slots(plan, team) * (cache.head_dim // team + cache.head_columns))

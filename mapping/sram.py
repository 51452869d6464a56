"""Whether what the ASIC holds at once fits its memory."""

from __future__ import annotations

from nearbank.mapping.cache_placement import CachePlacement, group_bytes, heads_at_work, score_bytes, vector_bytes
from nearbank.mapping.matmul import held_scale_bytes
from nearbank.mapping.placement import Placement
from nearbank.mapping.target import Target
from nearbank.trace import ModelDescription


def check_sram(model: ModelDescription, target: Target, placement: Placement) -> None:
    """Vectors of one token, and the scores of the heads that are in work at once, must fit the ASIC's memory."""
    cache = placement.cache
    heads = model.heads if cache.joined else heads_at_work(model, target, cache.team)
    scales = max((held_scale_bytes(m, target) for m in placement.matrices), default=0)
    grouped = cache.groups.visit * group_bytes(model, heads) if cache.groups else 0
    flushed = _flush_bytes(cache, target.channels) if cache.groups else 0
    reuse = target.choices.reuse
    scores = score_bytes(heads, cache.max_context, cache.input_bytes)
    need = max(scores + grouped, flushed, scales) + vector_bytes(model, reuse)
    vectors = f"vectors of {reuse} tokens" if reuse > 1 else "vectors of one token"
    what = f"{heads} heads' scores at {cache.max_context} tokens and the {vectors}"
    target.asic.check_sram(need, what, "use a shorter context" + (" or reuse rows less" if reuse > 1 else ""))


def _flush_bytes(cache: CachePlacement, channels: int) -> int:
    """Exact K or V of a full group (KIVI), of all heads of a slot."""
    assert cache.groups is not None
    return cache.groups.tokens * cache.head_dim * cache.heads_in_slot(0, channels) * cache.input_bytes

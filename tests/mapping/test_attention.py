"""Attention through the banks equals attention in NumPy, for every way K and V can be laid out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nearbank.errors import NearbankError
from nearbank.formats import format_named, from_bf16, to_bf16
from nearbank.mapping.append import append_keys
from nearbank.mapping.asic_arithmetic import EXACT as ASIC
from nearbank.mapping.attention import attend
from nearbank.mapping.cache_placement import CachePlacement
from nearbank.mapping.cached_attention import CachedAttention
from nearbank.mapping.choices import Choices
from nearbank.mapping.functional import BankMemory, Moment, execute
from nearbank.mapping.gemv import program_of
from nearbank.mapping.placement import place
from nearbank.mapping.reach import Attention, Reach
from nearbank.mapping.target import Target, target_of
from nearbank.sim.machine import load_machine
from nearbank.sim.program import Builder, Program, expand
from nearbank.trace import Matrix, ModelDescription

EXACT = target_of(load_machine("pim-gpt-ternary"))


def cache_for(
    target: Target, heads: int, kv_heads: int, head_dim: int, context: int, kv: str, v_block: int | None = None
) -> CachePlacement:
    model = ModelDescription(
        name="attention",
        layers=1,
        width=heads * head_dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=16,
        vocabulary=16,
        context=context,
        matrices=(Matrix(name="w", n=16, k=16, per_layer=True),),
    )
    formats = {"weights": "bf16", "head": "bf16", "kv": kv, "inputs": None}
    return place(model, target, **formats, max_context=context, v_block=v_block).cache


def program(cache: CachePlacement, target: Target, token: int, first: int) -> Program:
    def write(b: Builder, channel: int) -> None:
        new = (token, 0) if target.choices.in_place else None
        at = Attention(cache, target, channel, lambda row: row, new=new)
        if not new:
            append_keys(b, at, token, 0)
        attend(b, at, Reach.of(cache, first, token, target.banks), token)

    return program_of("attention", target.channels, write)


class Beside:
    """The unit beside the memory: attention and nothing else."""

    def __init__(self, side: CachedAttention) -> None:
        self.side = side

    def inputs(self, label: str) -> str:
        return "bf16"

    def send(self, moment: Moment, command: str, channels: tuple[int, ...], data: int):  # type: ignore[no-untyped-def]
        return self.side.send(moment.label, channels, data)

    def receive(self, moment: Moment, command: str, channels: tuple[int, ...], data: int, burst) -> None:  # type: ignore[no-untyped-def]
        self.side.receive(moment.label, channels, data, burst)

    def job(self, moment: Moment, job: str) -> None:
        self.side.run(job)


def worst_error(cache: CachePlacement, target: Target, tokens: int, window: int | None = None) -> float:
    """Largest relative error over the last tokens of a sequence; earlier ones are appended and attended as well."""
    rng = np.random.default_rng(1)
    memory, side = BankMemory(target), CachedAttention(cache, target)
    heads, d = cache.kv_heads * cache.queries, cache.head_dim
    keys, values = (rng.normal(size=(tokens, cache.kv_heads, d)) for _ in range(2))
    worst = 0.0
    for token in range(tokens):
        q = rng.normal(size=(heads, d)) / d**0.5
        first = max(0, token + 1 - window) if window else 0
        side.begin(token, q, keys[token], values[token], first)
        execute(program(cache, target, token, first), memory, Beside(side))
        expected = plain(q, kept(cache, keys[first : token + 1]), kept(cache, values[first : token + 1]))
        worst = max(worst, float(np.abs(side.result() - expected).max() / np.abs(expected).max()))
    return worst


def kept(cache: CachePlacement, values: np.ndarray) -> np.ndarray:
    """K or V [tokens, heads, d] as the cache's format keeps it."""
    fmt = format_named(cache.format)
    return np.stack([ASIC.round_token(fmt, token).values for token in values])


def plain(q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    q = from_bf16(to_bf16(q.astype(np.float32)))
    share = len(q) // keys.shape[1]
    out = np.zeros(q.shape)
    for head in range(len(q)):
        scores = keys[:, head // share] @ q[head]
        p = np.exp(scores - scores.max())
        out[head] = p @ values[:, head // share] / p.sum()
    return out


# Probabilities travel in bf16, times V's scale where it has one: half a unit of 2^-8, a few of them added.
ROUNDING = 0.006


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "kv", "team", "slots"),
    [
        (8, 8, 32, "bf16", 1, 1),
        (12, 12, 32, "bf16", 2, 3),
        (3, 3, 64, "fp16", 2, 1),
        (12, 12, 32, "int8", 2, 3),
        (8, 4, 64, "int4", 2, 1),
        (8, 8, 64, "int2", 1, 1),
        (8, 2, 64, "bf16", 4, 1),
    ],
)
def test_formats_and_shapes(heads: int, kv_heads: int, head_dim: int, kv: str, team: int, slots: int) -> None:
    cache = cache_for(EXACT, heads, kv_heads, head_dim, 64, kv)
    assert (cache.team, cache.slots, cache.joined) == (team, slots, True)
    assert worst_error(cache, EXACT, 19) < ROUNDING


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(
    ("kv_heads", "head_dim", "v_block", "team"), [(8, 32, None, 1), (6, 32, 16, 2), (3, 64, 32, 2), (5, 128, 48, 4)]
)
def test_k_and_v_written_into_open_rows(
    kv_heads: int, head_dim: int, v_block: int | None, team: int, joined: bool, window: int | None
) -> None:
    """Every block size, share of heads and window: as written into rows of their own, and with fewer rows opened."""
    apart = replace(EXACT, choices=Choices(team=team, joined=joined))
    merged = replace(apart, choices=replace(apart.choices, in_place=True))
    cache = cache_for(apart, 2 * kv_heads, kv_heads, head_dim, 64, "bf16", v_block)
    assert cache_for(merged, 2 * kv_heads, kv_heads, head_dim, 64, "bf16", v_block) == cache
    assert worst_error(cache, merged, 37, window) < ROUNDING
    opened = [sum(s.command in ("ACT", "ACT16") for s in expand(program(cache, t, 36, 0))) for t in (apart, merged)]
    assert opened[1] < opened[0]


@pytest.mark.parametrize("heads", [2, 3, 5])
def test_head_after_head_where_the_buffer_holds_one(heads: int) -> None:
    small = replace(EXACT, channels=2, buffer_bytes=64)
    cache = cache_for(small, heads, heads, 32, 64, "bf16")
    assert cache.joined == (cache.slots == 1)
    assert worst_error(cache, small, 18) < ROUNDING


def test_values_in_several_blocks() -> None:
    small = replace(EXACT, channels=2, buffer_bytes=64)
    cache = cache_for(small, 2, 2, 32, 96, "bf16")
    assert cache.v_blocks == 3
    assert worst_error(cache, small, 40) < ROUNDING


@pytest.mark.parametrize("kv", ["bf16", "int4"])
def test_blocks_smaller_than_a_row(kv: str) -> None:
    """Several dimensions of few tokens in one row, and tokens in more than one block."""
    small = replace(EXACT, channels=2)
    cache = cache_for(small, 2, 2, 64, 200, kv, v_block=16)
    assert cache.v_dims > 1
    assert worst_error(cache, small, 35) < ROUNDING


def test_a_window_reads_only_what_it_attends() -> None:
    small = replace(EXACT, channels=2, buffer_bytes=128)
    cache = cache_for(small, 4, 4, 32, 128, "bf16")
    assert worst_error(cache, small, 70, window=20) < ROUNDING
    wide, narrow = (program(cache, small, 69, first) for first in (0, 50))
    assert len(str(narrow)) <= len(str(wide))


def test_two_byte_accumulators_round_scores() -> None:
    target = target_of(load_machine("pim-gpt"))
    cache = cache_for(target, 8, 8, 32, 64, "bf16")
    assert ROUNDING / 10 < worst_error(cache, target, 12) < 5 * ROUNDING


def test_queries_that_do_not_fit_the_buffer() -> None:
    with pytest.raises(NearbankError, match="queries of one KV head take 1024 bytes"):
        cache_for(replace(EXACT, buffer_bytes=512), 8, 1, 64, 64, "bf16")

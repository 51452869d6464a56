"""Past-only and KIVI caches through the banks equal attention in NumPy, for the ways they can be laid out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.mapping.shapes import gpt, steps
from tests.mapping.test_attention import EXACT, ROUNDING, Beside, cache_for

from nearbank.cache_formats import KIVI_GROUP, cache_format
from nearbank.errors import NearbankError
from nearbank.formats import format_named, from_bf16, to_bf16
from nearbank.mapping import MappingOptions, command_counts, describe, plan
from nearbank.mapping.append import append_keys
from nearbank.mapping.asic_arithmetic import EXACT as ASIC
from nearbank.mapping.attention import attend
from nearbank.mapping.cache_placement import CachePlacement
from nearbank.mapping.choices import Choices
from nearbank.mapping.functional import BankMemory, execute
from nearbank.mapping.gemv import program_of
from nearbank.mapping.grouped_attention import flush
from nearbank.mapping.reach import Attention, Reach
from nearbank.mapping.target import Target
from nearbank.mapping.windowed_attention import attention_for
from nearbank.sim.checker import Flat, check
from nearbank.sim.engine import Player, simulate
from nearbank.sim.machine import load_machine
from nearbank.sim.program import Builder, Program

SMALL = replace(EXACT, channels=2)


def program(cache: CachePlacement, target: Target, token: int, first: int) -> Program:
    def write(b: Builder, channel: int) -> None:
        at = Attention(cache, target, channel, lambda row: row)
        if cache.groups and token and token % KIVI_GROUP == 0:
            flush(b, at, token // KIVI_GROUP - 1)
        if not cache.newest_exact:
            append_keys(b, at, token, 0)
        attend(b, at, Reach.of(cache, first, token, target.banks), token)
        if cache.newest_exact:
            append_keys(b, at, token, 0)

    return program_of("attention", target.channels, write)


def held(kv: str, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """K and V [n, heads, d] as the query at the last position sees them."""
    scheme, n = cache_format(kv), len(keys)
    fmt, (keys_until, values_until) = format_named(scheme.format.name), scheme.rounded_until(n)
    exact = [from_bf16(to_bf16(x.astype(np.float32))) if scheme.key_group else x for x in (keys, values)]
    keys, values = (x.astype(np.float32).copy() for x in exact)
    if scheme.key_group:
        for i in range(0, keys_until, KIVI_GROUP):
            group = np.ascontiguousarray(keys[i : i + KIVI_GROUP].transpose(1, 2, 0))
            keys[i : i + KIVI_GROUP] = ASIC.round_token(fmt, group).values.transpose(2, 0, 1)
    else:
        keys[:keys_until] = ASIC.round_token(fmt, keys[:keys_until]).values if keys_until else keys[:0]
    values[:values_until] = ASIC.round_token(fmt, values[:values_until]).values if values_until else values[:0]
    return keys, values


def worst_error(cache: CachePlacement, target: Target, kv: str, tokens: int, window: int | None = None) -> float:
    """The largest relative error of any token of a sequence."""
    rng = np.random.default_rng(1)
    memory, side = BankMemory(target), attention_for(cache, target)
    heads, d = cache.kv_heads * cache.queries, cache.head_dim
    keys, values = (rng.normal(size=(tokens, cache.kv_heads, d)) for _ in range(2))
    worst = 0.0
    for token in range(tokens):
        q = (rng.normal(size=(heads, d)) / d**0.5).astype(np.float32)
        first = max(0, token + 1 - window) if window else 0
        side.begin(token, q, keys[token], values[token], first)
        execute(program(cache, target, token, first), memory, Beside(side))
        k, v = held(kv, keys[: token + 1], values[: token + 1])
        expected = exact_attention(q, k[first:], v[first:])
        worst = max(worst, float(np.abs(side.result() - expected).max() / np.abs(expected).max()))
    return worst


def exact_attention(q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    share, out = len(q) // keys.shape[1], np.zeros(q.shape)
    for head in range(len(q)):
        scores = keys[:, head // share] @ q[head]
        p = np.exp(scores - scores.max())
        out[head] = p @ values[:, head // share] / p.sum()
    return out


# Queries travel in bf16 here, with or without a group's scales.
QUERIES = 4 * ROUNDING


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "kv", "changes", "choices", "tokens"),
    [
        (2, 2, 32, "int4-past", {}, {}, 19),
        (4, 2, 64, "int8-past", {"buffer_bytes": 256}, {}, 18),  # head after head, grouped queries
        (2, 2, 32, "int4-kivi", {}, {}, 67),
        (3, 3, 32, "int8-kivi", {"buffer_bytes": 64}, {"joined": False}, 36),  # a visit for every group, slots apart
        (4, 2, 64, "int2-kivi", {}, {"team": 2}, 36),  # channels share a head and a group
        (3, 3, 32, "int4-kivi", {"accumulators": 1, "accumulator_bytes": 4}, {}, 35),
    ],
)
def test_formats_and_layouts(
    heads: int, kv_heads: int, head_dim: int, kv: str, changes: dict[str, int], choices: dict[str, int], tokens: int
) -> None:
    target = replace(SMALL, **changes, choices=Choices(**choices))  # type: ignore[arg-type]
    cache = cache_for(target, heads, kv_heads, head_dim, 96, kv)
    if choices:
        assert all(getattr(cache, name) == value for name, value in choices.items())
    assert worst_error(cache, target, kv, tokens) < QUERIES


@pytest.mark.parametrize("kv", ["int4-past", "int4-kivi"])
def test_a_window_of_attention_reads_only_what_it_attends(kv: str) -> None:
    cache = cache_for(SMALL, 2, 2, 32, 160, kv)
    assert worst_error(cache, SMALL, kv, 70, window=40) < QUERIES
    wide, narrow = (program(cache, SMALL, 140, first) for first in (0, 100))
    counts = [command_counts(p)["MACAB", "int4"] for p in (wide, narrow)]
    assert counts[1] < counts[0]


def test_a_groups_rounding_costs_what_it_reads_and_writes() -> None:
    """12 heads of 64 values on 8 channels."""
    model, target = gpt("m", 1, 768, 12, context=128), load_machine("pim-gpt")
    placed = plan(model, target, MappingOptions(kv="int4-kivi"))
    programs = [placed.lower(step) for step in steps(model, KIVI_GROUP, 3)]
    before, after = (command_counts(p) for p in programs[1:])
    heads, dims, team = 12, 64, placed.placement.cache.team
    key_columns, value_columns = dims * 2 // 32, KIVI_GROUP * 2 // 32
    scales = dims * 4 // 32  # of one group's channels
    read = heads * (KIVI_GROUP * key_columns + dims * value_columns)
    seen = heads * (scales + team * 16)  # of a group's channels, and of some values: a burst from every bank
    assert before["RD", ""] == read + seen
    assert after["RD", ""] == seen
    appended = heads * (key_columns + dims)
    assert after["WR", ""] == appended
    written = heads * (KIVI_GROUP + dims + scales + KIVI_GROUP * 4 // 32)  # a column of K, of V, scales
    assert before["WR", ""] == appended + written


@pytest.mark.parametrize("kv", ["int4-past", "int8-kivi", "int4-kivi"])
def test_every_issued_command_obeys_the_machine(kv: str) -> None:
    machine = load_machine("pim-gpt")
    model = gpt("m", 1, 192, 12, vocabulary=300, context=64)
    player, placed = Player(machine), plan(model, machine, MappingOptions(kv=kv))
    issued = [i for step in list(steps(model, 31, 4))[1:] for i in player.record(placed.lower(step), 0, 10**6)]
    for channel in {i.channel for i in issued}:
        flat = [Flat(i.cycle, i.command, i.bank, i.row, i.column) for i in issued if i.channel == channel]
        assert check(machine, flat) is None


def test_regions_do_not_overlap_and_are_all_placed() -> None:
    placed = plan(gpt("m", 2, 192, 12, context=64), load_machine("pim-gpt"), MappingOptions(kv="int4-kivi"))
    names = [region.tensor for region in placed.placement.regions]
    assert {"K", "V", "K window", "V window", "K scales", "V scales"} <= set(names)
    rows = [r for region in placed.placement.regions for layer in range(2) for r in region.rows_of(layer)]
    inside = [r for region in placed.placement.regions if region.stride for n in range(2) for r in region.rows_of(n)]
    assert len(set(inside)) == len(inside)
    assert max(rows) < placed.placement.rows


def test_what_was_decided_is_said() -> None:
    model, machine = gpt("m", 2, 192, 12, context=64), load_machine("pim-gpt")
    said = {kv: "\n".join(describe(plan(model, machine, MappingOptions(kv=kv)))) for kv in ("int4-kivi", "int4-past")}
    assert "scales of V, 4 bytes per token and head" in said["int4-kivi"]
    assert "exact K and V of 32 tokens in bf16, a ring: rows" in said["int4-kivi"]
    assert "groups multiplied at a time" in said["int4-kivi"]
    assert "stay exact with the ASIC" in said["int4-past"]


def test_a_past_only_cache_hides_its_keys_behind_the_scores() -> None:
    """The newest key is not needed by the banks, so a step waits less than where it is written first."""
    machine, model = load_machine("pim-gpt"), gpt("m", 4, 768, 12, context=512)
    times = {}
    for kv in ("int4", "int4-past"):
        step = list(steps(model, 300, 2))[1]
        times[kv] = simulate(machine, plan(model, machine, MappingOptions(kv=kv)).lower(step)).cycles
    assert times["int4-past"] < times["int4"]


def test_banks_that_groups_do_not_fill() -> None:
    with pytest.raises(NearbankError, match=r"groups of 32 tokens \(KIVI\) do not fill its 12 banks evenly"):
        cache_for(replace(SMALL, banks=12), 2, 2, 32, 64, "int4-kivi")
    with pytest.raises(NearbankError, match="unknown KV cache 'int4-x'; known: fp32"):
        cache_for(SMALL, 2, 2, 32, 64, "int4-x")

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ternary, binary and KV4 on memory that computes
#
# **What do fewer bits in weights and cache buy in tokens per second and joules, and what do they cost in quality?**
#
# Costs are those of GPT3-XL's shape, played command by command on PIM-GPT's memory. Quality is that of small models
# trained here, on Shakespeare, as `docs/quality.md` has it: a large model loses less from the same bits, so read the
# quality axis as an order, not as a promise.

# %%
import json
from pathlib import Path

from matplotlib import pyplot as plt

import nearbank
from nearbank.formats import format_named
from nearbank.plot.study import grouped, scatter
from nearbank.study import Quality, Study, run

OUT = Path("nearbank-out/study")

# %% [markdown]
# ## Bits in the weights
#
# The same memory with a unit for each format, as wide as a column: a column of 32 bytes holds 16 bf16, 32 int8,
# 64 int4, 128 ternary or 256 binary weights. int4 has a scale for every 128 weights, which the ASIC applies, or the
# bank itself. The LM head stays in bf16, as low-bit models keep it. Losses are of models trained with rounding
# (ternary "2-8" and binary "1-8", 8-bit activations) or rounded after training (int8 weights, activations and cache;
# int4 weights).

# %%
folder = Path(nearbank.__file__).parents[2] / "docs" / "quality"
rounded = {row["name"]: row["nats_per_character"] for row in json.loads((folder / "post-training.json").read_text())}


def trained(name: str) -> float:
    """The loss of a model that was trained at its precision."""
    return json.loads((folder / f"{name}.json").read_text())["nats_per_character"]


losses = {
    "bf16": trained("fp-control"),
    "int8": rounded["W8A8"],
    "int4": rounded["W4"],
    "ternary": trained("2-8"),
    "binary": trained("1-8"),
}
weights = Study(
    name="low-bit-weights",
    base={"model": "gpt3-xl", "tokens": 128, "steps": 8},
    axes={
        "format": {
            "bf16": {"machine": "pim-gpt-lowbit", "weights": "bf16"},
            "int8": {"machine": "pim-gpt-lowbit", "weights": "int8"},
            "int4, bank": {"machine": "pim-gpt-scales", "weights": "int4"},
            "int4, ASIC": {"machine": "pim-gpt-lowbit", "weights": "int4"},
            "ternary": {"machine": "pim-gpt-lowbit", "weights": "ternary"},
            "binary": {"machine": "pim-gpt-lowbit", "weights": "binary"},
        }
    },
    quality=Quality(title="nats per character", source="docs/quality", by="weights", values=losses),
)
results = run(weights, OUT / weights.name)
rows = {row["format"]: row for row in results.good}
for name, row in rows.items():
    stored = format_named(name.split(",")[0]).bits_per_value(2048, 2048)
    print(
        f"{name:10} {stored:5.2f} bits  {row['tokens_per_s']:6.0f} tokens/s  "
        f"{row['energy_pj_per_token'] / 1e6:6.0f} µJ/token  {row['quality']:.4f} nats"
    )

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for ax, (metric, per, unit) in zip(
    axes, (("tokens_per_s", 1, "tokens/s"), ("energy_pj_per_token", 1e6, "µJ per token")), strict=True
):
    bits = {name: format_named(name.split(",")[0]).bits_per_value(2048, 2048) for name in rows}
    scatter({name: (bits[name], row[metric] / per) for name, row in rows.items()}, ax)
    ax.set_xlabel("bits stored per weight")
    ax.set_ylabel(unit)
fig.suptitle("GPT3-XL's shape, 128 tokens, column-wide units")
# %% [markdown]
# ## Bits in the cache
#
# Once the weights are ternary, a long context is a large part of what is left. One decode step at a context of 128 and
# at 2,047. Queries are bf16, so K and V of few bits go through the bf16 unit here, 16 values a clock whatever their
# bits, and their scales come over the pins: they save capacity, and on this unit they cost a little time.

# %%
caches = Study(
    name="low-bit-caches",
    base={"model": "gpt3-xl", "machine": "pim-gpt-ternary", "weights": "ternary", "tokens": 1},
    axes={"context": [128, 2047], "kv": ["bf16", "int8", "int4", "int4-past", "int4-kivi"]},
)
cached = run(caches, OUT / caches.name).good
contexts = list(caches.choices["context"])
times = {
    f"K and V in {kv}": [
        next(r["time_ns_per_token"] / 1000 for r in cached if (r["context"], r["kv"]) == (context, kv))
        for context in contexts
    ]
    for kv in caches.choices["kv"]
}
fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
grouped([f"context {context}" for context in contexts], times, ax)
ax.set_ylabel("µs per token")
ax.set_title("Ternary weights: what the cache's format costs")
# %% [markdown]
# ## Quality on the other axis
#
# What no other choice beats in loss and time together, and in loss and energy.

# %%
front = {metric: [row["format"] for row in results.front(metric, "quality")] for metric in results.objectives[:2]}
for metric, names in front.items():
    print(f"nothing beats, in {metric} and quality: {', '.join(names)}")

# %% [markdown]
# ## Answer
#
# Nothing beats ternary weights at 4.4 times the speed and a quarter of the energy of bf16, int4 at 2.9 times the speed
# and a third of the energy (if the bank applies its scales), or int8, whose loss is that of bf16: each step down costs
# quality and buys speed, and binary adds least, because by then the bf16 LM head, rows and the ASIC take their share.
# A low-bit cache saves room rather than time on units that take 16 values a clock whatever their bits.

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for ax, (metric, per, unit) in zip(
    axes, (("time_ns_per_token", 1e3, "µs per token"), ("energy_pj_per_token", 1e6, "µJ per token")), strict=True
):
    scatter({name: (row[metric] / per, row["quality"]) for name, row in rows.items()}, ax, front=True)
    ax.set_xlabel(f"{unit}, GPT3-XL's shape")
    ax.set_ylabel("nats per character, small models")
fig.suptitle("Quality against latency and energy; line: what nothing beats in both")

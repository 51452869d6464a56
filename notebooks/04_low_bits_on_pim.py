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
from nearbank.plot.study import grouped, pareto, scatter
from nearbank.replay import replay
from nearbank.workload import sketch_workload

# %% [markdown]
# ## Bits in the weights
#
# The same memory with a unit for each format, as wide as a column: a column of 32 bytes holds 16 bf16, 32 int8,
# 128 ternary or 256 binary weights. The LM head stays in bf16, as low-bit models keep it.

# %%
load = sketch_workload("gpt3-xl", prompt_tokens=1, tokens=128)
weights = ("bf16", "int8", "ternary", "binary")
by_weights = {name: replay(load, "pim-gpt-lowbit", weights=name).row for name in weights}
for name, row in by_weights.items():
    bits = format_named(name).bytes_for(2048, 2048) * 8 / 2048**2
    print(f"{name:8} {bits:5.2f} bits  {row.tokens_per_s:6.0f} tokens/s  {row.pj_per_token / 1e6:6.0f} µJ/token")

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for ax, unit in zip(axes, ("tokens/s", "µJ per token"), strict=True):
    points = {}
    for name, row in by_weights.items():
        bits = format_named(name).bytes_for(2048, 2048) * 8 / 2048**2
        points[name] = (bits, row.tokens_per_s if unit == "tokens/s" else row.pj_per_token / 1e6)
    scatter(points, ax)
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
caches = ("bf16", "int8", "int4")
contexts = (128, 2047)
times = {}
for kv in caches:
    row = replay(sketch_workload("gpt3-xl", 1, 2047), "pim-gpt-ternary", weights="ternary", kv=kv).row
    times[f"K and V in {kv}"] = [row.token_time_ns[context - 1] / 1000 for context in contexts]
fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
grouped([f"context {context}" for context in contexts], times, ax)
ax.set_ylabel("µs per token")
ax.set_title("Ternary weights: what the cache's format costs")
# %% [markdown]
# ## Quality on the other axis
#
# Trained with rounding where a row says so ("2-8" is ternary weights and 8-bit activations), rounded after training
# else. Below is the loss in nats per character.

# %%
folder = Path(nearbank.__file__).parents[2] / "docs" / "quality"
trained = {"fp-control": ("bf16", "bf16"), "2-8": ("ternary", "bf16"), "1-8": ("binary", "bf16")}
rounded = {"W8A8": ("int8", "bf16")}
losses = {}
for name in trained:
    file = folder / f"{name}.json"
    if file.exists():
        losses[name] = json.loads(file.read_text())["nats_per_character"]
for row in json.loads((folder / "post-training.json").read_text()):
    if row["name"] in rounded:
        losses[row["name"]] = row["nats_per_character"]

choices = {name: (trained | rounded)[name] for name in losses}
latency = {name: (by_weights[w].ns_per_token / 1000, losses[name]) for name, (w, kv) in choices.items()}
energy = {name: (by_weights[w].pj_per_token / 1e6, losses[name]) for name, (w, kv) in choices.items()}
for name in losses:
    print(f"{name:10} {losses[name]:.4f} nats  {latency[name][0]:7.1f} µs  {energy[name][0]:7.0f} µJ per token")
print("nothing is better in both loss and time than", ", ".join(pareto(latency)))

# %% [markdown]
# ## Answer
#
# Ternary weights make a token a bit over four times as fast and as lean as bf16 on the same memory; binary weights add
# less, because by then the bf16 LM head, row openings and the ASIC take their share. Each step down costs quality, so
# the choices form a front: eight bits are nearly free, and ternary weights bring most of the rest of the gain.

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for ax, points, unit in zip(axes, (latency, energy), ("µs per token", "µJ per token"), strict=True):
    scatter(points, ax, front=True)
    ax.set_xlabel(f"{unit}, GPT3-XL's shape")
    ax.set_ylabel("nats per character, small models")
fig.suptitle("Quality against latency and energy")

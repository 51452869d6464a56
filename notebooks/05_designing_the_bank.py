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
# # Designing the bank
#
# **What should a bank that multiplies ternary weights look like: how wide a unit, how long a row, how many channels,
# how large a buffer?**
#
# We take PIM-GPT's memory with ternary units beside its banks and play GPT3-XL's shape on 64 banks of other lanes, rows
# and channels: the study `docs/studies/ternary-bank.yaml`, which `nearbank study run` plays as well. Points are kept in
# `nearbank-out/study`, so that a second run computes nothing. Delays stay as they are: a longer row would open more
# slowly in silicon, which nobody has published for these chips.

# %%
from dataclasses import asdict
from pathlib import Path

from matplotlib import pyplot as plt

import nearbank
from nearbank.design.crossover import designs, pim_line, roofline_ns
from nearbank.design.power import power_row
from nearbank.plot import design as plots
from nearbank.plot.study import heat_map, scatter, sweep
from nearbank.study import Study, load_study, run

OUT = Path("nearbank-out/study")
study = load_study(Path(nearbank.__file__).parents[2] / "docs" / "studies" / "ternary-bank.yaml")
grid = run(study, OUT / study.name, parts=OUT / "parts")
OWN = {"lanes": 128, "columns": 64, "channels": 8}  # the machine's own values


def bank(**changed: int) -> dict:
    """The row of the grid with these values, and the machine's own elsewhere."""
    wanted = OWN | changed
    return next(row for row in grid.good if all(row[name] == value for name, value in wanted.items()))


# %% [markdown]
# ## One thing at a time
#
# Lanes of the ternary unit, columns of a row, channels (the capacity stays), and the global buffer.

# %%
buffers = Study(name="buffers", base=study.base, axes={"buffer": [1024, 2048, 4096, 8192]})
buffered = {row["buffer"]: row for row in run(buffers, OUT / buffers.name, parts=OUT / "parts").good}
changes = {
    axis: {str(value): bank(**{axis: value}) for value in study.choices[axis]}
    for axis in ("lanes", "columns", "channels")
} | {"buffer": {str(size): row for size, row in buffered.items()}}
titles = {
    "lanes": "lanes of the unit",
    "columns": "columns of 32 B in a row",
    "channels": "channels",
    "buffer": "bytes of the global buffer",
}
fig, axes = plt.subplots(1, 4, figsize=(14, 3.6), layout="constrained", sharey=True)
for ax, (axis, rows) in zip(axes, changes.items(), strict=True):
    now = str((OWN | {"buffer": 2048})[axis])
    sweep({value: row["time_ns_per_token"] / 1000 for value, row in rows.items()}, ax, now=now)
    ax.set_xlabel(titles[axis])
axes[0].set_ylabel("µs per token")
fig.suptitle("GPT3-XL's shape, ternary weights; dark: PIM-GPT's own value")
# %% [markdown]
# ## Two things at once
#
# The same on maps: rows and channels with units as wide as the column, and lanes and channels with PIM-GPT's rows.

# %%
fig, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
for ax, (x, label) in zip(axes, (("columns", "columns of 32 B in a row"), ("lanes", "lanes of the unit")), strict=True):
    xs, ys = ([str(value) for value in study.choices[axis]] for axis in (x, "channels"))
    cells = {(a, b): bank(**{x: int(a), "channels": int(b)})["time_ns_per_token"] / 1000 for a in xs for b in ys}
    heat_map(xs, ys, cells, ax, label="µs per token")
    ax.set_xlabel(label)
    ax.set_ylabel("channels")

# %% [markdown]
# ## What binds
#
# Idle cycles of the command bus, by the rule that held the next command.

# %%
for changed in ({}, {"lanes": 16}, {"columns": 256}):
    row = bank(**changed)
    longest = sorted(row["idle_by_reason"].items(), key=lambda item: -item[1])[:5]
    held = ", ".join(f"{rule} {share:.0%}" for rule, share in longest)
    name = ", ".join(f"{value} {axis}" for axis, value in changed.items()) or "the machine's own"
    print(f"{name:18} {row['time_ns_per_token'] / 1000:6.1f} µs  {held}")

# %% [markdown]
# ## Batches
#
# An open row can be multiplied with a vector of each sequence of a batch. A decode step of n sequences, beside GPUs at
# their best, which read the weights once for all of them.

# %%
counts = (1, 4, 16)
chosen = [design for design in designs() if design.name in ("pim-gpt bf16", "lowbit ternary")]
lines = [{"machine": d.name, **asdict(point)} for d in chosen for point in pim_line(d, counts)]
lines += [
    {"machine": f"{gpu} roofline, bf16", "sequences": n, "ns_per_token": roofline_ns(gpu, n, "bf16")}
    for gpu in ("t4", "a100", "h100")
    for n in counts
]
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
plots.crossover(lines, ax)
ax.set_title("GPT3-XL's shape, 128 tokens of context")

# %% [markdown]
# ## Power
#
# A row lasts some 90 ns. A window of tFAW beyond that keeps rows apart: less power, and less speed.

# %%
powers = [asdict(power_row("pim-gpt-ternary", "ternary-tensor", tfaw_ns=tfaw)) for tfaw in (12, 96, 192)]
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
plots.power(powers, "tfaw_ns", ax)
ax.set_title("A decode step of GPT3-XL's shape")

# %% [markdown]
# ## Together
#
# From PIM-GPT's bank in bf16 to wide units, longer rows and more channels: time beside energy. The points on the line
# are those that none of the 64 banks beats in both.

# %%
bf16 = run(
    Study(name="bf16", base={**study.base, "machine": "pim-gpt"}, axes={"weights": ["bf16"]}),
    OUT / "bf16",
    parts=OUT / "parts",
).good[0]
steps = {
    "PIM-GPT, bf16": bf16,
    "ternary, 16 lanes": bank(lanes=16),
    "128 lanes": bank(),
    "4 KiB rows": bank(columns=128),
    "16 channels": bank(columns=128, channels=16),
    "32 channels": bank(columns=128, channels=32),
}
for name, row in steps.items():
    print(f"{name:18} {row['time_ns_per_token'] / 1000:7.1f} µs  {row['energy_pj_per_token'] / 1e6:7.0f} µJ per token")
for row in grid.front("time_ns_per_token", "energy_pj_per_token"):
    print("nothing beats", ", ".join(f"{row[axis]} {axis}" for axis in study.choices))

# %% [markdown]
# ## Answer
#
# The unit should be as wide as the column, below which lanes decide everything; then more channels pay most, longer
# rows a little (they save openings, which take as long as before), and a larger buffer next to nothing. Such banks are
# for small batches: they save row openings alone, where a GPU reads the weights once for all.

# %%
fig, ax = plt.subplots(figsize=(10, 5), layout="constrained")
places = [(r["time_ns_per_token"] / 1000, r["energy_pj_per_token"] / 1e6) for r in grid.good]
ax.scatter(*zip(*places, strict=True), s=14, color="#BBBBBB", label="64 ternary banks")
best = sorted((r["time_ns_per_token"] / 1000, r["energy_pj_per_token"] / 1e6) for r in grid.front())
ax.step(*zip(*best, strict=True), where="post", color="#555555", linewidth=1)
scatter({n: (r["time_ns_per_token"] / 1000, r["energy_pj_per_token"] / 1e6) for n, r in steps.items()}, ax)
ax.set_xscale("log")
ax.set_yscale("log")
ax.legend(frameon=False, fontsize=8, loc="lower right")
ax.set_xlabel("µs per token")
ax.set_ylabel("µJ per token")
ax.set_title("From PIM-GPT's bank to a ternary one (GPT3-XL's shape); line: what nothing beats")

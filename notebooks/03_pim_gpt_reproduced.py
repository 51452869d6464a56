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
# # PIM-GPT reproduced
#
# **Do the published numbers of PIM-GPT come out when every DRAM command is played?**
#
# PIM-GPT multiplies beside 128 banks of GDDR6 and leaves the rest to a small ASIC. We run its eight models again, in
# bf16, and hold ours against what its authors report. Here every model generates 32 tokens only, so that the
# notebook is quick; `nearbank reproduce pim-gpt` runs the published 1,024, and `docs/reproduction.md` has them.

# %%
from dataclasses import replace
from pathlib import Path

from nearbank.reproduce import reproduce_pim_gpt
from nearbank.reproduce.causes import causes
from nearbank.reproduce.figures import figure
from nearbank.reproduce.pim_gpt import QUICK

out = Path("nearbank-out/reproduce")
options = replace(QUICK, sensitivity_models=("gpt2-small",))
results = reproduce_pim_gpt(options, out / "parts", lambda what, done, total: None)

# %% [markdown]
# ## Eight models
#
# Time and energy per token, and how often a column access found its row open.

# %%
for row in results.rows:
    print(
        f"{row['model']:12} {row['time_ns_per_token'] / 1e3:8.1f} µs  {row['energy_pj_per_token'] / 1e9:6.2f} mJ  "
        f"row hits {row['row_hit_rate']:.2%}  off-chip traffic divided by {row['off_chip_reduction']:.0f}"
    )
figure("latency", results)

# %% [markdown]
# ## Where the time goes
#
# Nearly all of it is matrix products; norms, activations and writing K and V are a few per cent.

# %%
figure("breakdown", results)

# %% [markdown]
# ## Faster than what?
#
# The chips' internal bandwidth is 12.8 times a T4's. Larger speedups hold against a T4 as an eager framework drives
# it, waiting for launches. Both are shown; the band is the published range.

# %%
figure("speedups", results)

# %% [markdown]
# ## Published beside ours

# %%
for claim in results.published:
    sure = "" if claim["verified"] else " (unverified)"
    print(f"{claim['quantity']:40} {claim['published'] + sure:28} ours {claim['ours']:18} {claim['verdict']}")
print()
for title, text in causes(results):
    print(f"{title}: {text}\n")

# %% [markdown]
# ## What it depends on
#
# One value of the machine at a time. Channels and lanes decide; the ASIC's clock matters to narrow models, the pins
# hardly. A part of each study lies in `nearbank-out/reproduce/parts`, so running this again computes nothing.

# %%
figure("sensitivities", results)

# %% [markdown]
# ## Answer
#
# Row hits, traffic and the share of time that is not multiplication come out close to the published values. How much
# faster and leaner PIM is depends on the baseline: some eight times a T4's roofline, and several tens of times a T4
# that waits for its host.

# %%
figure("speedups", results)

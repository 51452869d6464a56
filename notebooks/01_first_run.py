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
# # First run
#
# **What does a real low-bit language model cost on memory that computes?**
#
# The bundled model is a small GPT with ternary weights, trained on Shakespeare. We let it write, keep the trace of
# what it did, and replay that trace on PIM-GPT: GDDR6 memory with a multiply-accumulate unit beside every bank.

# %%
from pathlib import Path

from nearbank.models import Sampling, load_model, record
from nearbank.replay import replay
from nearbank.report import Report, Section
from nearbank.workload import sketch_workload, trace_workload

out = Path("nearbank-out")
out.mkdir(exist_ok=True)

# %% [markdown]
# ## Write
#
# Packed ternary weights, 8-bit activations, a bf16 KV cache; NumPy and Numba only.

# %%
model = load_model()
made = record(model, "ROMEO:", 64, out / "first_run.parquet", Sampling(temperature=0.8, seed=1))
print(made.text)
print(f"{made.tokens_per_s:.0f} tokens/s on this CPU")

# %% [markdown]
# ## Replay
#
# The same run, command by command, on the published machine with 16-bit weights, and on banks made for ternary ones.

# %%
load = trace_workload(out / "first_run.parquet")
rows = [
    replay(load, "pim-gpt", weights="bf16").row,
    replay(load, "pim-gpt", weights="ternary").row,
    replay(load, "pim-gpt-ternary", weights="ternary").row,
]
small = Section("The run above", tuple(rows))

# %% [markdown]
# ## A size where memory decides
#
# No weights are needed to ask what GPT3-XL's shape would cost: its trace is sketched.

# %%
xl = sketch_workload("gpt3-xl", prompt_tokens=1, tokens=32)
large = Section(
    "GPT3-XL's shape",
    tuple(replay(xl, machine, weights=w).row for machine, w in [("pim-gpt", "bf16"), ("pim-gpt-ternary", "ternary")]),
)
report = Report("First run", (small, large))
report.plot("time_breakdown", section=1)

# %%
for row in large.rows:
    print(f"{row.label:28} {row.ns_per_token / 1000:8.1f} µs per token, row hits {row.row_hit_rate:.2%}")

# %% [markdown]
# ## Answer
#
# At GPT3-XL's size a token costs about its weights' columns, so fewer bits are fewer columns, and ternary-native banks
# turn that into time. At the bundled model's size the fixed costs (norms, softmax, the pins) take over, and bits
# matter less.

# %%
report.plot("time_per_token", section=1)

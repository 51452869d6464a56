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
# # Anatomy of a trace
#
# **What is a decode step made of, and how does that change as the context grows?**
#
# A trace has one row per operation that a model ran. We look at one, count its bytes and multiply-accumulates by kind,
# and see which kind decides at which context.

# %%
from pathlib import Path

from matplotlib import pyplot as plt

from nearbank.anatomy import anatomy
from nearbank.models import load_model, record
from nearbank.plot.anatomy import bytes_by_context, bytes_by_format, reuse
from nearbank.trace import open_trace
from nearbank.workload import sketch_workload

# %% [markdown]
# ## One layer of one step
#
# The bundled model writes eight tokens. These are the operations of its first layer in the first decode step.

# %%
out = Path("nearbank-out")
out.mkdir(exist_ok=True)
record(load_model(), "ROMEO:", 8, out / "anatomy.parquet")
rows = open_trace(out / "anatomy.parquet").table().to_pylist()
for row in rows:
    if row["step"] == 1 and row["layer"] == 0:
        shape = "  ".join(f"{key}={row[key]}" for key in ("m", "n", "k", "heads", "context") if row[key] is not None)
        formats = ", ".join(row[key] for key in ("weights", "inputs", "kv") if row[key])
        print(f"{row['op']:10} {row['name']:10} {shape:32} {formats}")

# %% [markdown]
# ## A prompt reuses weights, decoding does not
#
# LLaMA-2 7B's shape: 512 prompt tokens, then 64 decoded ones, without any weights on this machine. A prompt multiplies
# each weight it reads with 512 tokens. A decode step uses each bf16 weight once: half a multiply-accumulate per byte.

# %%
chat = sketch_workload("llama-2-7b", prompt_tokens=512, tokens=64)
fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
reuse(anatomy(chat), ax)
ax.set_title("LLaMA-2 7B, bf16: arithmetic per byte")
# %% [markdown]
# ## Bits move the balance
#
# Bytes per decoded token up to a context of 4,096. With bf16 weights the cache is a thin layer on top. Ternary weights
# shrink what lies below, and the cache becomes the largest part long before the context is full.

# %%
long = sketch_workload("llama-2-7b", prompt_tokens=1, tokens=4095)
choices = [("bf16", "bf16"), ("ternary", "bf16"), ("ternary", "int4")]
fig, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
last = {}
for ax, (weights, kv) in zip(axes, choices, strict=True):
    shares = anatomy(long, weights=weights, kv=kv)
    bytes_by_context(shares, ax).get_legend().remove()
    ax.set_title(f"weights {weights}, K and V {kv}")
    last[weights, kv] = shares[-4:]
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
# %%
for (weights, kv), shares in last.items():
    total = sum(s.model_bytes + s.activation_bytes for s in shares)
    parts = "  ".join(f"{s.kind} {(s.model_bytes + s.activation_bytes) / total:.0%}" for s in shares)
    print(f"weights {weights:8} K and V {kv:5} {total / 1e9:6.2f} GB per token at context {shares[0].context}: {parts}")

# %% [markdown]
# ## Answer
#
# A decode step reads every weight once and the cache of every position once, so its time is its bytes. With 16-bit
# weights the blocks decide at any context; with ternary weights the cache of a long context does, and only then are
# fewer bits in K and V worth their trouble.

# %%
fig, ax = plt.subplots(figsize=(9, 2.8), layout="constrained")
bytes_by_format({f"weights {weights}, K and V {kv}": shares for (weights, kv), shares in last.items()}, ax)
ax.set_title("LLaMA-2 7B: what a token moves at a context of 4,095")

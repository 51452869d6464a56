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
# # Kernels and rooflines
#
# **How close do low-bit matrix products come to this machine's memory, and when do they stop waiting for it?**
#
# A product of one activation row reads every weight once, so its time is the time of reading. Fewer bits are less to
# read. With many rows the weights are used again and again, and arithmetic decides. We time both here, cold, beside
# the read bandwidth measured in the same run. `nearbank bench` has more cases.

# %%
from matplotlib import pyplot as plt

from nearbank.kernels.bench.bandwidth import read_gb_per_s
from nearbank.kernels.bench.cases import attend_case, matmul_case
from nearbank.kernels.bench.run import machine, row_of
from nearbank.kernels.bench.timing import time_us
from nearbank.kernels.cpu.paths import available_paths
from nearbank.kernels.threads import set_threads
from nearbank.plot.kernels import kernel_roofline
from nearbank.plot.study import sweep

set_threads(1)
limit = read_gb_per_s()
path = available_paths()[0]
print(f"{machine()['cpu']}, path {path}: one thread reads {limit:.1f} GB/s")


def measure(case):
    """One row, as `nearbank bench` makes it."""
    return row_of(case, limit, time_us(case.call, case.operands(), repeats=30))


# %% [markdown]
# ## One row of activations
#
# 4,096 × 4,096 weights, int8 activations.

# %%
formats = ("int8", "int4", "ternary", "binary")
gemv = [measure(matmul_case(fmt, 4096, 4096, 1, path, threads=1)) for fmt in formats]
for row in gemv:
    share = f"{row['fraction_of_limit']:.0%} of read"
    print(f"{row['format']:8} {row['time_us']:7.0f} µs  {row['gb_per_s']:5.1f} GB/s, {share}")
fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
sweep({row["format"]: row["time_us"] for row in gemv}, ax)
ax.set_ylabel("µs, cold")
ax.set_title("4,096 × 4,096 times one row")
# %% [markdown]
# ## More rows

# %%
gemm = [measure(matmul_case("ternary", 4096, 4096, m, path, threads=1, cold=m < 32)) for m in (2, 8, 32, 128)]
for row in gemm:
    print(f"M = {row['m']:3}  {row['time_us']:8.0f} µs  {2 * row['m'] * 4096**2 / row['time_us'] / 1e3:6.0f} Gop/s")

# %% [markdown]
# ## A quantised cache
#
# One query attends 8,192 positions of 8 heads. The cache is read once, so its bits are its time as well, until
# unpacking them costs more than reading them.

# %%
for fmt in ("fp32", "bf16", "int8", "int4"):
    row = measure(attend_case(fmt, 8192, threads=1))
    print(f"K and V in {fmt:5} {row['time_us']:8.0f} µs  {row['gb_per_s']:5.1f} GB/s")

# %% [markdown]
# ## Answer
#
# With one row every format stays near the slope: memory decides, and ternary weights take about a third of the time of
# int8. From about eight rows on, products leave the slope and arithmetic decides: low bits then save memory, not time.

# %%
fig, ax = plt.subplots(figsize=(8, 5), layout="constrained")
kernel_roofline([*gemv, *gemm], ax)
ax.set_title("Roofline of this machine, one thread")

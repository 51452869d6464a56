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
# # Write a kernel
#
# **How does a ternary product become a GPU kernel, and how do you know that it is right, without a GPU?**
#
# We write three kernels in Python, each with one idea more, and hold every one against the definition, bit for bit.
# They run in the simulator of Numba's CUDA compiler; with `NUMBA_ENABLE_CUDASIM=0` and a GPU the same cells run there.
# The package `numba-cuda` is needed: `pip install "nearbank[notebooks,cuda13]"`.

# %%
import os

os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")  # before Numba is imported

import numpy as np

from nearbank.kernels import PackedMatrix, linear_codes, prepare, quantise_rows
from nearbank.kernels.bench.bandwidth import read_gb_per_s
from nearbank.kernels.bench.cases import matmul_case
from nearbank.kernels.bench.run import row_of
from nearbank.kernels.bench.timing import time_us
from nearbank.kernels.cpu.paths import available_paths
from nearbank.kernels.ladder import GEMV
from nearbank.kernels.numba_cuda.device import add, cuda, f32, fold, i32, mul
from nearbank.kernels.threads import set_threads

# %% [markdown]
# ## The bytes, and the definition
#
# A weight −1, 0 or 1 is stored as code 0, 1 or 2, four to a byte, low bits first. The activations are int8 with one
# scale per token. The sum is an integer, so any order of adding gives the same; then come two float multiplications,
# in an order that the definition fixes.

# %%
rng = np.random.default_rng(0)
ROWS, COLUMNS = 6, 64
packed = PackedMatrix.quantise(rng.standard_normal((ROWS, COLUMNS), dtype=np.float32), "ternary")
x = quantise_rows(rng.standard_normal((1, COLUMNS), dtype=np.float32))
expected = linear_codes(x.codes, x.scales, prepare(packed, "numpy"))[0]
byte = int(packed.packed[0, 0])
print(f"row 0 begins with {byte:#010b}: weights {[(byte >> 2 * i & 3) - 1 for i in range(4)]}")
print(f"y = {expected}")

# %% [markdown]
# ## First: one thread per row
#
# `cuda.grid(1)` is the thread's number. The last block may have threads without a row. `mul` and `add` are Numba's
# `fmul_rn` and `fadd_rn`: a compiler that fuses a · b + c into one instruction would round once where the definition
# rounds twice.


# %%
@cuda.jit
def thread_per_row(packed, scales, codes, x_scale, y):
    """Each thread goes through a row alone, byte by byte."""
    n = cuda.grid(1)
    if n < y.shape[0]:
        total = i32(0)
        for b in range(packed.shape[1]):
            for i in range(4):
                total += i32(codes[4 * b + i]) * (((i32(packed[n, b]) >> (2 * i)) & 3) - 1)
        y[n] = add(f32(0), mul(f32(total), mul(x_scale, scales[n, 0])))


def check(kernel, blocks, threads, codes=x.codes[0]):
    """Run the kernel into an output full of NaN: whatever it leaves out shows."""
    y = cuda.to_device(np.full(ROWS, np.nan, np.float32))
    given = (cuda.to_device(part) for part in (packed.packed, packed.scales, codes))
    kernel[blocks, threads](*given, x.scales[0], y)
    np.testing.assert_array_equal(y.copy_to_host(), expected)
    print(f"{kernel.__name__}: all {ROWS} results have the bits of the definition")


check(thread_per_row, blocks=2, threads=4)

# %% [markdown]
# ## Why it is slow
#
# A warp is 32 threads that load together. The memory hands out sectors of 32 bytes, and a load costs as many as its
# threads touch. Neighbouring threads are a whole row apart here. How many sectors does the first load of a warp touch,
# and how many if neighbouring threads read neighbouring bytes?

# %%
WIDE = 4096 // 4  # bytes of a row of 4,096 ternary weights
lanes = np.arange(32)
for name, addresses in (("a row per thread", lanes * WIDE), ("a row per warp", lanes)):
    sectors = len(np.unique(addresses // 32))
    print(f"{name:16} {sectors:2} sectors = {32 * sectors:4} bytes fetched to use 32")

# %% [markdown]
# ## Second: one block per row
#
# Thread t takes bytes t, t + threads, and so on. The partial sums meet in shared memory, in a tree: half as many
# threads in every round. `fold` waits for all threads before each round; without that the result is sometimes right.

# %%
THREADS = 4  # 128 on a GPU; every thread of the simulator is one of Python's


@cuda.jit
def block_per_row(packed, scales, codes, x_scale, y):
    """The threads of a block share a row."""
    n, t = cuda.blockIdx.x, cuda.threadIdx.x
    sums = cuda.shared.array(THREADS, np.int32)
    total = i32(0)
    for b in range(t, packed.shape[1], THREADS):
        for i in range(4):
            total += i32(codes[4 * b + i]) * (((i32(packed[n, b]) >> (2 * i)) & 3) - 1)
    sums[t] = total
    fold(sums, THREADS)
    if t == 0:
        y[n] = add(f32(0), mul(f32(sums[0]), mul(x_scale, scales[n, 0])))


check(block_per_row, blocks=ROWS, threads=THREADS)

# %% [markdown]
# ## Third: no subtraction in the loop
#
# Σ (code − 1) · x = Σ code · x − Σ x, and Σ x is the same for every row: `quantise_rows` has counted it already. On a
# GPU this is what lets one mask make four operands of a word, and `dp4a` or a matrix instruction multiply them.


# %%
@cuda.jit
def codes_as_they_are(packed, scales, codes, x_scale, y):
    """The same with unsigned codes; the last entry of `codes` is the sum of all others."""
    n, t = cuda.blockIdx.x, cuda.threadIdx.x
    sums = cuda.shared.array(THREADS, np.int32)
    total = i32(0)
    for b in range(t, packed.shape[1], THREADS):
        byte = i32(packed[n, b])
        for i in range(4):
            total += i32(codes[4 * b + i]) * ((byte >> (2 * i)) & 3)
    sums[t] = total
    fold(sums, THREADS)
    if t == 0:
        exact = sums[0] - i32(codes[4 * packed.shape[1]])
        y[n] = add(f32(0), mul(f32(exact), mul(x_scale, scales[n, 0])))


with_sum = np.append(x.codes[0].astype(np.int32), x.sums[0])
check(codes_as_they_are, blocks=ROWS, threads=THREADS, codes=with_sum)

# %% [markdown]
# ## What is left to do
#
# The kernels in use go on from here. Each rung of the ladder is a kernel that runs, in `kernels/ladder/`:

# %%
for number, rung in enumerate(GEMV):
    print(f"{number}  {rung.name:20} {rung.idea}")

# %% [markdown]
# How far a kernel can get is known before it is written: every weight must come from memory once. The same product on
# this CPU, beside what one thread reads in the same run:

# %%
set_threads(1)
limit = read_gb_per_s()
for path in available_paths():
    case = matmul_case("ternary", 4096, 4096, 1, path, threads=1)
    row = row_of(case, limit, time_us(case.call, case.operands(), repeats=30))
    print(f"{path:10} {row['time_us']:6.0f} µs, {row['fraction_of_limit']:.0%} of {limit:.1f} GB/s")

# %% [markdown]
# ## Answer
#
# A product is right when it has the bits of the definition for every shape, and that needs no GPU: integers add in any
# order, and the few float operations have an order written down. The simulator, or for CUDA C++ the emulation of
# `kernels/cuda/emulation.py`, runs the same source with an output full of NaN.
#
# It is fast when neighbouring threads read neighbouring bytes, when nothing is computed twice, and when enough loads
# are on their way. The first two can be counted, as here; the last needs a GPU: `python benchmarks/gpu.py` measures it.
#
# To go on: `kernels/numba_cuda/product.py` has this kernel for every format, `cache.py` beside it the attention.

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
# We take PIM-GPT's memory with ternary units beside its banks, change one thing at a time, and play GPT3-XL's shape on
# each. Then we change what paid, together. Delays stay as they are: a longer row would open more slowly in silicon,
# which nobody has published for these chips.

# %%
from dataclasses import asdict

from matplotlib import pyplot as plt

from nearbank.design.crossover import designs, pim_line, roofline_ns
from nearbank.design.power import power_row
from nearbank.plot import design as plots
from nearbank.plot.study import scatter, sweep
from nearbank.replay import replay
from nearbank.report.row import MachineRow
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.variant import what_if
from nearbank.workload import sketch_workload

base = load_machine("pim-gpt-ternary")
organization = base.organization
load = sketch_workload("gpt3-xl", prompt_tokens=1, tokens=32)


def cost(machine: Machine) -> MachineRow:
    """What the run costs with ternary weights."""
    return replay(load, machine, weights="ternary").row


# %% [markdown]
# ## One thing at a time
#
# Lanes of the ternary unit, columns of a row, channels (the capacity stays), and the global buffer.


# %%
def lanes(count: int) -> Machine:
    return what_if(base, f"{count} lanes", {"mac_unit.formats.ternary.unit.lanes": count})


def row(columns: int) -> Machine:
    rows = organization.rows * organization.columns // columns
    return what_if(base, f"{columns} columns", {"organization.columns": columns, "organization.rows": rows})


def channels(count: int) -> Machine:
    rows = organization.rows * organization.channels // count
    return what_if(base, f"{count} channels", {"organization.channels": count, "organization.rows": rows})


def buffer(size: str) -> Machine:
    return what_if(base, f"{size} buffer", {"global_buffer.size": size})


studies = {
    "lanes of the unit": (lanes, (16, 32, 64, 128), 128),
    "columns of 32 B in a row": (row, (32, 64, 128, 256), 64),
    "channels": (channels, (4, 8, 16, 32), 8),
    "global buffer": (buffer, ("1 KiB", "2 KiB", "4 KiB", "8 KiB"), "2 KiB"),
}
results = {
    title: {str(value): cost(change(value)) for value in values} for title, (change, values, _) in studies.items()
}

# %%
fig, axes = plt.subplots(1, 4, figsize=(14, 3.6), layout="constrained", sharey=True)
for ax, (title, (_, _, now)) in zip(axes, studies.items(), strict=True):
    sweep({value: made.ns_per_token / 1000 for value, made in results[title].items()}, ax, now=str(now))
    ax.set_xlabel(title)
axes[0].set_ylabel("µs per token")
fig.suptitle("GPT3-XL's shape, ternary weights; dark: PIM-GPT's own value")
# %% [markdown]
# ## What binds
#
# Idle cycles of the command bus, by the rule that held the next command.

# %%
for machine in (base, lanes(16), row(256)):
    stalls = replay(load, machine, weights="ternary")
    total = sum(c.cycles * len(c.channels) for c in stalls.result.channels)
    held = ", ".join(f"{rule} {count / total:.0%}" for rule, count in stalls.result.stalls().most_common(5))
    print(f"{machine.name:28} {stalls.row.ns_per_token / 1000:6.1f} µs  {held}")

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
# Twice the row, twice the buffer, with and without twice the channels, beside what each costs in energy.

# %%
long_rows = {"organization.columns": 128, "organization.rows": organization.rows // 2}
together = {
    "PIM-GPT, bf16": replay(load, "pim-gpt").row,
    "16 lanes": results["lanes of the unit"]["16"],
    "ternary-native": cost(base),
    "and rows of 4 KiB": cost(what_if(base, "long rows", long_rows)),
    "and 4 KiB buffer": cost(what_if(base, "long rows and buffer", {**long_rows, "global_buffer.size": "4 KiB"})),
    "and 16 channels": cost(
        what_if(
            base,
            "all",
            {
                "organization.columns": 128,
                "organization.rows": organization.rows // 4,
                "organization.channels": 16,
                "global_buffer.size": "4 KiB",
            },
        )
    ),
}
for name, made in together.items():
    print(f"{name:20} {made.ns_per_token / 1000:7.1f} µs  {made.pj_per_token / 1e6:7.0f} µJ per token")

# %% [markdown]
# ## Answer
#
# The unit should be as wide as the column: below that, lanes decide everything. After that a token waits for rows,
# which are read in an eighth of the clocks but opened as slowly as before: longer rows help a little, more channels
# most, and a larger buffer next to nothing. Banks are for small batches: they save row openings alone, where a GPU
# reads the weights once for all.

# %%
fig, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
shown = [name for name in together if "buffer" not in name]  # it lies on its neighbour
scatter({n: (together[n].ns_per_token / 1000, together[n].pj_per_token / 1e6) for n in shown}, ax)
ax.set_xscale("log")
ax.set_yscale("log")
ax.set_xlabel("µs per token")
ax.set_ylabel("µJ per token")
ax.set_title("From PIM-GPT's bank to a ternary one, GPT3-XL's shape")

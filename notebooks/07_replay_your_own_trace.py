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
# # Replaying your own trace
#
# **I have a run of my own: what would it cost on memory that computes?**
#
# There are three ways in: a profile of a run in your own stack, a `config.json` and nothing else, or a run recorded
# here. All three end in the same file, and every machine reads that file. The profile needs `nearbank[models]` (torch).

# %%
import json
from pathlib import Path

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from nearbank.models import load_model, record
from nearbank.models.kineto import import_kineto
from nearbank.replay import replay
from nearbank.report import Report, Section
from nearbank.workload import sketch_workload, trace_workload

out = Path("nearbank-out")
out.mkdir(exist_ok=True)

# %% [markdown]
# ## A torch profile
#
# Any model that torch runs. Here: GPT-NeoX as transformers has it, small and with random weights, which cost what
# trained ones cost. Record shapes, export, import. Calls that no rule knows are named, never dropped.

# %%
config = GPTNeoXConfig(
    vocab_size=4096, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048
)
theirs = GPTNeoXForCausalLM(config).eval()
prompt = torch.randint(0, config.vocab_size, (1, 16))
with torch.no_grad(), torch.profiler.profile(record_shapes=True) as profiler:
    theirs.generate(prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)
profiler.export_chrome_trace(str(out / "profile.json"))

imported = import_kineto(out / "profile.json", out / "imported.parquet", name="my-gpt-neox")
print(f"{imported.passes} passes after a prompt of {imported.prompt_tokens} tokens")
for name, (count, time_ns) in sorted(imported.unknown.items(), key=lambda item: -item[1][1])[:5]:
    print(f"not priced: {name:24} {count:5} calls, {time_ns / 1e6:.2f} ms")

# %% [markdown]
# ## A configuration
#
# No weights, no torch, no download: the operations follow from the shape.

# %%
(out / "config.json").write_text(
    json.dumps(
        {
            "model_type": "llama",
            "vocab_size": 32000,
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
        }
    )
)
sketched = sketch_workload(str(out / "config.json"), prompt_tokens=16, tokens=8)

# %% [markdown]
# ## A recorded run
#
# The bundled ternary model, with the time that each operation took on this CPU.

# %%
made = record(load_model(), "ROMEO:", 8, out / "recorded.parquet")
print(f"{made.tokens_per_s:.0f} tokens/s on this CPU")

# %% [markdown]
# ## All three on the same machines
#
# `weights` and `kv` re-ask the question at another precision, without running the model again: the profile's fp32 has
# no MAC unit on these machines, and asking for it is refused with the formats that there are.

# %%
loads = {
    "profile": trace_workload(out / "imported.parquet"),
    "config.json": sketched,
    "recorded": trace_workload(out / "recorded.parquet"),
}
choices = [("pim-gpt", "bf16"), ("pim-gpt-ternary", "ternary")]
sections = tuple(
    Section(
        f"{name}: {load.model.name}", tuple(replay(load, machine, weights=w, kv="bf16").row for machine, w in choices)
    )
    for name, load in loads.items()
)
for section in sections:
    for row in section.rows:
        print(f"{section.title:32} {row.label:28} {row.ns_per_token / 1000:8.1f} µs per token")
report = Report("My own runs", sections)

# %% [markdown]
# The same from a shell:
#
# ```console
# $ nearbank import profile.json --out imported.parquet
# $ nearbank replay imported.parquet --machine pim-gpt --weights ternary --kv bf16
# $ nearbank replay --model config.json --prompt 16 --tokens 8 --machine pim-gpt
# ```

# %% [markdown]
# ## Answer
#
# Whatever you have, a profile, a configuration or a checkpoint, is one call away from a trace, and a trace from every
# machine and precision. What the import could not read is listed with its time, so you know what the figure leaves out.

# %%
report.plot("time_breakdown", section=0)

"""Published systems run again, their numbers beside ours. So far: PIM-GPT.

results = reproduce_pim_gpt(options, folder, stage)   # resumes where an earlier run in `folder` stopped
print(results.rows[0]["speedup_gpu_eager"])
"""

from nearbank.reproduce.pim_gpt import Options, reproduce_pim_gpt
from nearbank.reproduce.results import Results

__all__ = ["Options", "Results", "reproduce_pim_gpt"]

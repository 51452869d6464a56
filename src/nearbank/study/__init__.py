"""Studies: one question over many machines, models, formats and contexts, played point by point and kept.

from nearbank.study import Study, run

study = Study(name="bank", base={"model": "gpt3-xl", "machine": "pim-gpt-ternary", "weights": "ternary"},
              axes={"lanes": [16, 64, 128], "channels": [8, 16]})
results = run(study, "nearbank-out/study/bank")     # resumes where an earlier run stopped
results.table, results.front()                      # an Arrow table; the rows that nothing beats
"""

from nearbank.study.results import StudyResults, load_results
from nearbank.study.runner import run
from nearbank.study.spec import Quality, Search, Study, load_study

__all__ = ["Quality", "Search", "Study", "StudyResults", "load_results", "load_study", "run"]

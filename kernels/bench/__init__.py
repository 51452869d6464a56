"""Times of the kernels on this machine, each beside the memory bandwidth measured in the same run.

`run` is what `nearbank bench` prints. Every time is that of one call from Python, the 5th percentile of
many: other processes only ever add. A cold case rotates over more memory than the caches hold.
"""

from nearbank.kernels.bench.run import run

__all__ = ["run"]

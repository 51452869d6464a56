"""One thread of the numerical libraries per test process: matrices here are tiny, and threads that wait, spin."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch are imported

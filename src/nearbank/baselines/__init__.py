"""GPUs and CPUs to compare with, modelled from constants that are shown."""

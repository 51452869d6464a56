"""Low-bit language models on memory that computes."""

__version__ = "0.1.0"

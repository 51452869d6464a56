"""Low-bit matrix multiplication and the KV cache, one module per backend beside the NumPy definition."""

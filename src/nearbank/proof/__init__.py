"""The proof of a mapping by execution: a model writes through its mapped programs, beside the kernels.

Joins `nearbank.models` and `nearbank.mapping`, which know nothing of each other.
"""

from nearbank.proof.bridge import mapped_weights, rounded_model
from nearbank.proof.prove import Approximation, Proof, approximation_error, prove

__all__ = ["Approximation", "Proof", "approximation_error", "mapped_weights", "prove", "rounded_model"]

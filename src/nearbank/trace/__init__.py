"""What a model did, one row per operation, as a Parquet file with the model's description in its metadata."""

from nearbank.trace.header import Matrix, ModelDescription, TraceHeader
from nearbank.trace.operation import Block, Operation, Step, fold_layers, recast
from nearbank.trace.reader import Trace, open_trace
from nearbank.trace.writer import TraceWriter

__all__ = [
    "Block",
    "Matrix",
    "ModelDescription",
    "Operation",
    "Step",
    "Trace",
    "TraceHeader",
    "TraceWriter",
    "fold_layers",
    "open_trace",
    "recast",
]

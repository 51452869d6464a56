"""Language models: architectures, loading, quantisers, training, running with a trace.

    model = load_model("shakespeare-ternary")
    made = generate(model, "ROMEO:", 64, Sampling(temperature=0.8, seed=1))
    made = record(model, "ROMEO:", 64, Path("run.parquet"))           # the same, and its trace
    steps = sketch(config_named("gpt3-xl").shape, 1, 64)              # a trace without weights

Training (`nearbank.models.training`) needs torch; nothing here does.
"""

from nearbank.models.generate import Generation, generate
from nearbank.models.load import load_model
from nearbank.models.model import Model
from nearbank.models.record import record
from nearbank.models.sampling import Sampling
from nearbank.models.shape import Shape
from nearbank.models.sketch import describe, sketch

__all__ = ["Generation", "Model", "Sampling", "Shape", "describe", "generate", "load_model", "record", "sketch"]

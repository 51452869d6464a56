"""A small random model of the bundled architecture, for tests that need no trained weights."""

import numpy as np

from nearbank.models.gpt import load_gpt
from nearbank.models.model import Model
from nearbank.models.shape import Shape, gpt_shape
from nearbank.models.tensors import Precision, Tensors
from nearbank.models.tokenizer import CharTokenizer

VOCABULARY = "\n abcdefghijklmnopqrstuvwxyz.,!?"
SHAPE = gpt_shape("random", layers=3, width=32, heads=4, vocabulary=len(VOCABULARY), context=64)


def random_tensors(shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    """Float weights by the names of a checkpoint, large enough for logits to differ clearly."""
    random = np.random.default_rng(seed)
    sizes = {"wte.weight": (shape.vocabulary, shape.width), "wpe.weight": (shape.context, shape.width)}
    for i in range(shape.layers):
        sizes |= {f"h.{i}.{name}.weight": size for name, size in block_sizes(shape).items()}
    tensors = {name: random.normal(0, 0.5, size).astype(np.float32) for name, size in sizes.items()}
    norms = ["ln_f", *(f"h.{i}.{name}" for i in range(shape.layers) for name in ("ln_1", "ln_2"))]
    for name in norms:
        tensors[f"{name}.weight"] = random.normal(1, 0.1, shape.width).astype(np.float32)
        tensors[f"{name}.bias"] = random.normal(0, 0.1, shape.width).astype(np.float32)
    return tensors


def block_sizes(shape: Shape) -> dict[str, tuple[int, int]]:
    width, hidden = shape.width, shape.hidden
    return {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }


def random_model(backend: str = "numpy", weights: str = "ternary", kv: str = "bf16", seed: int = 0) -> Model:
    precision = Precision(weights)
    network = load_gpt(SHAPE, Tensors(random_tensors(SHAPE, seed), backend, precision))
    return Model(network, CharTokenizer(VOCABULARY), weights, precision.activations, kv, backend)

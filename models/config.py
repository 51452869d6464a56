"""Decoders by description: sizes, formats and counts, with or without weights.

`CONFIGS` holds the eight GPT models that PIM-GPT was evaluated with, without weights. A checkpoint's header makes a
`ModelConfig` too. The sizes themselves are a `nearbank.models.shape.Shape`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nearbank.errors import NearbankError
from nearbank.models.shape import Shape, gpt_shape

GPT_VOCABULARY = 50257
PACKED_WEIGHTS = ("ternary", "binary")
LEARNED = ("elastic2", "elastic1")  # kinds of activation rounding with a learned scale


@dataclass(frozen=True)
class Matrix:
    """A weight matrix [outputs, inputs] by its tensor name."""

    name: str
    outputs: int
    inputs: int

    @property
    def values(self) -> int:
        return self.outputs * self.inputs


@dataclass(frozen=True)
class ModelConfig:
    """A GPT-shaped decoder and how its numbers are stored.

    weights: format of the four block matrices. activations, attention: how their inputs are rounded, and queries, keys,
    values and attention probabilities: kinds of `nearbank.models.rounding`. variant: the quantisers' form ("paper" or
    "reference"), None where weights are not ternary or binary. tied_head: the LM head is `wte`.
    """

    shape: Shape
    tied_head: bool = True
    weights: str = "fp16"
    activations: str = "fp16"
    variant: str | None = None
    attention: str = "fp32"

    @property
    def name(self) -> str:
        return self.shape.name

    def matrix_shapes(self) -> list[Matrix]:
        """Every matrix that a decoded token is multiplied with, in order of use, the LM head last."""
        return [*self.all_block_matrices(), Matrix("head", self.shape.vocabulary, self.shape.width)]

    def block_matrices(self, layer: int) -> list[Matrix]:
        """The four matrices of a block: [q + k + v, D], [D, q], [hidden, D], [D, hidden]."""
        s, prefix = self.shape, f"h.{layer}"
        return [
            Matrix(f"{prefix}.attn.qkv", s.q_width + 2 * s.kv_width, s.width),
            Matrix(f"{prefix}.attn.proj", s.width, s.q_width),
            Matrix(f"{prefix}.mlp.fc1", s.hidden, s.width),
            Matrix(f"{prefix}.mlp.fc2", s.width, s.hidden),
        ]

    def vector_shapes(self) -> dict[str, tuple[int, ...]]:
        """Embeddings and LayerNorms by tensor name; the head too where it is not tied."""
        s = self.shape
        norms = [f"h.{layer}.{norm}" for layer in range(s.layers) for norm in ("ln_1", "ln_2")] + ["ln_f"]
        vectors = {f"{norm}.{part}": (s.width,) for norm in norms for part in ("weight", "bias")}
        head = {} if self.tied_head else {"head": (s.vocabulary, s.width)}
        return {"wte": (s.vocabulary, s.width), "wpe": (s.context, s.width), **vectors, **head}

    def all_block_matrices(self) -> list[Matrix]:
        """The matrices of all blocks, in order of use."""
        return [matrix for layer in range(self.shape.layers) for matrix in self.block_matrices(layer)]

    @property
    def is_packed(self) -> bool:
        """True where a checkpoint of ours holds codes and scales, false where it holds float32 matrices."""
        return self.weights in PACKED_WEIGHTS

    def floats(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """dtype and shape of the float tensors of a checkpoint of ours, by name.

        Tables beside packed matrices are float16; a full-precision checkpoint is float32 throughout.
        """
        table = "float16" if self.is_packed else "float32"
        floats = {n: (table if len(dims) == 2 else "float32", dims) for n, dims in self.vector_shapes().items()}
        whole = [] if self.is_packed else self.all_block_matrices()
        return floats | {f"{matrix.name}.weight": ("float32", (matrix.outputs, matrix.inputs)) for matrix in whole}

    def alphas(self) -> list[str]:
        """Names of the learned activation scales: of the block matrices' inputs, then of q, k, v and probabilities."""
        inputs = self.all_block_matrices() if self.activations in LEARNED else []
        layers = range(self.shape.layers) if self.attention in LEARNED else ()
        return [f"{matrix.name}.alpha" for matrix in inputs] + [
            f"h.{layer}.attn.{part}.alpha" for layer in layers for part in "qkvp"
        ]

    def block_parameters(self) -> int:
        """Values in the block matrices: the "non-embedding parameters" of the literature, without biases."""
        return sum(m.values for layer in range(self.shape.layers) for m in self.block_matrices(layer))

    def parameters(self) -> int:
        """All stored values: block matrices, embeddings, norms, and the head if it is not tied."""
        vectors = 0
        for dims in self.vector_shapes().values():
            vectors += dims[0] * (dims[1] if len(dims) == 2 else 1)
        return self.block_parameters() + vectors

    def macs_per_token(self, attended: int) -> int:
        """Multiply-accumulates of one decoded token that attends `attended` positions, LM head included."""
        if attended < 1:
            raise NearbankError(f"model {self.name}: attended context is {attended}; expected 1 or more")
        weights = sum(matrix.values for matrix in self.matrix_shapes())
        per_layer = (
            2 * self.shape.q_width * min(attended, window or attended)
            for window in map(self.shape.window, range(self.shape.layers))
        )
        return weights + sum(per_layer)


def _gpt(name: str, layers: int, width: int, heads: int, context: int) -> ModelConfig:
    return ModelConfig(gpt_shape(name, layers, width, heads, GPT_VOCABULARY, context))


# Layers and widths: PIM-GPT (arXiv 2310.09385), table of models. Heads and contexts: the GPT-2 and GPT-3 papers,
# but for gpt3-xl, where the GPT-3 paper's 24 heads × 128 contradict its width of 2048: 16 heads × 128 here.
# fmt: off
_ALL = (
    _gpt("gpt2-small",  12,  768, 12, 1024),
    _gpt("gpt2-medium", 24, 1024, 16, 1024),
    _gpt("gpt2-large",  36, 1280, 20, 1024),
    _gpt("gpt2-xl",     48, 1600, 25, 1024),
    _gpt("gpt3-small",  12,  768, 12, 2048),
    _gpt("gpt3-medium", 24, 1024, 16, 2048),
    _gpt("gpt3-large",  24, 1536, 16, 2048),
    _gpt("gpt3-xl",     24, 2048, 16, 2048),
)
# fmt: on
CONFIGS: Mapping[str, ModelConfig] = MappingProxyType({config.name: config for config in _ALL})


def config_named(name: str) -> ModelConfig:
    """The configuration called `name`. Raises NearbankError with the known names."""
    if name not in CONFIGS:
        raise NearbankError(f"unknown model '{name}'; known: {', '.join(CONFIGS)}")
    return CONFIGS[name]

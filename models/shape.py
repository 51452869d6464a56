"""The shape of a model: sizes and structure without a single weight.

Sketches, descriptions and checks read it; `nearbank.models.config` (bundled checkpoints) and
`nearbank.models.hf` (Hugging Face configurations) make it.
"""

from __future__ import annotations

from dataclasses import dataclass

from nearbank.errors import NearbankError


@dataclass(frozen=True)
class EncoderShape:
    """The encoder before a decoder; width, vocabulary and context are the decoder's."""

    layers: int
    heads: int
    hidden: int


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, and of the encoder whose output it attends where there is one.

    `family` chooses the operations of a layer (`nearbank.models.sketch.LAYERS`).

    width: the residual stream; hidden: inside the MLP; windows: attended positions per layer, repeated over the
    layers, None for all positions; softcap: of attention scores; embedding: width of the token embedding where it is
    projected to the residual stream's.
    """

    name: str
    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    context: int
    windows: tuple[int | None, ...] = (None,)
    softcap: float | None = None
    activation: str = "gelu"
    embedding: int | None = None
    encoder: EncoderShape | None = None

    def __post_init__(self) -> None:
        for field in ("layers", "width", "heads", "kv_heads", "head_dim", "hidden", "vocabulary", "context"):
            value = getattr(self, field)
            if value < 1:
                raise NearbankError(f"model {self.name}: {field} is {value}; expected 1 or more")
        if self.heads % self.kv_heads:
            raise NearbankError(
                f"model {self.name}: {self.heads} heads cannot share {self.kv_heads} KV heads; expected a divisor"
            )
        self._check_encoder()

    def _check_encoder(self) -> None:
        for field, value in vars(self.encoder).items() if self.encoder else ():
            if value < 1:
                raise NearbankError(f"model {self.name}: the encoder's {field} is {value}; expected 1 or more")
        if self.encoder and self.width % self.encoder.heads:
            raise NearbankError(
                f"model {self.name}: width {self.width} is not a multiple of the encoder's {self.encoder.heads} heads"
            )

    @property
    def first_layer(self) -> int:
        """The decoder's first layer as traces count them: the encoder's layers come before it."""
        return self.encoder.layers if self.encoder else 0

    @property
    def kv_width(self) -> int:
        """Values of K (and of V) that one token adds to one layer's cache."""
        return self.kv_heads * self.head_dim

    @property
    def q_width(self) -> int:
        """Values of all query heads of one token."""
        return self.heads * self.head_dim

    def window(self, layer: int) -> int | None:
        """Positions a query of `layer` attends at most, None for all."""
        return self.windows[layer % len(self.windows)]


def gpt_shape(name: str, layers: int, width: int, heads: int, vocabulary: int, context: int) -> Shape:
    """A GPT-2 shaped model: as many KV heads as heads, an MLP four times as wide."""
    if heads < 1 or width % heads:
        raise NearbankError(f"model {name}: width {width} is not a multiple of its {heads} heads")
    return Shape(name, "gpt", layers, width, heads, heads, width // heads, 4 * width, vocabulary, context)

"""What a trace says about itself, kept in the Parquet metadata: schema, model, run."""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nearbank.errors import NearbankError

TRACE_SCHEMA: Final = "nearbank.trace"
TRACE_VERSION: Final = 2  # 2: matrices of some layers only, encoders, beams, shared positions


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Matrix(Strict):
    """A weight matrix [n, k]: one in every layer (per_layer), one in each of `layers`, or one outside the layers."""

    name: str
    n: int = Field(gt=0)
    k: int = Field(gt=0)
    per_layer: bool
    layers: tuple[int, ...] | None = None


class ModelDescription(Strict):
    """The shape of the model that ran: enough to place every tensor in a memory.

    The first `encoder_layers` of the layers are an encoder's: they run once, over the source. The others attend a
    growing cache, and in an encoder-decoder also K and V of the source.
    """

    name: str
    layers: int = Field(gt=0)
    encoder_layers: int = Field(default=0, ge=0)
    width: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    hidden: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    context: int = Field(gt=0)
    matrices: tuple[Matrix, ...]

    def weights(self) -> int:
        """Values in all matrices."""
        return sum(x.n * x.k * self.copies(x) for x in self.matrices)

    def copies(self, matrix: Matrix) -> int:
        """How many layers have one of these; 1 outside the layers."""
        if matrix.layers is not None:
            return len(matrix.layers)
        return self.layers if matrix.per_layer else 1

    @property
    def decoder_layers(self) -> int:
        """Layers with a cache that grows by a token a step."""
        return self.layers - self.encoder_layers

    @model_validator(mode="after")
    def _layers_exist(self) -> "ModelDescription":
        if self.encoder_layers >= self.layers:
            raise ValueError(f"{self.encoder_layers} encoder layers of {self.layers}; expected some of a decoder")
        for matrix in self.matrices:
            inside = matrix.layers is None or (matrix.per_layer and set(matrix.layers) <= set(range(self.layers)))
            if not inside or matrix.layers == ():
                raise ValueError(f"matrix {matrix.name} lies in layers that the model does not have")
        return self


class TraceHeader(Strict):
    """`origin` is "recorded" (a real run) or "sketched" (from the shape alone); times exist only when recorded.

    prompt_tokens: what the decoder begins with; source_tokens: what an encoder read. beams: sequences per prompt.
    """

    trace_schema: Literal["nearbank.trace"] = TRACE_SCHEMA
    version: Literal[1, 2] = TRACE_VERSION
    model: ModelDescription
    origin: Literal["recorded", "sketched"]
    prompt_tokens: int = Field(gt=0)
    new_tokens: int = Field(ge=0)
    source_tokens: int | None = Field(default=None, gt=0)
    beams: int = Field(default=1, gt=0)
    weights: str
    kv: str
    device: str | None = None
    backend: str | None = None
    threads: int | None = None
    seed: int | None = None
    nearbank_version: str


def parse_header(text: bytes | None, where: str) -> TraceHeader:
    """The header in a file's metadata; `NearbankError` when it is foreign or of another version."""
    if text is None:
        raise NearbankError(f"{where}: not a nearbank trace (no '{TRACE_SCHEMA}' in its metadata)")
    try:
        return TraceHeader.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise NearbankError(
            f"{where}: header field {key}: {first['msg']} (this release reads versions 1 to {TRACE_VERSION})"
        ) from error

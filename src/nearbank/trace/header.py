"""What a trace says about itself, kept in the Parquet metadata: schema, model, run."""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nearbank.errors import NearbankError

TRACE_SCHEMA: Final = "nearbank.trace"
TRACE_VERSION: Final = 1


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Matrix(Strict):
    """A weight matrix [n, k] that `count` layers have one of each (count = 1 and per_layer false: outside them)."""

    name: str
    n: int = Field(gt=0)
    k: int = Field(gt=0)
    per_layer: bool


class ModelDescription(Strict):
    """The shape of the model that ran: enough to place every tensor in a memory."""

    name: str
    layers: int = Field(gt=0)
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
        return sum(x.n * x.k * (self.layers if x.per_layer else 1) for x in self.matrices)


class TraceHeader(Strict):
    """`origin` is "recorded" (a real run) or "sketched" (from the shape alone); times exist only when recorded."""

    trace_schema: Literal["nearbank.trace"] = TRACE_SCHEMA
    version: Literal[1] = TRACE_VERSION
    model: ModelDescription
    origin: Literal["recorded", "sketched"]
    prompt_tokens: int = Field(gt=0)
    new_tokens: int = Field(ge=0)
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
            f"{where}: header field {key}: {first['msg']} (this release reads version {TRACE_VERSION})"
        ) from error

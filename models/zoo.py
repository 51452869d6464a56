"""Shapes of models that people ask about, by name, offline. For any other, a `config.json` will do.

Sizes are those of the `config.json` that each model's authors published; a test checks the parameter counts that
follow from them against the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nearbank.errors import NearbankError
from nearbank.models.config import CONFIGS
from nearbank.models.hf_config import read_config, shape_from_config
from nearbank.models.shape import EncoderShape, Shape, gpt_shape

ACTIVATIONS = MappingProxyType({"opt": "relu", "opt-post": "relu", "gemma2": "gelu", "bitnet": "relu2"})

GEMMA_2: dict[str, Any] = {"windows": (4096, None), "softcap": 50.0}


def _decoder(
    family: str, name: str, layers: int, width: int, heads: int, kv_heads: int, hidden: int, vocabulary: int,
    context: int, head_dim: int | None = None, **more: Any,
) -> Shape:  # fmt: skip
    activation = ACTIVATIONS.get(family, "silu")
    sizes = (layers, width, heads, kv_heads, head_dim or width // heads, hidden, vocabulary, context)
    return Shape(name, family, *sizes, activation=activation, **more)


def _bart(family: str, name: str, layers: int, width: int, heads: int, vocabulary: int) -> Shape:
    """Encoder and decoder have the same sizes."""
    sizes = (layers, width, heads, heads, width // heads, 4 * width, vocabulary, 1024)
    encoder = EncoderShape(layers, heads, 4 * width)
    return Shape(name, family, *sizes, activation="gelu_erf", encoder=encoder)


# fmt: off
_ALL = (
    #                              layers  width  heads  vocabulary  context
    gpt_shape("gpt3-2.7b",             32,  2560,    32,     50257,    2048),
    gpt_shape("gpt3-6.7b",             32,  4096,    32,     50257,    2048),
    gpt_shape("gpt3-13b",              40,  5120,    40,     50257,    2048),
    gpt_shape("gpt3-175b",             96, 12288,    96,     50257,    2048),
    #                                    layers  width heads  kv  hidden    vocab  context
    _decoder("opt", "opt-125m",              12,   768,  12,  12,   3072,   50272,   2048),
    _decoder("opt-post", "opt-350m",         24,  1024,  16,  16,   4096,   50272,   2048, embedding=512),
    _decoder("opt", "opt-1.3b",              24,  2048,  32,  32,   8192,   50272,   2048),
    _decoder("opt", "opt-2.7b",              32,  2560,  32,  32,  10240,   50272,   2048),
    _decoder("opt", "opt-6.7b",              32,  4096,  32,  32,  16384,   50272,   2048),
    _decoder("opt", "opt-13b",               40,  5120,  40,  40,  20480,   50272,   2048),
    _decoder("opt", "opt-30b",               48,  7168,  56,  56,  28672,   50272,   2048),
    _decoder("opt", "opt-66b",               64,  9216,  72,  72,  36864,   50272,   2048),
    _decoder("llama", "llama-2-7b",          32,  4096,  32,  32,  11008,   32000,   4096),
    _decoder("llama", "llama-2-13b",         40,  5120,  40,  40,  13824,   32000,   4096),
    _decoder("llama", "llama-2-70b",         80,  8192,  64,   8,  28672,   32000,   4096),
    _decoder("llama", "llama-3-8b",          32,  4096,  32,   8,  14336,  128256,   8192),
    _decoder("llama", "llama-3-70b",         80,  8192,  64,   8,  28672,  128256,   8192),
    _decoder("mistral", "mistral-7b",        32,  4096,  32,   8,  14336,   32000,  32768, windows=(4096,)),
    _decoder("qwen2", "qwen2.5-0.5b",        24,   896,  14,   2,   4864,  151936,  32768),
    _decoder("qwen2", "qwen2.5-1.5b",        28,  1536,  12,   2,   8960,  151936,  32768),
    _decoder("qwen2", "qwen2.5-3b",          36,  2048,  16,   2,  11008,  151936,  32768),
    _decoder("qwen2", "qwen2.5-7b",          28,  3584,  28,   4,  18944,  152064, 131072),
    _decoder("qwen2", "qwen2.5-14b",         48,  5120,  40,   8,  13824,  152064, 131072),
    _decoder("qwen2", "qwen2.5-32b",         64,  5120,  40,   8,  27648,  152064, 131072),
    _decoder("qwen2", "qwen2.5-72b",         80,  8192,  64,   8,  29568,  152064, 131072),
    _decoder("gemma2", "gemma-2-2b",         26,  2304,   8,   4,   9216,  256000,   8192, 256, **GEMMA_2),
    _decoder("gemma2", "gemma-2-9b",         42,  3584,  16,   8,  14336,  256000,   8192, 256, **GEMMA_2),
    _decoder("gemma2", "gemma-2-27b",        46,  4608,  32,  16,  36864,  256000,   8192, 128, **GEMMA_2),
    _decoder("phi3", "phi-3-mini",           32,  3072,  32,  32,   8192,   32064,   4096, windows=(2047,)),
    _decoder("phi3", "phi-3-medium",         40,  5120,  40,  10,  17920,   32064,   4096, windows=(2047,)),
    _decoder("bitnet", "bitnet-b1.58-2b4t",  30,  2560,  20,   5,   6912,  128256,   4096),
    #                              layers  width heads   vocab
    _bart("bart", "bart-base",          6,   768,  12,   50265),
    _bart("bart", "bart-large",        12,  1024,  16,   50265),
    _bart("mbart", "mbart-large",      12,  1024,  16,  250027),
)
# fmt: on
SHAPES: Mapping[str, Shape] = MappingProxyType(
    {name: config.shape for name, config in CONFIGS.items()} | {shape.name: shape for shape in _ALL}
)


def find_shape(source: str | Path) -> Shape:
    """A shape by name, or from a `config.json` or a directory with one. Raises `NearbankError` with what is known."""
    name = str(source)
    if name in SHAPES:
        return SHAPES[name]
    path = Path(source)
    if path.is_dir() or path.suffix == ".json":
        return shape_from_config(read_config(path), path.name if path.is_dir() else path.parent.name or path.name)
    raise NearbankError(f"unknown model '{name}'; known: {', '.join(SHAPES)}; or give a config.json or its directory")

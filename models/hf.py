"""Hugging Face checkpoints from a local directory: `config.json`, safetensors, `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.kernels.backends import resolve
from nearbank.models.bart import load_bart
from nearbank.models.execution import Floats
from nearbank.models.gpt import load_gpt
from nearbank.models.hf_config import read_config, shape_from_config
from nearbank.models.llama import TRAITS, load_llama
from nearbank.models.model import Model, Network, Tokenizer
from nearbank.models.opt import load_opt
from nearbank.models.safetensors_file import open_checkpoint
from nearbank.models.search import Search, search_from
from nearbank.models.shape import Shape
from nearbank.models.tensors import Precision, Tensors

Loader = Callable[[Shape, Mapping[str, Any], Tensors], Network]
# Buffers that old checkpoints store and no architecture needs
BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq", "lm_head.weight", "coder.version")


def load_directory(
    directory: Path, precision: Precision, kv: str, backend: str = "auto", called: str | None = None
) -> Model:
    """The model in a checkpoint directory, its block matrices rounded to `precision.weights`.

    called: the model's name, the directory's unless given.
    """
    config = read_config(directory)
    shape = shape_from_config(config, called or directory.name)
    name = resolve(backend)
    tensors = Tensors(_renamed(shape, open_checkpoint(directory)), name, precision, str(directory))
    network = LOADERS[shape.family](shape, config, tensors)
    tensors.check_all_used(BUFFERS)
    tokenizer = _tokenizer(directory, shape)
    card = {"model_type": config["model_type"]}
    search = _search(directory, config, shape)
    return Model(network, tokenizer, precision.weights, precision.activations, kv, name, card, search=search)


def _search(directory: Path, config: Mapping[str, Any], shape: Shape) -> Search | None:
    """How an encoder-decoder's output is searched; None for other models, whose prompt is the user's."""
    if shape.encoder is None:
        return None
    settings = directory / "generation_config.json"
    found = search_from(config, read_config(settings) if settings.is_file() else {})
    found.check_tokens(shape.vocabulary)
    return found


def _load_gpt2(shape: Shape, config: Mapping[str, Any], tensors: Tensors) -> Network:
    return load_gpt(shape, tensors, bias=True, eps=float(config.get("layer_norm_epsilon", 1e-5)))


LOADERS: Mapping[str, Loader] = MappingProxyType(
    {
        "gpt": _load_gpt2,
        "opt": load_opt,
        "opt-post": load_opt,
        "bart": load_bart,
        "mbart": load_bart,
        **dict.fromkeys(TRAITS, load_llama),
    }
)


@dataclass(frozen=True)
class Renamed(Mapping[str, Floats]):
    """Tensors under other names: ours → (theirs, whether it is stored transposed)."""

    tensors: Mapping[str, Floats]
    names: Mapping[str, tuple[str, bool]]

    def __getitem__(self, name: str) -> Floats:
        theirs, transposed = self.names[name]
        values = self.tensors[theirs]
        return np.ascontiguousarray(values.T) if transposed else values

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


HEADLESS = ("opt", "opt-post", "bart", "mbart")
GPT2_PARTS = {"attn.c_attn": "attn.qkv", "attn.c_proj": "attn.proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


def _renamed(shape: Shape, tensors: Mapping[str, Floats]) -> Mapping[str, Floats]:
    """GPT-2 calls its parts otherwise and stores block matrices as [inputs, outputs]; others keep their names."""
    if shape.family == "gpt":
        return Renamed(tensors, {_gpt2_name(name): (name, _is_transposed(name)) for name in tensors})
    if shape.family in HEADLESS and "decoder.embed_positions.weight" in tensors:  # saved without its head
        return Renamed(tensors, {f"model.{name}": (name, False) for name in tensors})
    return tensors


def _gpt2_name(name: str) -> str:
    ours = name.removeprefix("transformer.")
    for theirs, part in GPT2_PARTS.items():
        ours = ours.replace(theirs, part)
    return ours


def _is_transposed(name: str) -> bool:
    return any(name.endswith(f"{part}.weight") for part in GPT2_PARTS)


@dataclass(frozen=True)
class FileTokenizer:
    """A `tokenizer.json`, through the tokenizers package."""

    tokenizer: Any

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Token numbers of a text, with the special tokens that the tokenizer adds."""
        return np.array(self.tokenizer.encode(text).ids, dtype=np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token numbers."""
        return str(self.tokenizer.decode([int(token) for token in tokens]))


def _tokenizer(directory: Path, shape: Shape) -> Tokenizer | None:
    """The directory's tokenizer; None if it has none (token numbers still work)."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        from tokenizers import Tokenizer as Reader
    except ImportError as error:
        raise NearbankError("tokenizer.json needs the package tokenizers; pip install 'nearbank[models]'") from error
    try:
        tokenizer = Reader.from_file(str(path))
    except Exception as error:  # the package raises bare Exception
        raise NearbankError(f"{path}: not a readable tokenizer ({error}); download it again") from error
    size = tokenizer.get_vocab_size()
    if size > shape.vocabulary:
        raise NearbankError(f"{path}: {size} tokens, but config.json says {shape.vocabulary}; is it another model's?")
    return FileTokenizer(tokenizer)

"""Shapes from Hugging Face configurations: a `config.json`, read and checked, no weights and no network.

`READERS` is the list of known model types. Reading a configuration runs no code of the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nearbank.errors import NearbankError
from nearbank.models.shape import EncoderShape, Shape

Config = Mapping[str, Any]
# config.json's names of activations → ours
ACTIVATION_NAMES = MappingProxyType(
    {
        "gelu_new": "gelu",
        "gelu_pytorch_tanh": "gelu",
        "gelu_fast": "gelu",
        "silu": "silu",
        "swish": "silu",
        "relu": "relu",
        "relu2": "relu2",
    }
)


def read_config(directory: Path) -> dict[str, Any]:
    """The configuration of a checkpoint directory (or of a `config.json` given by itself)."""
    path = directory / "config.json" if directory.is_dir() else directory
    if not path.is_file():
        raise NearbankError(f"{path}: no such file; a checkpoint directory holds config.json and *.safetensors")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise NearbankError(f"{path}: not readable JSON ({error}); download it again") from error
    if not isinstance(config, dict):
        raise NearbankError(f"{path}: expected a JSON object")
    return config


def shape_from_config(config: Config, name: str) -> Shape:
    """The shape that a configuration describes. Raises `NearbankError` naming an unknown model type or bad key."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in READERS:
        raise NearbankError(
            f"{name}: model type {kind!r} has no architecture here; known: {', '.join(READERS)}. "
            "`nearbank.models.meta.sketch_config` can sketch it through transformers"
        )
    try:
        return READERS[kind](_Keys(config, name))
    except NearbankError as error:
        raise NearbankError(f"{name}: config.json: {error}") from error


class _Keys:
    """A configuration whose values are checked as they are read."""

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self.name = name

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1; `default` stands for a missing or null key."""
        value = self.config.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise NearbankError(f"'{key}' is {value!r}; expected a whole number of at least 1")
        return value

    def optional_count(self, key: str) -> int | None:
        """A whole number of at least 1, or None."""
        return None if self.config.get(key) is None else self.count(key)

    def activation(self, *keys: str, default: str) -> str:
        """Our name of the activation under the first key that is there."""
        found = next((self.config[key] for key in keys if self.config.get(key)), default)
        if found not in ACTIVATION_NAMES:
            raise NearbankError(f"activation '{found}' is not supported; known: {', '.join(ACTIVATION_NAMES)}")
        return ACTIVATION_NAMES[found]

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        return bool(self.config.get(key, default))


def _gpt2(keys: _Keys) -> Shape:
    for key, expected in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if keys.flag(key, expected) is not expected:
            raise NearbankError(f"'{key}' is not {str(expected).lower()}; this variant of GPT-2 is not supported")
    width, heads = keys.count("n_embd"), keys.count("n_head")
    return Shape(
        keys.name,
        "gpt",
        keys.count("n_layer"),
        width,
        heads,
        heads,
        _divided(width, heads, "n_embd", "n_head"),
        keys.count("n_inner", 4 * width),
        keys.count("vocab_size"),
        keys.count("n_positions"),
        activation=keys.activation("activation_function", default="gelu_new"),
    )


def _opt(keys: _Keys) -> Shape:
    width, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    outer = keys.count("word_embed_proj_dim", width)
    return Shape(
        keys.name,
        "opt" if keys.flag("do_layer_norm_before", True) else "opt-post",
        keys.count("num_hidden_layers"),
        width,
        heads,
        heads,
        _divided(width, heads, "hidden_size", "num_attention_heads"),
        keys.count("ffn_dim"),
        keys.count("vocab_size"),
        keys.count("max_position_embeddings"),
        activation=keys.activation("activation_function", default="relu"),
        embedding=None if outer == width else outer,
    )


def _bart(keys: _Keys) -> Shape:
    """ "gelu" is the exact one here. Vocabulary, width and context are common to encoder and decoder."""
    width, heads = keys.count("d_model"), keys.count("decoder_attention_heads")
    exact = keys.config.get("activation_function", "gelu") == "gelu"
    encoder = tuple(keys.count(f"encoder_{name}") for name in ("layers", "attention_heads", "ffn_dim"))
    return Shape(
        keys.name,
        str(keys.config["model_type"]),
        keys.count("decoder_layers"),
        width,
        heads,
        heads,
        _divided(width, heads, "d_model", "decoder_attention_heads"),
        keys.count("decoder_ffn_dim"),
        keys.count("vocab_size"),
        keys.count("max_position_embeddings"),
        activation="gelu_erf" if exact else keys.activation("activation_function", default="gelu_new"),
        encoder=EncoderShape(*encoder),
    )


def _llama(keys: _Keys, activation: str = "silu") -> Shape:
    width, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    head_dim = keys.optional_count("head_dim") or _divided(width, heads, "hidden_size", "num_attention_heads")
    layers = keys.count("num_hidden_layers")
    return Shape(
        keys.name,
        str(keys.config["model_type"]),
        layers,
        width,
        heads,
        keys.count("num_key_value_heads", heads),
        head_dim,
        keys.count("intermediate_size"),
        keys.count("vocab_size"),
        keys.count("max_position_embeddings"),
        _windows(keys, layers),
        keys.config.get("attn_logit_softcapping"),
        keys.activation("hidden_activation", "hidden_act", default=activation),
    )


def _gemma(keys: _Keys) -> Shape:
    """Early configurations say "gelu" where the tanh form is meant, as transformers reads them too."""
    return _llama(_Keys({**keys.config, "hidden_activation": "gelu_pytorch_tanh"}, keys.name))


def _windows(keys: _Keys, layers: int) -> tuple[int | None, ...]:
    """Which layers attend a sliding window: as `layer_types` says, else as the model type always does."""
    kind, window = keys.config["model_type"], keys.optional_count("sliding_window")
    types = keys.config.get("layer_types")
    if window is None or (kind.startswith("qwen") and not keys.flag("use_sliding_window", False)):
        return (None,)
    if types is not None:
        return tuple(window if word == "sliding_attention" else None for word in types)
    if kind == "gemma2":
        return (window, None)
    first = keys.count("max_window_layers", 28) if kind.startswith("qwen") else 0
    return tuple(None if layer < first else window for layer in range(layers)) if first else (window,)


def _divided(width: int, heads: int, width_key: str, heads_key: str) -> int:
    if width % heads:
        raise NearbankError(f"'{width_key}' {width} is not a multiple of '{heads_key}' {heads}")
    return width // heads


READERS: Mapping[str, Callable[[_Keys], Shape]] = MappingProxyType(
    {
        "gpt2": _gpt2,
        "opt": _opt,
        "llama": _llama,
        "mistral": _llama,
        "qwen2": _llama,
        "qwen3": _llama,
        "gemma": _gemma,
        "gemma2": _gemma,
        "phi3": _llama,
        "bitnet": lambda keys: _llama(keys, "relu2"),
        "bart": _bart,
        "mbart": _bart,
    }
)

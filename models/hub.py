"""Checkpoints by their Hugging Face name, `org/name`: fetched once into the cache that other tools share (HF_HOME).

Only configurations, safetensors and tokenizer files are asked for: no code, no pickles. Needs the package
huggingface_hub (the extra "hub"); HF_HUB_OFFLINE=1 takes what the cache has and asks no network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nearbank.errors import NearbankError

WANTED = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json")
UNWANTED = ("*/*", "consolidated*.safetensors")  # folders hold other formats; Mistral's files hold the weights twice
NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
LONGEST_REASON = 200


@dataclass(frozen=True)
class Found:
    """A checkpoint directory and the model's name; in the cache a directory is called by a commit's number."""

    directory: Path
    name: str


def find_directory(source: str | Path) -> Found | None:
    """The directory that `source` is, or the snapshot of the model of that name; None for anything else.

    Raises `NearbankError` when a name has no snapshot in the cache and none can be fetched.
    """
    path = Path(source)
    if path.is_dir():
        return Found(path, path.name or path.resolve().name)
    if path.exists() or path.suffix == ".safetensors" or not NAME.fullmatch(str(source)):
        return None
    return Found(fetch(str(source)), path.name)


def fetch(name: str) -> Path:
    """The snapshot of the model called `name`: the newest one, or without a network the one in the cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise NearbankError(
            f"{name}: no such directory, and fetching models by name needs huggingface_hub; pip install 'nearbank[hub]'"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)))
    except Exception as error:  # the package raises its own errors, its HTTP library's and the system's
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise NearbankError(
            f"{name}: no such directory, and no such model in the cache or to be fetched ({type(error).__name__}: "
            f"{reason}); check the name and the network, or give a directory"
        ) from error

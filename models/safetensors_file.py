"""Reading safetensors files, single or sharded, one tensor at a time as float32. Never runs code from a file.

Layout of a file: 8 bytes with the header's length (little endian), a JSON header {name: {dtype, shape,
data_offsets}}, then the data. bfloat16 and float8 are not NumPy types, so the bits are widened here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import from_bf16

Floats = npt.NDArray[np.float32]
DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.uint8,
}
LONGEST_HEADER = 100_000_000  # the format's own limit
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in its file: byte range, dtype by the format's name, shape."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class SafetensorsFile:
    """One file; its header is read and checked when it is first asked for."""

    path: Path

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Tensors by name."""
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(LONGEST_HEADER, size - 8):
                raise self._damaged("it is truncated or no safetensors file")
            text = file.read(length)
        return {name: self._entry(name, value, 8 + length, size) for name, value in self._parsed(text).items()}

    def floats(self, name: str) -> Floats:
        """One tensor as float32."""
        entry = self.entries[name]
        with self.path.open("rb") as file:
            file.seek(entry.start)
            raw = np.frombuffer(file.read(entry.end - entry.start), DTYPES[entry.dtype]).reshape(entry.shape)
        return from_bf16(raw) if entry.dtype == "BF16" else raw.astype(np.float32)

    def _parsed(self, text: bytes) -> dict[str, Any]:
        try:
            header = json.loads(text)
        except ValueError as error:
            raise self._damaged("its header is not JSON") from error
        if not isinstance(header, dict):
            raise self._damaged("its header is not an object")
        header.pop("__metadata__", None)
        return header

    def _entry(self, name: str, value: Any, base: int, size: int) -> Entry:
        try:
            dtype, shape = value["dtype"], tuple(int(n) for n in value["shape"])
            start, end = (base + int(offset) for offset in value["data_offsets"])
        except (TypeError, KeyError, ValueError) as error:
            raise self._damaged(f"tensor {name} has no dtype, shape and data_offsets") from error
        if dtype not in DTYPES:
            raise NearbankError(f"{self.path}: tensor {name} is {dtype}; supported: {', '.join(DTYPES)}")
        if end - start != int(np.prod(shape)) * np.dtype(DTYPES[dtype]).itemsize or not base <= start <= end <= size:
            raise self._damaged(f"tensor {name} does not lie within it")
        return Entry(dtype, shape, start, end)

    def _damaged(self, how: str) -> NearbankError:
        return NearbankError(f"{self.path}: {how}; download or write it again")


@dataclass(frozen=True)
class Checkpoint(Mapping[str, Floats]):
    """All tensors of a directory by name, read when asked for."""

    files: Mapping[str, SafetensorsFile]  # by tensor name

    def __getitem__(self, name: str) -> Floats:
        return self.files[name].floats(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def bytes(self) -> int:
        """Bytes of all tensors as stored."""
        entries = (file.entries[name] for name, file in self.files.items())
        return sum(entry.end - entry.start for entry in entries)


def open_checkpoint(directory: Path) -> Checkpoint:
    """The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` lists."""
    index = directory / INDEX
    names = sorted(set(_weight_map(index).values())) if index.is_file() else [SINGLE]
    files: dict[str, SafetensorsFile] = {}
    for name in names:
        shard = SafetensorsFile(directory / name)
        if not shard.path.is_file():
            raise NearbankError(f"{shard.path}: no such file; {_instead(directory)}")
        files |= dict.fromkeys(shard.entries, shard)
    _check_complete(index, files)
    return Checkpoint(files)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise NearbankError(f"{index}: no 'weight_map' in it; download it again") from error
    inside = isinstance(found, dict) and all(Path(str(name)).name == name for name in found.values())
    if not inside:
        raise NearbankError(f"{index}: 'weight_map' must map tensors to files of this directory")
    return {str(tensor): str(name) for tensor, name in found.items()}


def _check_complete(index: Path, files: Mapping[str, SafetensorsFile]) -> None:
    missing = sorted(set(_weight_map(index)) - set(files)) if index.is_file() else []
    if missing:
        raise NearbankError(f"{index}: {len(missing)} tensors are in no shard, first {missing[0]}; download it again")


def _instead(directory: Path) -> str:
    pickles = sorted(path.name for path in directory.glob("*.bin"))
    if pickles:
        return f"{pickles[0]} is a pickle, which can run code and is never loaded: convert it to safetensors"
    return f"expected {SINGLE} or {INDEX}"

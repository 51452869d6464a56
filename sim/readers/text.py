"""Lines of trace files: plain or compressed, streamed, with errors that name the file and the line."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from nearbank.errors import NearbankError

_OPENERS: dict[bytes, Callable[[IO[bytes]], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_OTHERS = {b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"\x04\x22\x4d\x18": "lz4"}
_LONGEST_LINE = 1 << 16


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 on and lines without their ends; DOS ends are fine, NUL bytes and endless lines are not."""
    number = 0
    try:
        with path.open("rb") as stored:
            file = _unpacked(path, stored)
            while raw := file.readline(_LONGEST_LINE):
                number += 1
                yield number, _decoded(path, number, raw)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        expected = "a whole text file, plain or packed by gzip, bzip2 or xz"
        raise NearbankError(
            f"{path}, after line {number}: not readable to its end ({reason}); expected {expected}"
        ) from error


def _unpacked(path: Path, stored: io.BufferedReader) -> IO[bytes]:
    """The file's text; compressed ones are told by their first bytes, whatever the name."""
    start = stored.peek(6)
    for magic, name in _OTHERS.items():
        if start.startswith(magic):
            raise NearbankError(f"{path}: compressed with {name}; expected plain text, gzip, bzip2 or xz")
    for magic, opener in _OPENERS.items():
        if start.startswith(magic):
            return io.BufferedReader(opener(stored))
    return stored


def _decoded(path: Path, number: int, raw: bytes) -> str:
    if len(raw) >= _LONGEST_LINE:
        raise bad_line(path, number, f"longer than {_LONGEST_LINE} bytes", "one request or instruction a line")
    if b"\x00" in raw:
        raise bad_line(path, number, "holds a NUL byte", "a text file")
    try:
        return raw.decode("ascii").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise bad_line(path, number, "holds bytes that are not ASCII", "a text file") from error


def bad_line(path: Path, number: int, what: str, expected: str) -> NearbankError:
    """The error for a line that cannot be read."""
    return NearbankError(f"{path}, line {number}: {what}; expected {expected}")


def integer(path: Path, number: int, text: str, what: str, most: int, written: str | None = None) -> int:
    """A number from 0 to `most`, decimal or 0x…; errors show it as `written`, where the file has it otherwise."""
    shown = _short(text if written is None else written)
    try:
        value = int(text, 16) if text[:2] in ("0x", "0X") else int(text)
        if "_" in text:
            raise ValueError(text)  # Python reads 1_000, nobody else does
    except ValueError:
        raise bad_line(path, number, f"{what} {shown} is not a number", f"0 to {most}, decimal or 0x") from None
    if not 0 <= value <= most:
        raise bad_line(path, number, f"{what} {shown} is out of range", f"0 to {most}")
    return value


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")

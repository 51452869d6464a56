"""Lines of trace files: plain or gzip, streamed, with errors that name the file and the line."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from nearbank.errors import NearbankError

_GZIP = b"\x1f\x8b"
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
_LONGEST_LINE = 1 << 16


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 on and lines without their ends; DOS ends are fine, NUL bytes and endless lines are not."""
    try:
        with _open(path) as file:
            number = 0
            while raw := file.readline(_LONGEST_LINE):
                number += 1
                yield number, _decoded(path, number, raw)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise NearbankError(f"{path}: not readable to its end ({reason}); expected a whole text file or .gz") from error


def _open(path: Path) -> IO[bytes]:
    """The file's bytes; compressed ones are told by their first two bytes, whatever the name."""
    with path.open("rb") as file:
        start = file.read(6)
    for magic, name in _OTHERS.items():
        if start.startswith(magic):
            raise NearbankError(f"{path}: compressed with {name}; expected plain text or gzip")
    return io.BufferedReader(gzip.open(path)) if start.startswith(_GZIP) else path.open("rb")


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


def integer(path: Path, number: int, text: str, what: str, most: int) -> int:
    """A number from 0 to `most`, decimal or 0x…"""
    try:
        value = int(text, 16) if text[:2] in ("0x", "0X") else int(text)
        if "_" in text:
            raise ValueError(text)  # Python reads 1_000, nobody else does
    except ValueError:
        raise bad_line(path, number, f"{what} {_short(text)} is not a number", f"0 to {most}, decimal or 0x") from None
    if not 0 <= value <= most:
        raise bad_line(path, number, f"{what} {_short(text)} is out of range", f"0 to {most}")
    return value


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")

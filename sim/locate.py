"""Where in a program a row of its code comes from."""

from __future__ import annotations

from collections.abc import Iterator

from nearbank.sim.program import Loop, Node, Program


def locate(program: Program, stream: int, row: int) -> str:
    """The path, such as "3.0.1", of the node that a code row (counted from the stream's first) belongs to."""
    for at, path in enumerate(_walk(program.streams[stream].body, "")):
        if at == row:
            return path
    return "end"


def _walk(body: tuple[Node, ...], prefix: str) -> Iterator[str]:
    """Paths of the nodes in the order of their rows."""
    for i, node in enumerate(body):
        path = f"{prefix}{i}"
        yield path
        if isinstance(node, Loop):
            yield from _walk(node.body, f"{path}.")
            yield path

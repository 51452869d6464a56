"""Programs as text, one node a line, loops indented; `parse` gives back what `render` was given.

    program gemv
    stream 0 1 2 3
      mark qkv
      loop 500
        ACT16 row=100+1*i0
        loop 64
          MACAB row=100+1*i0 column=1*i1 format=bf16
        PREA
      start asic softmax 20000 ps
      wait asic

`i0` is the counter of the outermost loop of the stream, `i1` that of the next one inside, and so on. A counter begins
at 0, or at 5 in `loop 500 from 5`. Names that hold spaces stand in double quotes. `#` begins a comment.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from nearbank.errors import NearbankError
from nearbank.sim.program import Command, Index, Loop, Mark, Node, Program, Start, Stream, Wait

_FIELDS = ("bank", "row", "column", "data", "register", "scale")
_TERM = re.compile(r"(-?\d+)(?:\*i(\d+))?")


def render(program: Program) -> str:
    """The program's text."""
    return "\n".join(_program_lines(program)) + "\n"


def _program_lines(program: Program) -> Iterator[str]:
    yield f"program {_quoted(program.name)}"
    for stream in program.streams:
        yield " ".join(["stream", *(str(c) for c in stream.channels)])
        for node in stream.body:
            yield from _node_lines(node, 1)


def _node_lines(node: Node, level: int) -> Iterator[str]:
    pad = "  " * level
    if isinstance(node, Loop):
        yield f"{pad}loop {node.count}" + (f" from {node.first}" if node.first else "")
        for child in node.body:
            yield from _node_lines(child, level + 1)
    elif isinstance(node, Start):
        yield f"{pad}start {_quoted(node.unit)} {_quoted(node.job)} {node.duration_ps} ps"
    elif isinstance(node, Wait):
        yield f"{pad}wait {_quoted(node.unit)}"
    elif isinstance(node, Mark):
        yield f"{pad}mark {_quoted(node.label)}"
    else:
        yield pad + _command_text(node)


def _command_text(node: Command) -> str:
    fields = ((name, getattr(node, name)) for name in _FIELDS)
    words = [f"{name}={_index_text(index)}" for name, index in fields if index != Index()]
    words += [f"format={_quoted(node.format)}"] if node.format else []
    return " ".join([node.name, *words])


def _index_text(index: Index) -> str:
    terms = [f"{stride}*i{depth}" for depth, stride in enumerate(index.strides) if stride]
    # A trailing zero stride says nothing about the value, but equality of programs sees it.
    if index.strides and not index.strides[-1]:
        terms.append(f"0*i{len(index.strides) - 1}")
    return "+".join([str(index.base), *terms] if index.base or not terms else terms)


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[\w.:/-]+", name) else '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def parse(text: str, source: str = "text") -> Program:
    """The program that a text describes; `NearbankError` gives `source`, line and expectation."""
    return _Parser(text, source).program()


class _Parser:
    """Reads lines by their indentation; a place in the list of lines is its only state."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        numbered = enumerate(text.splitlines(), start=1)
        self.lines = [(n, _level(line), words) for n, line in numbered if (words := self._words(n, line))]
        self.at = 0

    def _words(self, number: int, line: str) -> list[str]:
        try:
            return shlex.split(line, comments=True)
        except ValueError as error:
            raise NearbankError(f"{self.source}:{number}: {error}; close the quotation") from None

    def _fail(self, number: int, expected: str) -> NearbankError:
        return NearbankError(f"{self.source}:{number}: expected {expected}")

    def program(self) -> Program:
        if not self.lines or self.lines[0][2][0] != "program" or len(self.lines[0][2]) != 2:
            raise self._fail(1, "'program NAME' as the first line")
        name = self.lines[0][2][1]
        self.at = 1
        streams = []
        while self.at < len(self.lines):
            streams.append(self._stream())
        return Program(name, tuple(streams))

    def _stream(self) -> Stream:
        number, level, words = self.lines[self.at]
        if level != 0 or words[0] != "stream" or not all(w.isdigit() for w in words[1:]):
            raise self._fail(number, "'stream CHANNEL …', not indented")
        self.at += 1
        return Stream(tuple(int(w) for w in words[1:]), self._body(1))

    def _body(self, level: int) -> tuple[Node, ...]:
        nodes = []
        while self.at < len(self.lines) and self.lines[self.at][1] >= level:
            number, own, _ = self.lines[self.at]
            if own != level:
                raise self._fail(number, f"{2 * level} spaces before the node")
            nodes.append(self._node(level))
        return tuple(nodes)

    def _node(self, level: int) -> Node:
        number, _, words = self.lines[self.at]
        self.at += 1
        match words:
            case ["loop", count] if count.isdigit():
                return Loop(int(count), self._body(level + 1))
            case ["loop", count, "from", first] if count.isdigit() and first.isdigit():
                return Loop(int(count), self._body(level + 1), int(first))
            case ["start", unit, job, duration, "ps"] if duration.isdigit():
                return Start(unit, job, int(duration))
            case ["wait", unit]:
                return Wait(unit)
            case ["mark", label]:
                return Mark(label)
            case ["loop" | "start" | "wait" | "mark", *_]:
                raise self._fail(
                    number, "'loop COUNT [from FIRST]', 'start UNIT JOB DURATION ps', 'wait UNIT' or 'mark LABEL'"
                )
        return self._command(number, words)

    def _command(self, number: int, words: list[str]) -> Command:
        given: dict[str, str] = {}
        for word in words[1:]:
            name, equals, value = word.partition("=")
            if not equals or name in given or name not in (*_FIELDS, "format"):
                raise self._fail(number, f"fields such as row=100+1*i0, each once, not {word!r}")
            given[name] = value
        number_format = given.pop("format", "")
        indices = {name: self._index(number, value) for name, value in given.items()}
        return Command(words[0], **indices, format=number_format)

    def _index(self, number: int, text: str) -> Index:
        base, strides = 0, dict[int, int]()
        for term in text.split("+"):
            match = _TERM.fullmatch(term)
            if match is None:
                raise self._fail(number, f"a sum such as 100+1*i0+-2*i1, not {text!r}")
            if match[2] is None:
                base += int(match[1])
            else:
                strides[int(match[2])] = int(match[1])
        depth = max(strides, default=-1) + 1
        return Index(base, tuple(strides.get(d, 0) for d in range(depth)))


def _level(line: str) -> int:
    """Indentation in steps of two spaces; an odd one counts as its own, unexpected, level."""
    spaces = len(line) - len(line.lstrip(" "))
    return spaces // 2 if spaces % 2 == 0 else 1000 + spaces

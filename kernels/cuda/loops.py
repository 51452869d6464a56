"""The loop of a kernel's machine code that does its work, instruction by instruction: what a warp has to issue."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from nearbank.kernels.cuda.cubin import Compiled, sass

_LINE = re.compile(
    r"^(?P<label>\.L_x_\d+):|^\s+/\*[0-9a-f]{4,}\*/\s+(?:@(?P<guard>!?U?P\w+)\s+)?(?P<name>[A-Z][A-Za-z0-9_.]*)(?P<rest>[^;]*);",
    re.MULTILINE,
)
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")

# The first class whose prefixes an instruction's name begins with is its own; what no line names is arithmetic on
# integers and bits, moves and control.
CLASSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "matrix": ("HMMA", "IMMA", "BMMA"),
        "loads": ("LDG",),
        "shared": ("LDS", "STS", "LDGSTS"),
        "shuffles": ("SHFL", "VOTE", "REDUX"),
        "special": ("MUFU", "I2F", "F2I"),
        "floats": ("FADD", "FMUL", "FFMA", "FMNMX", "FSETP", "FSEL", "F2FP", "HFMA2", "HADD2", "HMUL2"),
    }
)
OTHER = "integers"


@dataclass(frozen=True)
class Instruction:
    """One line. target: where a branch leads, as an index into the listing."""

    name: str
    guard: str | None = None
    target: int | None = None

    @property
    def kind(self) -> str:
        """Its class."""
        return next((kind for kind, names in CLASSES.items() if self.name.startswith(names)), OTHER)


def listing(compiled: Compiled) -> tuple[Instruction, ...]:
    """A kernel's instructions in order."""
    _, _, rest = sass(compiled).partition(f"\t.section\t.text.{compiled.name},")
    return parse(rest.partition("\n\t.section\t")[0])


def parse(text: str) -> tuple[Instruction, ...]:
    """Disassembled text → instructions, branches resolved."""
    lines: list[re.Match[str]] = []
    labels: dict[str, int] = {}
    for found in _LINE.finditer(text):
        if found["label"]:
            labels[found["label"]] = len(lines)
        else:
            lines.append(found)
    return tuple(Instruction(found["name"], found["guard"], _target(found, labels)) for found in lines)


def _target(found: re.Match[str], labels: Mapping[str, int]) -> int | None:
    leads = _TARGET.search(found["rest"]) if found["name"] == "BRA" else None
    return labels.get(leads[1]) if leads else None


def main_loop(code: Sequence[Instruction], kind: str = "matrix") -> range:
    """The shortest loop with as many instructions of a class as any. Empty where there is none."""
    loops = [range(one.target, i + 1) for i, one in enumerate(code) if one.target is not None and one.target <= i]
    counted = [(sum(code[i].kind == kind for i in loop), -len(loop), loop.start) for loop in loops]
    most = max((one for one in counted if one[0]), default=(0, 0, 0))
    return range(most[2], most[2] - most[1])


def common_path(code: Sequence[Instruction], loop: range) -> tuple[Instruction, ...]:
    """What a pass usually issues: a branch over code without matrix instructions and loads is taken.

    Such code is the rare case (a new peak, the last tokens). Code with them is always counted, so passes that leave
    some of it out are shorter.
    """
    path, i = [], loop.start
    while i < loop.stop:
        one = code[i]
        path.append(one)
        i += 1
        if one.name == "BRA" and one.target is not None and i < one.target <= loop.stop:
            skipped = code[i : one.target]
            i = i if any(other.kind in ("matrix", "loads") for other in skipped) else one.target
    return tuple(path)


def by_class(code: Sequence[Instruction]) -> Counter[str]:
    """How many of each class."""
    return Counter(one.kind for one in code)

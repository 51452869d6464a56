"""Compiled functions are kept on disk, and compiled anew when any of their sources changes."""

import gc
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from numba import njit, typeof
from numba.core.errors import UnsupportedError

from nearbank.compiled import compiled, compiled_part, source_stamp

CALLER = """
from nearbank.compiled import compiled, compiled_part
from parts.inner import step

@compiled_part
def twice(x):
    return step(step(x))

@compiled
def run(x):
    return twice(x)
"""
INNER = """
from nearbank.compiled import compiled_part
from parts.constants import MORE

@compiled_part
def step(x):
    return x + MORE
"""
FILES = {"__init__": "", "caller": CALLER, "inner": INNER, "constants": "MORE = 1", "other": "MORE = 5"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package whose function calls another one in another file, which uses a number of a third."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    folder = tmp_path / "parts"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(text)
    yield folder
    forget()


def forget() -> None:
    source_stamp.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "parts"]:
        del sys.modules[name]


def load() -> Any:
    """The function as a new process would have it."""
    forget()
    importlib.invalidate_caches()
    return importlib.import_module("parts.caller").run


def was_cached(function: Any) -> bool:
    return bool(sum(function.stats.cache_hits.values()))


def test_it_is_compiled_once(package: Path) -> None:
    first, again = load(), None
    assert first(3) == 5
    assert not was_cached(first)
    again = load()
    assert again(3) == 5
    assert was_cached(again)


@pytest.mark.parametrize(
    ("name", "old", "new", "result"),
    [
        ("inner", "x + MORE", "x * 10", 300),
        ("constants", "1", "4", 11),
        ("caller", "return twice(x)", "return step(x)", 4),
    ],
)
def test_any_of_its_sources_makes_it_new(package: Path, name: str, old: str, new: str, result: int) -> None:
    assert load()(3) == 5
    file = package / f"{name}.py"
    file.write_text(file.read_text().replace(old, new))
    changed = load()
    assert changed(3) == result
    assert not was_cached(changed)


def test_other_files_of_the_package_do_not(package: Path) -> None:
    assert load()(3) == 5
    (package / "other.py").write_text("MORE = 6")
    again = load()
    assert again(3) == 5
    assert was_cached(again)


def test_constants_do_not_compile_a_part_anew(package: Path) -> None:
    (package / "caller.py").write_text(CALLER.replace("twice(x)\n", "twice(x) + twice(1) + twice(2)\n"))
    assert load()(3) == 5 + 3 + 4
    assert len(sys.modules["parts.caller"].twice.overloads) == 1


@compiled_part
def say(x):
    print("said", x)
    return x + 1


@compiled_part
def say_both(x):
    return say(x) + say(2 * x)


def test_a_part_is_in_the_machine_code_of_its_caller_alone(capfd: pytest.CaptureFixture[str]) -> None:
    @njit
    def run(x):
        return say_both(x)

    assert run(3) == 11
    assert capfd.readouterr().out == "said 3\nsaid 6\n"
    assert [part.library.get_pointer_to_function(part.fndesc.mangled_name) for part in say.overloads.values()] == [0]


def test_what_a_part_may_not_contain_is_refused() -> None:
    @compiled_part
    def strict(x):
        if x < 0:
            raise ValueError("negative")
        return x

    @njit
    def run(x):
        return strict(x)

    with pytest.raises(UnsupportedError, match="raise"):
        run(1)


def test_garbage_is_not_looked_for_while_compiling_and_is_afterwards(tmp_path: Path) -> None:
    found: list[str] = []

    def started(phase: str, info: dict[str, int]) -> None:
        found.append(phase)

    @compiled
    def many(x: int) -> int:
        return sum([x + i for i in range(x)])

    gc.collect()
    gc.callbacks.append(started)
    try:
        many._compiler.compile((typeof(3),), None)
        assert found == []
    finally:
        gc.callbacks.remove(started)
    assert gc.isenabled()

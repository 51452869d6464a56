"""The folders at the top are the package, and a built wheel holds all of it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("sim", "kernels", "mapping", "models")


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_package_folders_are_links_to_the_top(folder: str) -> None:
    link = ROOT / "src" / "nearbank" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("../..") / folder


def test_a_wheel_holds_every_module_and_data_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = set(wheel.namelist())
    assert _expected() <= packed
    assert not {name for name in packed if name.startswith(("sim/", "kernels/", "tests/"))}


def _expected() -> set[str]:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    ours = [name for name in tracked if name.split("/")[0] in FOLDERS]
    modules = [f"nearbank/{name}" for name in ours if name.endswith((".py", ".yaml", ".cu", ".cuh", ".safetensors"))]
    return {*modules, "nearbank/py.typed", "nearbank/__main__.py", "nearbank/trace/reader.py"}

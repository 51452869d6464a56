"""The Python of the README and of the documentation runs as it stands, page by page, from an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nearbank.kernels.backends import problem_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "ROMEO:\nBut soft, what light through yonder window breaks?\n" * 60


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=lambda page: page.stem)
def test_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tinyshakespeare.txt").write_text(TEXT, encoding="utf-8")
    names: dict[str, object] = {}
    ran = 0
    for block in blocks_of(page):
        if "cupy" in block and problem_of("cupy"):
            continue
        exec(compile(block, str(page), "exec"), names)
        ran += 1
    assert ran or problem_of("cupy")

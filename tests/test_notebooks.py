"""Every notebook runs from top to bottom as a script, and converts to an .ipynb."""

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, str(notebook)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_converts_and_opens_with_a_question(notebook: Path) -> None:
    content = jupytext.read(notebook)
    kinds = [cell.cell_type for cell in content.cells]
    assert kinds[0] == "markdown"
    assert "?" in content.cells[0].source
    assert "## Answer" in "\n".join(cell.source for cell in content.cells if cell.cell_type == "markdown")

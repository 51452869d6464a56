"""A picture is written whole or not at all."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from nearbank.errors import NearbankError
from nearbank.plot.picture import write_picture


class _FullDisk(Figure):
    def savefig(self, path: Path, **_: object) -> None:  # type: ignore[override]
        Path(path).write_text("half a pict")
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("ending", [".svg", ".png", ".pdf"])
def test_a_picture_is_written_and_nothing_beside_it(tmp_path: Path, ending: str) -> None:
    picture = write_picture(Figure(), tmp_path / f"a{ending}")
    assert list(tmp_path.iterdir()) == [picture]
    assert picture.stat().st_size > 100


def test_a_full_disk_leaves_the_older_picture(tmp_path: Path) -> None:
    older = tmp_path / "a.svg"
    older.write_text("older")
    with pytest.raises(NearbankError, match=r"a\.svg: cannot write the picture \(No space left on device\)"):
        write_picture(_FullDisk(), older)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NearbankError, match=r"expected a name that ends in \.svg, \.png or \.pdf"):
        write_picture(Figure(), tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []

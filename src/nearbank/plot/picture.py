"""Writing a figure to a file, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearbank.errors import NearbankError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_picture(figure: Figure, path: Path, **options: Any) -> Path:
    """Write `figure` in the format of `path`'s ending; an older picture stays until the new one is complete.

    options: what Figure.savefig takes, such as dpi. Raises NearbankError where the file cannot be written.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        figure.savefig(unfinished, format=path.suffix.removeprefix(".") or None, **options)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise NearbankError(f"{path}: cannot write the picture ({reason}); choose another place") from error
    except ValueError as error:
        unfinished.unlink(missing_ok=True)
        raise NearbankError(f"{path}: {error}; expected a name that ends in .svg, .png or .pdf") from error
    return path

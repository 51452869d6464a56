"""Training of our own small models: a full-precision twin, then its low-bit student. Needs torch.

torch is imported when `train` is called, so options can be built and shown without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nearbank.errors import NearbankError
from nearbank.models.training.options import TrainOptions

if TYPE_CHECKING:
    from nearbank.models.training.loop import Progress
    from nearbank.models.training.run import Restorer, Trained

__all__ = ["TrainOptions", "train"]


def train(options: TrainOptions, out: Path, progress: Progress | None = None) -> Trained | Restorer:
    """Train a twin and its low-bit student into the folder `out`, continuing a killed run found there.

    progress: called with (phase, step, steps, loss in nats) after every step; None shows a bar on a terminal and
    nothing in a pipe. Raises NearbankError on bad options, text or folder, and without torch.
    """
    try:
        from nearbank.models.training.run import run
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise NearbankError("training needs torch; install it with: pip install 'nearbank[models]'") from None
    return run(options, out, progress)

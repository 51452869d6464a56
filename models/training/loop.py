"""Two phases of training, each a counted number of steps that a kill cannot spoil.

Every random choice of a step is drawn from (seed, phase, step), so the state on disk is weights, optimiser and a step
number, and a resumed run repeats the same bits on a CPU. (On a GPU the twin's dropout goes on from another place.)
Leaves the steps themselves to `steps`, the losses to `distill` and the schedule to `optimiser`.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from nearbank.errors import NearbankError
from nearbank.models.training.network import Learner
from nearbank.models.training.optimiser import build_optimisers
from nearbank.models.training.options import TrainOptions
from nearbank.models.training.steps import Learning, Phase, steps_of
from nearbank.models.training.tasks import Task

Progress = Callable[[str, int, int, float], None]


def run_phase(
    phase: Phase,
    network: Learner,
    teacher: Learner | None,
    task: Task,
    options: TrainOptions,
    folder: Path,
    progress: Progress,
) -> None:
    """Train `network` in place, continuing from the phase's state file if there is one."""
    optimisers = build_optimisers(network, phase.lr, phase.weight_decay)
    state_file = folder / f"{phase.name}.state.pt"
    done = _load_state(state_file, network, optimisers)
    log = folder / f"{phase.name}.log.jsonl"
    _cut_log(log, done)
    network.train()
    steps = steps_of(Learning(phase, network, teacher, optimisers, task, options))
    while done < phase.steps:
        first, done = done, _next_stop(done, phase.steps, steps.together, options)
        began = time.perf_counter()
        losses = steps.take(first, done)
        rows = _rows(first, losses, (time.perf_counter() - began) / len(losses))
        if done == phase.steps or done % options.evaluate_every == 0:
            rows[-1]["val_loss_nats"] = task.validation_loss(network)
        _append(log, rows)
        if done == phase.steps or done % options.save_every == 0:
            _save_state(state_file, network, optimisers, done)
        progress(phase.name, done, phase.steps, losses[-1])


def _next_stop(done: int, steps: int, together: int, options: TrainOptions) -> int:
    """Where the next block of steps ends: at the latest where something is to be evaluated or saved."""
    ends = [(done // every + 1) * every for every in (options.evaluate_every, options.save_every)]
    return min(done + together, steps, *ends)


def _rows(first: int, losses: list[float], time_s: float) -> list[dict[str, Any]]:
    """The log's rows of a block of steps, the block's time shared out evenly."""
    return [{"step": first + 1 + i, "loss_nats": loss, "time_s": time_s} for i, loss in enumerate(losses)]


def _save_state(path: Path, network: Learner, optimisers: list[torch.optim.Optimizer], step: int) -> None:
    """Written beside and renamed, so a kill leaves the old state or the new one, never half of it."""
    state: dict[str, Any] = {
        "step": step,
        "network": network.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
    }
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise NearbankError(f"{path}: cannot save the training state ({error}); the one before it is kept") from error


def _load_state(path: Path, network: Learner, optimisers: list[torch.optim.Optimizer]) -> int:
    """The number of steps already taken."""
    if not path.exists():
        return 0
    state = _read_state(path, network)
    try:
        network.load_state_dict(state["network"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        return int(state["step"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise _no_state(path) from error


def load_network(path: Path, network: Learner) -> None:
    """Weights of a saved state into `network`."""
    try:
        network.load_state_dict(_read_state(path, network)["network"])
    except (RuntimeError, KeyError) as error:
        raise _no_state(path) from error


def _read_state(path: Path, network: Learner) -> Any:
    try:
        return torch.load(path, map_location=network.device, weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
        raise _no_state(path) from error


def _no_state(path: Path) -> NearbankError:
    return NearbankError(f"{path}: no training state of this run; remove the file to start this phase over")


def _cut_log(path: Path, steps: int) -> None:
    """Drop the rows of steps that a killed run took after its last saved state: they are taken again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:steps]), encoding="utf-8")


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def training_time_s(folder: Path) -> float:
    """Seconds that the logged steps of all phases in a run's folder took."""
    return sum(float(row["time_s"]) for log in sorted(folder.glob("*.log.jsonl")) for row in read_log(log))


def read_log(path: Path) -> list[dict[str, float]]:
    """A phase's steps: step, loss_nats, time_s, and val_loss_nats where it was measured."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

"""Two phases of training, each a counted number of steps that a kill cannot spoil.

Every random choice of a step is drawn from (seed, phase, step), so the state on disk is weights, optimiser and a step
number, and a resumed run repeats the same bits on a CPU. Leaves the losses to `distill` and the schedule to
`optimiser`.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from nearbank.errors import NearbankError
from nearbank.models.training.distill import attention_loss, hidden_loss, student_loss, task_loss
from nearbank.models.training.network import Learner, States
from nearbank.models.training.optimiser import build_optimisers, schedule, set_learning_rate
from nearbank.models.training.options import TrainOptions
from nearbank.models.training.tasks import Task

Progress = Callable[[str, int, int, float], None]


@dataclass(frozen=True)
class Phase:
    """What distinguishes the twin's training from the student's."""

    name: str
    number: int
    steps: int
    lr: float
    weight_decay: float


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
    start = _load_state(state_file, network, optimisers)
    log = folder / f"{phase.name}.log.jsonl"
    _cut_log(log, start)
    network.train()
    for step in range(start, phase.steps):
        set_learning_rate(optimisers, phase.lr * schedule(step, phase.steps, options))
        began = time.perf_counter()
        loss = _step(phase, step, network, teacher, optimisers, task, options)
        row = {"step": step + 1, "loss_nats": loss, "time_s": time.perf_counter() - began}
        last = step + 1 == phase.steps
        if last or (step + 1) % options.evaluate_every == 0:
            row["val_loss_nats"] = task.validation_loss(network)
        _append(log, row)
        if last or (step + 1) % options.save_every == 0:
            _save_state(state_file, network, optimisers, step + 1)
        progress(phase.name, step + 1, phase.steps, loss)


def _step(
    phase: Phase,
    step: int,
    network: Learner,
    teacher: Learner | None,
    optimisers: list[torch.optim.Optimizer],
    task: Task,
    options: TrainOptions,
) -> float:
    torch.manual_seed((options.seed * 4 + phase.number) * 1_000_003 + step)
    inputs, targets = _placed(task.batch(torch.default_generator), options.device)
    with torch.autocast(options.device, torch.bfloat16):
        states = network.states(inputs)
        wanted = None if teacher is None else teacher.states(inputs)
    loss = _loss(states, wanted, targets, options)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad()
    return float(loss.detach())


def _placed(part: Any, device: str) -> Any:
    """Tensors, nested in tuples, on a device."""
    return part.to(device) if isinstance(part, torch.Tensor) else tuple(_placed(inner, device) for inner in part)


def _loss(states: States, wanted: States | None, targets: torch.Tensor, options: TrainOptions) -> torch.Tensor:
    """The text's loss; with a teacher, what its logits and its inside ask for too. Weights of 0 cost no time."""
    if wanted is None:
        return task_loss(states.logits, targets)
    loss = student_loss(states.logits, wanted.logits, targets)
    if options.hidden_weight:
        loss = loss + options.hidden_weight * hidden_loss(states, wanted)
    if options.attention_weight:
        loss = loss + options.attention_weight * attention_loss(states, wanted)
    return loss


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


def _append(path: Path, row: dict[str, float]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def training_time_s(folder: Path) -> float:
    """Seconds that the logged steps of all phases in a run's folder took."""
    return sum(float(row["time_s"]) for log in sorted(folder.glob("*.log.jsonl")) for row in read_log(log))


def read_log(path: Path) -> list[dict[str, float]]:
    """A phase's steps: step, loss_nats, time_s, and val_loss_nats where it was measured."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

"""Steps of a phase, one after the other: what they compute, and how a GPU takes many of them without the host.

Every random choice of a step is drawn from (seed, phase, step) on the host, so a GPU and a CPU see the same batches.
`HostSteps` is the plain loop. `DeviceSteps` keeps batches, learning rates and losses of a block of steps on the device
and replays one step as a CUDA graph; without a GPU it takes the same steps, one launch at a time.
"""

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from nearbank.models.training.distill import attention_loss, hidden_loss, student_loss, task_loss
from nearbank.models.training.network import Learner, States
from nearbank.models.training.optimiser import schedule, set_learning_rate, working_dtype
from nearbank.models.training.options import TrainOptions
from nearbank.models.training.tasks import Batch, Task

STEPS_TOGETHER = 50  # on a device, between two looks at the losses
EAGER_STEPS = 3  # before the capture: they start learned scales, the optimisers' state and the libraries
CAPTURING = threading.Lock()  # a process captures one graph at a time, whichever threads train in it


@dataclass(frozen=True)
class Phase:
    """What distinguishes the twin's training from the student's."""

    name: str
    number: int
    steps: int
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Learning:
    """All that a step needs: who learns from whom, what, and how."""

    phase: Phase
    network: Learner
    teacher: Learner | None
    optimisers: list[torch.optim.Optimizer]
    task: Task
    options: TrainOptions

    def batch(self, step: int) -> Batch:
        """The step's windows, on the host."""
        seed = (self.options.seed * 4 + self.phase.number) * 1_000_003 + step
        return self.task.batch(torch.Generator().manual_seed(seed))

    def lr(self, step: int) -> float:
        return self.phase.lr * schedule(step, self.phase.steps, self.options)

    def learn(self, batch: Batch) -> torch.Tensor:
        """One update; the loss in nats, on the device. Nothing here waits for the device."""
        inputs, targets = batch
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        dtype = working_dtype(self.options.device)
        with torch.autocast(self.options.device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            states = self.network.states(inputs)
            wanted = None if self.teacher is None else self.teacher.states(inputs)
        loss = _loss(states, wanted, targets, self.options)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        return loss.detach()


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


class Steps(Protocol):
    """A way to take steps. together: as many as one call may take."""

    together: int

    def take(self, first: int, end: int) -> list[float]:
        """The losses of steps first … end − 1, which are done when this returns."""


class HostSteps:
    """One step at a time."""

    together = 1

    def __init__(self, learning: Learning) -> None:
        self._learning = learning

    def take(self, first: int, end: int) -> list[float]:
        return [self._one(step) for step in range(first, end)]

    def _one(self, step: int) -> float:
        learning = self._learning
        torch.manual_seed((learning.options.seed * 4 + learning.phase.number) * 1_000_003 + step)  # dropout
        set_learning_rate(learning.optimisers, learning.lr(step))
        return float(learning.learn(_each(learning.batch(step), lambda part: part.to(learning.options.device))))


class DeviceSteps:
    """A block of steps at a time, each the same launches on the same memory, so that a graph can hold them.

    On a GPU all of them run on a stream of their own, with the libraries' workspaces of that stream: what threads train
    side by side runs side by side.
    """

    together = STEPS_TOGETHER

    def __init__(self, learning: Learning) -> None:
        self._learning = learning
        device = learning.options.device
        self._at = torch.zeros(1, dtype=torch.int64, device=device)  # the step within the block
        self._rates = torch.zeros(self.together, device=device)
        self._losses = torch.zeros(self.together, device=device)
        self._rate = torch.zeros((), device=device)
        self._batches: Any = None  # as a batch, each tensor [together, …]
        self._one: Callable[[], None] = self._step
        self._taken = 0
        self._stream: Any = torch.cuda.Stream() if device == "cuda" else None  # type: ignore[no-untyped-call]
        set_learning_rate(learning.optimisers, self._rate)

    def take(self, first: int, end: int) -> list[float]:
        if self._stream is None:
            return self._block(first, end)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            return self._block(first, end)

    def _block(self, first: int, end: int) -> list[float]:
        self._fill(range(first, end))
        for _ in range(first, end):
            if self._taken == EAGER_STEPS and self._stream is not None:
                self._one = self._captured()
            self._one()
            self._taken += 1
        return [float(loss) for loss in self._losses[: end - first].tolist()]

    def _fill(self, steps: range) -> None:
        """The block's batches and rates."""
        learning = self._learning
        drawn = _stacked([learning.batch(step) for step in steps])
        if self._batches is None:
            device = learning.options.device
            self._batches = _each(drawn, lambda part: part.new_zeros((self.together, *part.shape[1:]), device=device))
        _copy(drawn, self._batches)
        self._rates[: len(steps)].copy_(torch.tensor([learning.lr(step) for step in steps]))
        self._at.zero_()

    def _step(self) -> None:
        self._rate.copy_(self._rates.index_select(0, self._at)[0])
        batch = _each(self._batches, lambda part: part.index_select(0, self._at)[0])
        self._losses.index_copy_(0, self._at, self._learning.learn(batch)[None])
        self._at.add_(1)

    def _captured(self) -> Callable[[], None]:
        """One step as a graph; where capturing fails, the launches one by one, and a warning."""
        graph = torch.cuda.CUDAGraph()
        try:
            with CAPTURING, torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._step()
        except RuntimeError as error:
            warnings.warn(f"steps are launched one by one: no CUDA graph ({error})", stacklevel=2)
            return self._step
        return graph.replay


def steps_of(learning: Learning) -> Steps:
    """The fastest way on the options' device."""
    return DeviceSteps(learning) if learning.options.device == "cuda" else HostSteps(learning)


def _each(part: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Tensors, nested in tuples, changed one by one."""
    return change(part) if isinstance(part, torch.Tensor) else tuple(_each(inner, change) for inner in part)


def _stacked(parts: Sequence[Any]) -> Any:
    """Equal nests of tensors as one nest of tensors with one more axis in front."""
    if isinstance(parts[0], torch.Tensor):
        return torch.stack(list(parts))
    return tuple(_stacked(inner) for inner in zip(*parts, strict=True))


def _copy(source: Any, target: Any) -> None:
    """Nested rows into the first rows of nested buffers."""
    if isinstance(source, torch.Tensor):
        target[: len(source)].copy_(source)
        return
    for one, other in zip(source, target, strict=True):
        _copy(one, other)

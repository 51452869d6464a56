"""What a training run is told: the network's size, the schedule of the twin and of its student, the seed.

Leaves reading the text to `data` and the steps themselves to `loop`.
"""

from dataclasses import dataclass
from pathlib import Path

from nearbank.errors import NearbankError
from nearbank.models.quantize import check_variant
from nearbank.models.training.recipes import Recipe, recipe_named

TASKS = ("continue", "restore")
SPAN = 5  # characters that the task "restore" damages together


@dataclass(frozen=True)
class TrainOptions:
    """One training run. Two runs with equal options on one machine give the same bits.

    task: "continue" a text, with a decoder, or "restore" damaged text, with an encoder and a decoder of `layers` blocks
    each. precision: of `nearbank.models.training.recipes`; form: the quantisers', "paper" or "reference". teacher: the
    folder of a finished run whose twin teaches; without one the twin is trained first. "fp" without a teacher stops
    there, with one it is the full-precision control: as many steps as a student, the same batches and losses, no
    rounding.

    `twin_lr` and `student_lr` are the peaks of a schedule that warms up over `warmup_steps`, holds, and falls
    linearly to zero over the last `decay_percent` of the steps. hidden_weight, attention_weight: of the distances
    from the teacher's hidden states and attention scores, beside the loss of 1 for the text and the teacher's logits.
    """

    text: Path
    name: str = "ternary"
    task: str = "continue"
    layers: int = 4
    width: int = 256
    heads: int = 4
    context: int = 256
    batch: int = 16
    twin_steps: int = 1550
    student_steps: int = 1700
    twin_lr: float = 2e-3
    student_lr: float = 2e-3
    warmup_steps: int = 40
    decay_percent: int = 35
    dropout: float = 0.1
    weight_decay: float = 0.1
    precision: str = "2-8"
    form: str = "paper"
    teacher: Path | None = None
    hidden_weight: float = 0.0
    attention_weight: float = 0.0
    seed: int = 1
    threads: int = 2
    device: str = "cpu"
    save_every: int = 100
    evaluate_every: int = 500

    def __post_init__(self) -> None:
        for name in _COUNTS:
            _at_least_one(name, getattr(self, name))
        for name in ("twin_lr", "student_lr"):
            if not 0 < getattr(self, name) < 1:
                raise NearbankError(f"{name} is {getattr(self, name)}; expected a learning rate above 0 and below 1")
        if self.task not in TASKS:
            raise NearbankError(f"unknown task {self.task!r}; known: {', '.join(TASKS)}")
        if self.task == "restore" and self.context % SPAN:
            raise NearbankError(f"context {self.context} is not a multiple of {SPAN}, the length of a damaged span")
        if recipe_named(self.precision).embeddings != "fp32" and self.task != "restore":
            raise NearbankError(f"precision {self.precision} rounds embeddings, which only the task 'restore' does")
        check_variant(self.form)
        for name in ("hidden_weight", "attention_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise NearbankError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not self.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise NearbankError(f"name {self.name!r} is no file name; expected letters, digits, '.', '-' and '_'")
        if self.width % self.heads:
            raise NearbankError(
                f"width {self.width} is not a multiple of heads {self.heads}; choose a width that heads divide"
            )
        if self.device not in ("cpu", "cuda"):
            raise NearbankError(f"unknown device {self.device!r}; choose cpu or cuda")
        if not 0 <= self.dropout < 1:
            raise NearbankError(f"dropout {self.dropout} is outside 0 … 1; choose for example 0.1")
        if not 0 <= self.decay_percent <= 100 or self.warmup_steps < 0:
            raise NearbankError(
                f"schedule: decay_percent {self.decay_percent}, warmup_steps {self.warmup_steps}; "
                "expected 0 … 100 and 0 or more"
            )
        if self.seed < 0:
            raise NearbankError(f"seed {self.seed} is negative; choose 0 or more")

    @property
    def recipe(self) -> Recipe:
        """What the student is made of."""
        return recipe_named(self.precision)

    @property
    def has_student(self) -> bool:
        """False where the run ends with the full-precision twin."""
        return self.recipe.rounds or self.teacher is not None


_COUNTS = (
    "layers", "width", "heads", "context", "batch", "twin_steps", "student_steps", "threads", "save_every",
    "evaluate_every",
)  # fmt: skip


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise NearbankError(f"{name} is {value}; expected a whole number of at least 1")

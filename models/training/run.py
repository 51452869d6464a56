"""The whole run behind `nearbank train`: text in; full-precision twin, low-bit student, checkpoint and card out."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nearbank.errors import NearbankError
from nearbank.formats import FORMATS
from nearbank.models.checkpoint import Checkpoint, save_checkpoint
from nearbank.models.training.card import card_text
from nearbank.models.training.data import Corpus, read_corpus
from nearbank.models.training.export import pack_network
from nearbank.models.training.loop import Progress, load_network, read_log, run_phase, training_time_s
from nearbank.models.training.network import EXACT, CharGpt, Learner, Rounding
from nearbank.models.training.options import TrainOptions
from nearbank.models.training.progress import training_bar
from nearbank.models.training.seq2seq import SpanBart
from nearbank.models.training.steps import Phase
from nearbank.models.training.tasks import EXTRA_TOKENS, Restoring, task_of

TWIN = "twin"
OPTIONS = "options.json"


@dataclass(frozen=True)
class Trained:
    """A finished run: the packed model, where it and its card lie, and the time its steps took."""

    checkpoint: Checkpoint
    path: Path
    card: Path
    training_time_s: float

    def summary(self) -> dict[str, Any]:
        """Plain values for a table or JSON; losses in nats per character."""
        origin = self.checkpoint.origin
        return {
            "name": self.checkpoint.config.name,
            "val_loss_nats": origin.val_loss_nats,
            "val_loss_twin_nats": origin.val_loss_twin_nats,
            "twin_steps": origin.twin_steps,
            "student_steps": origin.student_steps,
            "parameters": self.checkpoint.config.parameters(),
            "checkpoint_bytes": self.path.stat().st_size,
            "training_time_s": round(self.training_time_s, 3),
            "checkpoint": str(self.path),
            "card": str(self.card),
        }


@dataclass(frozen=True)
class Restorer:
    """A finished run of the task "restore": losses over the validation split, and where the weights lie.

    `damaged_nats`: over masked and changed characters alone. The weights are those in training, before rounding.
    """

    name: str
    val_loss_nats: float
    damaged_nats: float
    twin_damaged_nats: float
    parameters: int
    block_weight_bytes: int
    path: Path
    training_time_s: float

    def summary(self) -> dict[str, Any]:
        """Plain values for a table or JSON."""
        return {**asdict(self), "path": str(self.path), "training_time_s": round(self.training_time_s, 3)}


def run(options: TrainOptions, out: Path, progress: Progress | None) -> Trained | Restorer:
    """See `nearbank.models.training.train`."""
    if progress is None:
        with training_bar() as bar:
            return run(options, out, bar)
    _check_device(options.device)
    torch.set_num_threads(options.threads)
    corpus = read_corpus(options.text, options.context)
    teacher = None if options.teacher is None else load_teacher(options.teacher, corpus, options)
    _claim_folder(out, options, corpus, teacher)
    try:
        twin = teacher or train_twin(corpus, options, out, progress)
        trained = train_student(twin, corpus, options, out, progress) if options.has_student else twin
        if options.task == "restore":
            return _finish_restorer(trained, twin, corpus, options, out)
        assert isinstance(trained, CharGpt) and isinstance(twin, CharGpt)
        return _finish(pack_network(trained, twin, corpus, options), corpus, options, out)
    except OSError as error:
        raise NearbankError(f"{out}: cannot write the run's files ({error}); what was written is kept") from error


def train_twin(corpus: Corpus, options: TrainOptions, folder: Path, progress: Progress) -> Learner:
    """The full-precision model, trained on the text alone."""
    twin = build_network(corpus, options, EXACT, options.dropout)
    phase = Phase(TWIN, 0, options.twin_steps, options.twin_lr, options.weight_decay)
    run_phase(phase, twin, None, task_of(corpus, options), options, folder, progress)
    return twin.eval().requires_grad_(False)


def load_teacher(folder: Path, corpus: Corpus, options: TrainOptions) -> Learner:
    """The twin of a finished run with the same text and sizes."""
    network = build_network(corpus, options, EXACT, 0.0)
    _check_teacher(folder, corpus, options)
    load_network(folder / f"{TWIN}.state.pt", network)
    return network.eval().requires_grad_(False)


def train_student(twin: Learner, corpus: Corpus, options: TrainOptions, folder: Path, progress: Progress) -> Learner:
    """The low-bit model: starts at the twin's weights, learns from the text and, unless it is naive, from the twin."""
    recipe = options.recipe
    student = build_network(corpus, options, rounding_of(options), 0.0)
    student.load_state_dict({**student.state_dict(), **twin.state_dict()})
    # No weight decay: a latent weight's size only matters relative to its row, and decay would erase what it learned.
    phase = Phase("student", 1, options.student_steps, options.student_lr, 0.0)
    teacher = twin if recipe.distilled else None
    run_phase(phase, student, teacher, task_of(corpus, options), options, folder, progress)
    return student.eval().requires_grad_(False)


def rounding_of(options: TrainOptions) -> Rounding:
    """How the options' student rounds."""
    recipe = options.recipe
    return Rounding(recipe.weights, recipe.activations, recipe.activations, options.form, recipe.embeddings)


def build_network(corpus: Corpus, options: TrainOptions, rounding: Rounding, dropout: float) -> Learner:
    """A network of the options' size with the seed's starting weights."""
    torch.manual_seed(options.seed)
    sizes = (options.layers, options.width, options.heads, options.context)
    if options.task == "restore":
        return SpanBart(len(corpus.vocabulary) + EXTRA_TOKENS, *sizes, rounding).to(options.device)
    return CharGpt(len(corpus.vocabulary), *sizes, rounding, dropout).to(options.device)


def _finish(checkpoint: Checkpoint, corpus: Corpus, options: TrainOptions, out: Path) -> Trained:
    path, card = out / f"{options.name}.safetensors", out / f"{options.name}.md"
    seconds = training_time_s(out)
    save_checkpoint(path, checkpoint)
    card.write_text(card_text(checkpoint, corpus, options, seconds), encoding="utf-8")
    return Trained(checkpoint, path, card, seconds)


def _finish_restorer(trained: Learner, twin: Learner, corpus: Corpus, options: TrainOptions, out: Path) -> Restorer:
    task = Restoring(corpus, options.batch, options.context, options.seed)
    both, damaged = task.losses(trained)
    matrices = [value for name, value in trained.state_dict().items() if ".h." in name and value.dim() == 2]
    path = out / f"{options.name}.safetensors"
    save_file({name: value.cpu().contiguous() for name, value in trained.state_dict().items()}, path)
    return Restorer(
        options.name,
        both,
        damaged,
        task.losses(twin)[1],
        sum(parameter.numel() for parameter in trained.parameters()),
        sum(FORMATS[options.recipe.stored_as].bytes_for(*matrix.shape) for matrix in matrices),
        path,
        training_time_s(out),
    )


def _check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise NearbankError("device cuda: torch finds no GPU here; choose device cpu or install a CUDA build of torch")


# Options that change how a run is watched or where its parts lie, not what it computes.
_FREE = ("text", "teacher", "save_every", "evaluate_every")
_STUDENT = ("student_steps", "student_lr", "hidden_weight", "attention_weight", "form")


def _claim_folder(out: Path, options: TrainOptions, corpus: Corpus, teacher: Learner | None) -> None:
    """Make the folder, or check that the run found in it is this very one."""
    unused = _FREE if options.has_student else (*_FREE, *_STUDENT)
    wanted = {key: value for key, value in asdict(options).items() if key not in unused}
    wanted["data_sha256"] = corpus.sha256
    wanted["teacher_sha256"] = None if teacher is None else _digest(teacher)
    record = out / OPTIONS
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            record.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NearbankError(f"{out}: cannot be used for a training run ({error}); choose another folder") from error
    _check_same_run(out, wanted, found)


def _digest(network: Learner) -> str:
    """SHA-256 over the weights."""
    digest = hashlib.sha256()
    for _, tensor in sorted(network.state_dict().items()):
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _check_teacher(folder: Path, corpus: Corpus, options: TrainOptions) -> None:
    """The teacher's run took all its steps, on the same text, with the same sizes."""
    try:
        found = json.loads((folder / OPTIONS).read_text(encoding="utf-8"))
        steps = len(read_log(folder / f"{TWIN}.log.jsonl"))
    except (OSError, ValueError) as error:
        raise NearbankError(f"{folder}: no run that trained a twin ({error}); train one with --precision fp") from error
    wanted = {key: getattr(options, key) for key in ("task", "layers", "width", "heads", "context")}
    _check_same_run(folder, {**wanted, "data_sha256": corpus.sha256}, found)
    if steps < found["twin_steps"]:
        raise NearbankError(f"{folder}: its twin took {steps} of {found['twin_steps']} steps; finish that run first")


def _check_same_run(out: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    different = [key for key in wanted if found.get(key) != wanted[key]]
    if different:
        key = different[0]
        raise NearbankError(
            f"{out}: holds a run with {key} {found.get(key)!r}, not {wanted[key]!r}; "
            "give the same options to continue it, or another folder"
        )

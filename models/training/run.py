"""The whole run behind `nearbank train`: text in; full-precision twin, ternary student, checkpoint and card out."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nearbank.errors import NearbankError
from nearbank.models.checkpoint import Checkpoint, save_checkpoint
from nearbank.models.training.card import card_text
from nearbank.models.training.data import Corpus, read_corpus
from nearbank.models.training.export import pack_student
from nearbank.models.training.loop import Phase, Progress, run_phase, training_time_s
from nearbank.models.training.network import CharGpt
from nearbank.models.training.options import TrainOptions
from nearbank.models.training.progress import training_bar


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


def run(options: TrainOptions, out: Path, progress: Progress | None) -> Trained:
    """See `nearbank.models.training.train`."""
    if progress is None:
        with training_bar() as bar:
            return run(options, out, bar)
    _check_device(options.device)
    torch.set_num_threads(options.threads)
    corpus = read_corpus(options.text, options.context)
    _claim_folder(out, options, corpus)
    try:
        twin = train_twin(corpus, options, out, progress)
        student = train_student(twin, corpus, options, out, progress)
        return _finish(pack_student(student, twin, corpus, options), corpus, options, out)
    except OSError as error:
        raise NearbankError(f"{out}: cannot write the run's files ({error}); what was written is kept") from error


def train_twin(corpus: Corpus, options: TrainOptions, folder: Path, progress: Progress) -> CharGpt:
    """The full-precision model, trained on the text alone."""
    twin = build_network(corpus, options, None, options.dropout)
    phase = Phase("twin", 0, options.twin_steps, options.twin_lr, options.weight_decay)
    run_phase(phase, twin, None, corpus, options, folder, progress)
    return twin.eval().requires_grad_(False)


def train_student(twin: CharGpt, corpus: Corpus, options: TrainOptions, folder: Path, progress: Progress) -> CharGpt:
    """The ternary model: starts at the twin's weights, learns from the text and from the twin's probabilities."""
    student = build_network(corpus, options, options.variant, 0.0)
    student.load_state_dict(twin.state_dict())
    # No weight decay: a latent weight's size only matters relative to its row, and decay would erase what it learned.
    phase = Phase("student", 1, options.student_steps, options.student_lr, 0.0)
    run_phase(phase, student, twin, corpus, options, folder, progress)
    return student.eval().requires_grad_(False)


def build_network(corpus: Corpus, options: TrainOptions, variant: str | None, dropout: float) -> CharGpt:
    """A network of the options' size with the seed's starting weights."""
    torch.manual_seed(options.seed)
    network = CharGpt(
        len(corpus.vocabulary),
        options.layers,
        options.width,
        options.heads,
        options.context,
        variant,
        dropout,
        options.weights,
    )
    return network.to(options.device)


def _finish(checkpoint: Checkpoint, corpus: Corpus, options: TrainOptions, out: Path) -> Trained:
    path, card = out / f"{options.name}.safetensors", out / f"{options.name}.md"
    seconds = training_time_s(out)
    save_checkpoint(path, checkpoint)
    card.write_text(card_text(checkpoint, corpus, options, seconds), encoding="utf-8")
    return Trained(checkpoint, path, card, seconds)


def _check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise NearbankError("device cuda: torch finds no GPU here; choose device cpu or install a CUDA build of torch")


# Options that change how a run is watched, not what it computes.
_FREE = ("text", "save_every", "evaluate_every")


def _claim_folder(out: Path, options: TrainOptions, corpus: Corpus) -> None:
    """Make the folder, or check that the run found in it is this very one."""
    wanted = {key: value for key, value in asdict(options).items() if key not in _FREE}
    wanted["data_sha256"] = corpus.sha256
    record = out / "options.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            record.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NearbankError(f"{out}: cannot be used for a training run ({error}); choose another folder") from error
    _check_same_run(out, wanted, found)


def _check_same_run(out: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    different = [key for key in wanted if found.get(key) != wanted[key]]
    if different:
        key = different[0]
        raise NearbankError(
            f"{out}: holds a run with {key} {found.get(key)!r}, not {wanted[key]!r}; "
            "give the same options to continue it, or another folder"
        )

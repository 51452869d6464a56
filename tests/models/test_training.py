"""Training on micro models: it learns, it distils, and a killed run ends in the same bits."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nearbank.errors import NearbankError  # noqa: E402
from nearbank.models.checkpoint import load_checkpoint  # noqa: E402
from nearbank.models.execution import Pass  # noqa: E402
from nearbank.models.load import checkpoint_model  # noqa: E402
from nearbank.models.training import TrainOptions, train  # noqa: E402
from nearbank.models.training.data import read_corpus, training_batch, validation_batches  # noqa: E402
from nearbank.models.training.deployed import deployed_logits  # noqa: E402
from nearbank.models.training.distill import (  # noqa: E402
    attention_loss,
    distillation_loss,
    hidden_loss,
    student_loss,
    task_loss,
)
from nearbank.models.training.export import unpack_network  # noqa: E402
from nearbank.models.training.network import CharGpt, Rounding, Scores, States  # noqa: E402
from nearbank.models.training.optimiser import schedule  # noqa: E402
from nearbank.models.training.recipes import RECIPES, Recipe  # noqa: E402
from nearbank.models.training.run import rounding_of  # noqa: E402
from nearbank.models.training.seq2seq import SpanBart  # noqa: E402
from nearbank.models.training.tasks import Restoring  # noqa: E402

TEXT = "the cat sat on the mat; the dog sat on the log. " * 30


def quiet(_phase: str, _step: int, _steps: int, _loss: float) -> None:
    """No bar in tests."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


MICRO = TrainOptions(
    text=Path(), layers=1, width=16, heads=2, context=16, batch=4, twin_steps=12, student_steps=12, warmup_steps=2,
    save_every=5, evaluate_every=6, threads=1,
)  # fmt: skip


def micro(text: Path, **changes: Any) -> TrainOptions:
    return replace(MICRO, text=text, **changes)


# --- the text


def test_the_split_and_the_vocabulary(text: Path) -> None:
    corpus = read_corpus(text, 16)
    assert corpus.vocabulary == "".join(sorted(set(TEXT)))
    both = torch.cat([corpus.train, corpus.validation])
    assert "".join(corpus.vocabulary[i] for i in both) == TEXT
    assert len(corpus.train) == len(TEXT) * 9 // 10


@pytest.mark.parametrize("length", [2, 9, 16, 17, 33, 50])
def test_validation_predicts_every_token_but_the_first_once(length: int) -> None:
    tokens = torch.arange(length)
    seen = []
    for inputs, targets in validation_batches(tokens, batch=2, context=8):
        assert inputs.shape == targets.shape
        assert inputs.shape[0] <= 2
        assert inputs.shape[1] <= 8
        assert torch.equal(inputs + 1, targets)
        seen += targets.flatten().tolist()
    assert seen == list(range(1, length))


def test_training_windows_are_drawn_from_the_first_part_only(text: Path) -> None:
    corpus = read_corpus(text, 16)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = training_batch(corpus, 200, 16, generator)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    windows = corpus.train.unfold(0, 17, 1)
    for row, target in zip(inputs[:20], targets[:20], strict=True):
        whole = torch.cat([row, target[-1:]])
        assert (windows == whole).all(1).any()


# --- losses and schedule


def test_losses_by_hand() -> None:
    """Teacher 1/2 1/2, student 3/4 1/4: KL = ½ln(½/¾) + ½ln(½/¼); the text says the first: −ln ¾."""
    teacher, student = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.75, 0.25]]]).log()
    kl = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    target = torch.tensor([[0]])
    assert float(distillation_loss(student, teacher)) == pytest.approx(kl, abs=1e-6)
    assert float(task_loss(student, target)) == pytest.approx(-np.log(0.75), abs=1e-6)
    assert float(student_loss(student, teacher, target)) == pytest.approx((kl - np.log(0.75)) / 2, abs=1e-6)
    assert float(distillation_loss(teacher, teacher)) == pytest.approx(0, abs=1e-7)


def test_inner_losses_by_hand() -> None:
    """Hidden states: 0.25 / 1 and 0, over two layers. Scores: of the 3 attended pairs of 2 × 2, one is off by 3."""
    logits, one = torch.zeros(1, 2, 4), torch.ones(1, 2, 1)
    zero, off = torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.0, 0], [3, 0]]]])
    student = States(logits, [one / 2, one], [Scores(off, 3 / 4), Scores(zero)])
    teacher = States(logits, [one, one], [Scores(zero, 3 / 4), Scores(zero)])
    assert float(hidden_loss(student, teacher)) == pytest.approx(0.125)
    assert float(attention_loss(student, teacher)) == pytest.approx(9 / 3 / 2)


def test_the_schedule_warms_up_holds_and_falls(text: Path) -> None:
    options = micro(text, warmup_steps=4, decay_percent=50)
    shares = [schedule(step, 20, options) for step in range(20)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4:11] == [1.0] * 7
    assert shares[11:] == pytest.approx([0.1 * (20 - step) for step in range(11, 20)])


# --- the network


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_the_network_is_causal(recipe: Recipe) -> None:
    rounding = Rounding(recipe.weights, recipe.activations, recipe.activations)
    torch.manual_seed(0)
    network = CharGpt(11, 2, 16, 2, 12, rounding).eval()
    tokens = torch.randint(11, (1, 12))
    changed = tokens.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 11
    with torch.no_grad():
        assert torch.equal(network(tokens)[0, :8], network(changed)[0, :8])
        assert not torch.equal(network(tokens)[0, 8:], network(changed)[0, 8:])


def test_attention_equals_torchs_own() -> None:
    from torch.nn import functional

    torch.manual_seed(0)
    attention = CharGpt(5, 1, 16, 2, 8).h[0].attn
    x = torch.randn(3, 8, 16)
    q, k, v = attention.qkv(x).view(3, 8, 3, 2, 8).permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(attention(x)[0], attention.proj(mixed.transpose(1, 2).reshape(3, 8, 16)), atol=1e-6)


# --- runs


def test_a_run_learns_and_its_student_follows(text: Path, tmp_path: Path) -> None:
    """This text repeats every 48 characters, so a model that reads its context nears 0 nats."""
    options = micro(text, width=32, batch=8, twin_steps=60, student_steps=40, context=24, twin_lr=2e-2, student_lr=1e-2)
    trained = train(options, tmp_path / "run", quiet)
    origin = trained.checkpoint.origin
    uniform = np.log(len(trained.checkpoint.vocabulary))
    assert origin.val_loss_twin_nats < 0.3 * uniform
    assert origin.val_loss_nats < 0.5 * uniform
    read = load_checkpoint(trained.path)
    assert all(np.array_equal(read.tensors[name], tensor) for name, tensor in trained.checkpoint.tensors.items())
    assert f"{origin.val_loss_nats:.4f}" in trained.card.read_text(encoding="utf-8")
    assert trained.summary()["checkpoint_bytes"] == trained.path.stat().st_size
    rows = [json.loads(line) for line in (tmp_path / "run" / "student.log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert "val_loss_nats" in rows[5]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_training import micro
from nearbank.models.training import train

def kill(phase, step, steps, loss):
    if (phase, step) == ("student", 9):
        os.kill(os.getpid(), signal.SIGKILL)

train(micro(Path({text!r})), Path({out!r}), kill)
"""


def interrupt(phase: str, step: int, _steps: int, _loss: float) -> None:
    if (phase, step) == ("twin", 8):
        raise KeyboardInterrupt


def test_a_stopped_run_ends_in_the_same_bits(text: Path, tmp_path: Path) -> None:
    """Interrupted in the twin's training, then kill -9 in the student's, each between two saved states."""
    straight = train(micro(text), tmp_path / "straight", quiet)
    with pytest.raises(KeyboardInterrupt):
        train(micro(text), tmp_path / "killed", interrupt)
    code = KILLED.format(tests=str(Path(__file__).parent), text=str(text), out=str(tmp_path / "killed"))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    resumed = train(micro(text), tmp_path / "killed", quiet)
    assert resumed.checkpoint.origin == straight.checkpoint.origin
    for name, tensor in straight.checkpoint.tensors.items():
        assert np.array_equal(resumed.checkpoint.tensors[name], tensor), name
    for log in ("twin.log.jsonl", "student.log.jsonl"):
        runs = [
            [json.loads(line)["loss_nats"] for line in (tmp_path / run / log).read_text().splitlines()]
            for run in ("straight", "killed")
        ]
        assert runs[0] == runs[1]


STUDENTS = [recipe for recipe in RECIPES.values() if recipe.rounds and recipe.embeddings == "fp32"]


@pytest.mark.parametrize("recipe", STUDENTS, ids=lambda recipe: recipe.name)
def test_every_student_runs_packed_as_torch_computes_it(text: Path, tmp_path: Path, recipe: Recipe) -> None:
    """Trained, packed, written, read, and run by the kernels: the logits of torch with the deployed arithmetic."""
    options = micro(text, precision=recipe.name, form="reference", hidden_weight=1.0, attention_weight=0.1)
    read = load_checkpoint(train(options, tmp_path / "run", quiet).path)
    assert (read.config.weights, read.config.activations) == (recipe.stored_as, recipe.activations)
    tokens = read_corpus(text, 16).validation[:16]
    expected = deployed_logits(read, tokens).numpy()
    for backend in ("numpy", "numba"):
        model = checkpoint_model(read, backend)
        np.testing.assert_allclose(model.logits(tokens.numpy()), expected, rtol=0, atol=1e-5)
    network = unpack_network(read.config, read.tensors)
    assert np.abs(network(tokens[None])[0].numpy() - expected).mean() < 0.05


def test_cached_attention_of_codes_equals_a_whole_pass(text: Path, tmp_path: Path) -> None:
    """Token by token, and all at once; and the cache counts 2-bit codes with learned scales alone."""
    options = micro(text, precision="2-2", twin_steps=2, student_steps=2)
    model = checkpoint_model(train(options, tmp_path / "run", quiet).checkpoint, "numpy")
    tokens, cache = read_corpus(text, 16).validation[:9].numpy(), model.cache(9)
    single = [model.network.forward(Pass(tokens[i : i + 1], [1], [cache])) for i in range(9)]
    np.testing.assert_array_equal(np.concatenate(single), model.logits(tokens))
    assert model.kv_bytes_per_token() == 2 * 2 * 8 // 4  # K and V of 2 heads of 8 values, 4 values a byte


def test_a_teacher_from_another_run(text: Path, tmp_path: Path) -> None:
    """It teaches as if trained here, control and student alike; a run of other sizes or an unfinished one does not."""
    train(micro(text, precision="fp"), tmp_path / "fp", quiet)
    taught = train(micro(text, teacher=tmp_path / "fp"), tmp_path / "taught", quiet)
    alone = train(micro(text), tmp_path / "alone", quiet)
    for name, tensor in alone.checkpoint.tensors.items():
        assert np.array_equal(taught.checkpoint.tensors[name], tensor), name
    control = train(micro(text, precision="fp", teacher=tmp_path / "fp"), tmp_path / "control", quiet)
    assert control.checkpoint.origin.student_steps == 12
    assert control.checkpoint.origin.val_loss_nats < control.checkpoint.origin.val_loss_twin_nats
    with pytest.raises(NearbankError, match="holds a run with width 16, not 32"):
        train(micro(text, width=32, teacher=tmp_path / "fp"), tmp_path / "wide", quiet)
    log = tmp_path / "fp" / "twin.log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(NearbankError, match="took 5 of 12 steps; finish that run first"):
        train(micro(text, teacher=tmp_path / "fp"), tmp_path / "early", quiet)
    with pytest.raises(NearbankError, match="no run that trained a twin"):
        train(micro(text, teacher=tmp_path / "none"), tmp_path / "none2", quiet)


# --- restoring damaged text with an encoder and a decoder


def test_damage_by_spans(text: Path) -> None:
    """Whole spans of five are masked or shuffled, about 15 % each; a shuffled span has the same characters."""
    corpus = read_corpus(text, 15)
    task = Restoring(corpus, 4, 15, seed=1)
    windows = corpus.train.unfold(0, 15, 1)[:1000]
    damaged = task.damaged(windows, torch.Generator().manual_seed(0))
    before, after = windows.reshape(-1, 5), damaged.view(-1, 5)
    masked = (after == len(corpus.vocabulary)).all(1)
    assert not (after[~masked] == len(corpus.vocabulary)).any()
    assert torch.equal(after[~masked].sort(1).values, before[~masked].sort(1).values)
    assert 0.12 < float(masked.float().mean()) < 0.18
    shuffled = (after != before).any(1) & ~masked
    assert 0.10 < float(shuffled.float().mean()) < 0.18


@pytest.mark.parametrize("precision", ["fp", "2-2-8", "1-1-8", "2-2", "1-1"])
def test_the_decoder_sees_the_whole_source_and_nothing_ahead(precision: str) -> None:
    torch.manual_seed(0)
    recipe = RECIPES[precision]
    rounding = Rounding(recipe.weights, recipe.activations, recipe.activations, embeddings=recipe.embeddings)
    network = SpanBart(11, 1, 16, 2, 10, rounding).eval()
    for parameter in network.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(20)  # fresh weights are so small that codes hardly change
    source, before = torch.randint(11, (2, 1, 10))
    later, last = before.clone(), source.clone()
    later[0, 6:] = (later[0, 6:] + 1) % 11
    last[0, 9] = (last[0, 9] + 1) % 11
    with torch.no_grad():
        logits = network((source, before))
        assert torch.equal(logits[0, :6], network((source, later))[0, :6])
        assert not torch.equal(logits[0, 6:], network((source, later))[0, 6:])
        assert not torch.equal(logits[0, 0], network((last, before))[0, 0])


def test_a_restorer_learns_and_resumes(text: Path, tmp_path: Path) -> None:
    options = micro(text, task="restore", context=15, precision="2-2-8", twin_steps=30, student_steps=30)
    whole = train(options, tmp_path / "whole", quiet)
    again = train(options, tmp_path / "whole", quiet)
    assert again.summary() == whole.summary()
    assert whole.damaged_nats < np.log(len(set(TEXT)) + 2)
    # Two halves of one block each: q + k + v and proj, fc1 and fc2, and in the decoder q, kv and proj of the source.
    matrices = 2 * [(48, 16), (16, 16), (64, 16), (16, 64)] + [(16, 16), (32, 16), (16, 16)]
    assert whole.block_weight_bytes == sum(n * (k // 4 + 4) for n, k in matrices)


def test_seeds_matter(text: Path, tmp_path: Path) -> None:
    first, second = (
        train(micro(text, seed=seed, twin_steps=2, student_steps=2), tmp_path / str(seed), quiet) for seed in (1, 2)
    )
    assert not np.array_equal(first.checkpoint.tensors["wte"], second.checkpoint.tensors["wte"])


def test_the_packed_values_compute_what_the_student_computed(text: Path, tmp_path: Path) -> None:
    """Rounding fp16 embeddings aside, packing changes nothing: the last student state, fake-quantised, agrees."""
    options = micro(text)
    checkpoint = train(options, tmp_path / "run", quiet).checkpoint
    student = CharGpt(len(checkpoint.vocabulary), 1, 16, 2, 16, rounding_of(options)).eval()
    state = torch.load(tmp_path / "run" / "student.state.pt", weights_only=True)["network"]
    state = {k: v.half().float() if k in ("wte.weight", "wpe.weight") else v for k, v in state.items()}
    student.load_state_dict(state)
    packed = unpack_network(checkpoint.config, checkpoint.tensors)
    tokens = read_corpus(text, 16).validation[:16][None]
    with torch.no_grad():
        assert torch.allclose(student(tokens), packed(tokens), atol=2e-3)


# --- bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 15}, "width 15 is not a multiple of heads 2"),
        ({"layers": 0}, "layers is 0"),
        ({"batch": -3}, "batch is -3"),
        ({"device": "tpu"}, "unknown device 'tpu'; choose cpu or cuda"),
        ({"form": "mean"}, "known: paper, reference"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"seed": -1}, "seed -1"),
        ({"precision": "4-4"}, "unknown precision '4-4'; known: fp, 2-8"),
        ({"hidden_weight": -1.0}, "hidden_weight is -1.0"),
        ({"task": "translate"}, "unknown task 'translate'; known: continue, restore"),
        ({"task": "restore"}, "context 16 is not a multiple of 5"),
        ({"precision": "2-2-8"}, "rounds embeddings, which only the task 'restore' does"),
        ({"name": "../x"}, "is no file name"),
        ({"twin_lr": 0.0}, "twin_lr is 0.0"),
        ({"decay_percent": 101}, "decay_percent 101"),
    ],
)
def test_bad_options_are_refused(text: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(NearbankError, match=words):
        micro(text, **changes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read the text"),
        (b"", "too few"),
        (b"short", "too few"),
        (b"abc\xff" * 99, "not UTF-8 text .byte 3."),
    ],
)
def test_bad_texts_are_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NearbankError, match=words):
        train(micro(path), tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


def test_another_run_in_the_folder_is_refused(text: Path, tmp_path: Path) -> None:
    train(micro(text, twin_steps=1, student_steps=1), tmp_path / "run", quiet)
    with pytest.raises(NearbankError, match="holds a run with seed 1, not 2"):
        train(micro(text, twin_steps=1, student_steps=1, seed=2), tmp_path / "run", quiet)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(NearbankError, match="cannot be used for a training run"):
        train(micro(text), tmp_path / "file", quiet)


def test_a_damaged_state_is_refused(text: Path, tmp_path: Path) -> None:
    options = micro(text, twin_steps=1, student_steps=1)
    train(options, tmp_path / "run", quiet)
    state = tmp_path / "run" / "twin.state.pt"
    whole = state.read_bytes()
    other = (tmp_path / "run" / "options.json").read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], other):
        state.write_bytes(damaged)
        with pytest.raises(NearbankError, match="no training state of this run; remove the file"):
            train(options, tmp_path / "run", quiet)


def test_a_place_that_cannot_be_written_is_one_line(text: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "twin.state.part").mkdir(parents=True)
    with pytest.raises(NearbankError, match="cannot save the training state"):
        train(micro(text, twin_steps=1, student_steps=1), tmp_path / "run", quiet)
    (tmp_path / "again" / "twin.log.jsonl").mkdir(parents=True)
    with pytest.raises(NearbankError, match="cannot write the run's files"):
        train(micro(text, twin_steps=1, student_steps=1), tmp_path / "again", quiet)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(NearbankError, match="torch finds no GPU here"):
        train(micro(text, device="cuda"), tmp_path / "run", quiet)


def test_a_pipe_sees_no_bar(text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(micro(text, twin_steps=1, student_steps=1), tmp_path / "run")
    assert capfd.readouterr() == ("", "")


# --- the command


def test_the_command_trains_any_precision_and_draws_the_loss(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nearbank.cli.app import run

    sizes = "--layers 1 --width 16 --heads 2 --context 16 --batch 4 --twin-steps 21 --student-steps 3 --threads 1"
    chosen = f"train {text} --out {tmp_path} --name tiny --variant 1-1 --hidden-weight 0.5 --seed 7 --json {sizes}"
    assert run(chosen.split()) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["name"], made["student_steps"]) == ("tiny", 3)
    assert Path(made["plot"]).read_text().startswith("<?xml")
    card = Path(made["card"]).read_text()
    assert "binary" in card and "--precision 1-1" in card and "0.5 ×" in card
    assert load_checkpoint(Path(made["checkpoint"])).config.attention == "elastic1"
    assert run(f"train {text} --out {tmp_path} --precision 3-3".split()) == 2
    assert "unknown precision '3-3'; known: fp, 2-8" in capsys.readouterr().err

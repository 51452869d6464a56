"""Steps taken on a device, many at a time, are the steps of the plain loop; our Muon is torch's."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from nearbank.models.training import (  # noqa: E402
    TrainOptions,
    optimiser,
)
from nearbank.models.training.data import read_corpus  # noqa: E402
from nearbank.models.training.network import EXACT  # noqa: E402
from nearbank.models.training.optimiser import Muon, build_optimisers  # noqa: E402
from nearbank.models.training.run import build_network, rounding_of  # noqa: E402
from nearbank.models.training.steps import DeviceSteps, HostSteps, Learning, Phase, Steps  # noqa: E402
from nearbank.models.training.tasks import task_of  # noqa: E402

SIZES = ((48, 16), (16, 16), (64, 16), (16, 64))


@pytest.fixture
def options(tmp_path: Path) -> TrainOptions:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat; the dog sat on the log. " * 30, encoding="utf-8")
    return TrainOptions(
        text=path, layers=1, width=16, heads=2, context=10, batch=4, warmup_steps=3, threads=1, hidden_weight=1.0,
        attention_weight=0.1,
    )  # fmt: skip


def learning(options: TrainOptions) -> Learning:
    corpus = read_corpus(options.text, options.context)
    teacher = build_network(corpus, options, EXACT, 0.0).eval().requires_grad_(False)
    student = build_network(corpus, options, rounding_of(options), 0.0)
    phase = Phase("student", 1, 12, 1e-2, 0.01)
    optimisers = build_optimisers(student, phase.lr, phase.weight_decay)
    return Learning(phase, student, teacher, optimisers, task_of(corpus, options), options)


def weights(steps: Steps, learning: Learning, stops: list[int]) -> tuple[list[float], list[torch.Tensor]]:
    losses = [loss for first, end in pairwise(stops) for loss in steps.take(first, end)]
    return losses, list(learning.network.parameters())


@pytest.mark.parametrize(("precision", "task"), [("fp", "continue"), ("2-2", "continue"), ("1-1-8", "restore")])
def test_device_steps_are_host_steps(options: TrainOptions, precision: str, task: str) -> None:
    """Up to the learning rate, which a device holds in float32: blocks of 5, 3 and 4 steps, then one of 12."""
    options = replace(options, precision=precision, task=task)
    plain, together, parted = (learning(options) for _ in range(3))
    losses, wanted = weights(HostSteps(plain), plain, [0, 12])
    found, matrices = weights(DeviceSteps(together), together, [0, 12])
    assert found == pytest.approx(losses, abs=1e-3)
    assert all(torch.allclose(a, b, atol=2e-3) for a, b in zip(matrices, wanted, strict=True))
    again, same = weights(DeviceSteps(parted), parted, [0, 5, 8, 12])
    assert again == found
    assert all(torch.equal(a, b) for a, b in zip(same, matrices, strict=True))
    assert len(set(losses)) > 6


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_muon_is_torchs(decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, which torch's always takes."""
    monkeypatch.setattr(optimiser, "working_dtype", lambda _: torch.bfloat16)
    torch.manual_seed(0)
    start = [torch.randn(size) * 0.02 for size in SIZES * 2]
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    optimisers = (
        Muon(ours, 2e-3, decay, 0.95),
        torch.optim.Muon(theirs, 2e-3, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        for each in optimisers:
            each.step()
    for one, other, first in zip(ours, theirs, start, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
        assert (one - first).abs().max() > 1e-4


def test_float32_directions_are_those_of_bfloat16_up_to_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rounds of Newton-Schulz in either precision; singular values end between 0.6 and 1.3."""
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(optimiser, "working_dtype", lambda _, dtype=dtype: dtype)
        found[dtype] = optimiser.orthogonal(matrices)
        assert found[dtype].dtype == dtype
        sizes = torch.linalg.svdvals(found[dtype].float())
        assert sizes.min() > 0.6
        assert sizes.max() < 1.3
    assert (found[torch.float32] - found[torch.bfloat16].float()).abs().max() < 0.05

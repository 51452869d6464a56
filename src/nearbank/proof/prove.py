"""A model writes through its mapped programs; its tokens and logits beside those of the kernels.

proof = prove(rounded_model(load_model(backend="numpy", kv="int4"), "ternary"), "pim-gpt-ternary", prompt, 64)
proof.tokens_equal, proof.logits_bit_equal, proof.macs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from nearbank.errors import NearbankError
from nearbank.mapping import MappingOptions, Plan, plan
from nearbank.mapping.account import MACS
from nearbank.mapping.asic_arithmetic import EXACT, PIM_GPT, AsicArithmetic
from nearbank.mapping.decoder import MappedDecoder
from nearbank.models import Model, Sampling, generate
from nearbank.models.execution import Floats
from nearbank.models.generate import prompt_numbers
from nearbank.models.sketch import check_counts, sketch
from nearbank.proof.bridge import mapped_weights
from nearbank.proof.folding import context_scales, fold_channels
from nearbank.proof.twin import BankSums, KernelSums, twin_logits
from nearbank.sim.machine import load_machine

FUNCTIONS = ("exp", "divide", "over_root")  # of an AsicArithmetic
Progress = Callable[[int, int], None]  # (steps executed, steps)


@dataclass(frozen=True)
class Difference:
    """Logits against others at the same positions: the largest and the mean distance, and how often argmax agrees."""

    positions: int
    max_abs: float
    mean_abs: float
    same_argmax: int

    @classmethod
    def of(cls, logits: Floats, others: Floats) -> Difference:
        distance = np.abs(logits.astype(np.float64) - others)
        same = int((logits.argmax(axis=1) == others.argmax(axis=1)).sum())
        return cls(len(logits), float(distance.max()), float(distance.mean()), same)


@dataclass(frozen=True)
class Proof:
    """What one model wrote through its mapped programs, and what that is compared with.

    tokens: through the banks; kernel_tokens: the kernels' with operands rounded where the machine rounds.
    logits_bit_equal: against the same arithmetic without a memory. against_kernels: those kernels' logits;
    against_plain: the kernels' as they come, nothing rounded to bf16; plain_tokens_equal: tokens before those differ.
    """

    model: str
    machine: str
    weights: str
    inputs: str
    head: str
    kv: str
    asic: str
    prompt_tokens: int
    tokens: tuple[int, ...]
    kernel_tokens: tuple[int, ...]
    text: str
    kernel_text: str
    logits_bit_equal: bool
    against_kernels: Difference
    against_plain: Difference
    plain_tokens_equal: int
    commands: Mapping[str, int]
    weight_bytes: int
    kv_bytes: int
    seconds: float

    @property
    def tokens_equal(self) -> bool:
        """True when the banks and the kernels wrote the same."""
        return self.tokens == self.kernel_tokens

    @property
    def macs(self) -> int:
        """MAC commands, those that scale too."""
        return sum(self.commands.get(name, 0) for name in MACS)

    def as_dict(self) -> dict[str, Any]:
        """All fields for JSON."""
        return {**asdict(self), "commands": dict(self.commands), "tokens_equal": self.tokens_equal}


def planned(model: Model, machine: str, context: int) -> Plan:
    """The model placed with the formats it has, room for `context` tokens in its cache."""
    options = MappingOptions(weights=model.weights, kv=model.kv, max_context=context, head=head_format(model))
    return plan(model.description(), load_machine(machine), options)


def head_format(model: Model) -> str:
    """The format of the LM head."""
    return model.network.head.matrix.format.spec


def prove(
    model: Model,
    machine: str,
    prompt: str | Sequence[int],
    tokens: int,
    arithmetic: AsicArithmetic = EXACT,
    progress: Progress | None = None,
) -> Proof:
    """Write `tokens` tokens greedily through the banks, then run the kernels over the same text.

    A run of the kernels over what the banks wrote is as good as one of their own: greedy tokens are equal up to the
    first position where argmax differs, and later ones do not count.
    """
    numbers = [int(token) for token in prompt_numbers(model, prompt)]
    check_counts(model.shape, len(numbers), tokens)
    placed = planned(model, machine, len(numbers) + tokens)
    start = perf_counter()
    folded = fold_channels(model)
    decoder = MappedDecoder(placed, mapped_weights(folded, context_scales(folded)), arithmetic)
    written, logits = _write(decoder, model, numbers, tokens, progress)
    seconds = perf_counter() - start
    text = [*numbers, *written][:-1]
    kernels = twin_logits(folded, text, KernelSums())[len(numbers) - 1 :]
    plain = model.logits(text)[len(numbers) - 1 :]
    twin = twin_logits(folded, text, BankSums(placed, arithmetic))[len(numbers) - 1 :]
    same = kernels.argmax(axis=1) == written
    chosen = tuple(int(token) for token in kernels.argmax(axis=1))
    agreed = chosen if same.all() else chosen[: int(same.argmin()) + 1]
    return Proof(
        model=model.name,
        machine=machine,
        weights=model.weights,
        inputs=model.inputs,
        head=head_format(model),
        kv=model.kv,
        asic=arithmetic.name,
        prompt_tokens=len(numbers),
        tokens=tuple(written),
        kernel_tokens=agreed,
        text=_text(model, written),
        kernel_text=_text(model, agreed),
        logits_bit_equal=bool((twin == logits).all()),
        against_kernels=Difference.of(logits, kernels),
        against_plain=Difference.of(logits, plain),
        plain_tokens_equal=_equal_before(plain.argmax(axis=1), written),
        commands=decoder.memory.counts,
        weight_bytes=_weight_bytes(placed),
        kv_bytes=_kv_bytes(placed, len(text)),
        seconds=seconds,
    )


def _write(
    decoder: MappedDecoder, model: Model, prompt: list[int], tokens: int, progress: Progress | None
) -> tuple[list[int], Floats]:
    """Tokens, and the logits [tokens, V] that they were chosen from."""
    written: list[int] = []
    logits: list[Floats] = []
    for step in sketch(model.shape, len(prompt), tokens, weights=model.weights, kv=model.kv):
        logits.append(decoder.run(step, written[-1:] or prompt))
        written.append(int(logits[-1].argmax()))
        if progress:
            progress(len(written), tokens)
    return written, np.stack(logits)


def _text(model: Model, tokens: Sequence[int]) -> str:
    return model.decode(tokens) if model.tokenizer is not None else ""


def _equal_before(chosen: np.ndarray, written: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    same = chosen == np.asarray(written)
    return len(written) if same.all() else int(same.argmin())


def _weight_bytes(placed: Plan) -> int:
    """Packed weights of all layers, with scales in the banks."""
    layers = placed.model.layers
    regions = [part for m in placed.placement.matrices for part in (m.region, m.scales) if part]
    return sum(r.data_bytes * (layers if r.stride else 1) for r in regions)


def _kv_bytes(placed: Plan, tokens: int) -> int:
    """K and V of so many tokens in all layers, with their scales, and windows for exact ones."""
    cache = placed.placement.cache
    window = sum(r.data_bytes for r in cache.window.regions) if cache.window else 0
    growing = sum(r.data_bytes for r in cache.regions) - window
    return growing * placed.model.layers * tokens // cache.max_context + placed.model.layers * window


@dataclass(frozen=True)
class Approximation:
    """What the ASIC's approximations change in the logits over a text that the model wrote itself.

    against_exact: all of them; each: one by itself ("exp", "divide", "over_root"), the others exact.
    """

    model: str
    machine: str
    weights: str
    kv: str
    against_exact: Difference
    each: Mapping[str, Difference]
    largest_logit: float

    def as_dict(self) -> dict[str, Any]:
        """All fields for JSON."""
        return asdict(self)


def approximation_error(model: Model, machine: str, prompt: str | Sequence[int], positions: int) -> Approximation:
    """The published approximations against exact functions, all else equal, at `positions` positions.

    The text is the model's own, drawn with temperature 1, so that it is not the repetition that greedy choice ends in.
    """
    numbers = [int(token) for token in prompt_numbers(model, prompt)]
    if not len(numbers) < positions <= model.shape.context:
        raise NearbankError(
            f"{positions} positions; expected more than the prompt's {len(numbers)} and at most the context of "
            f"{model.shape.context}"
        )
    written = generate(model, numbers, positions - len(numbers), Sampling(temperature=1.0, seed=1)).tokens
    text = [*numbers, *written]
    placed = planned(model, machine, positions)

    def logits(arithmetic: AsicArithmetic) -> Floats:
        return twin_logits(fold_channels(model), text, BankSums(placed, arithmetic))

    exact = logits(EXACT)
    alone = {name: replace(EXACT, **{name: getattr(PIM_GPT, name)}) for name in FUNCTIONS}
    return Approximation(
        model=model.name,
        machine=machine,
        weights=model.weights,
        kv=model.kv,
        against_exact=Difference.of(logits(PIM_GPT), exact),
        each={name: Difference.of(logits(arithmetic), exact) for name, arithmetic in alone.items()},
        largest_logit=float(np.abs(exact).max()),
    )

"""Generation: seeds, sampling rules, batches, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models.random_gpt import SHAPE, random_model

from nearbank.models.generate import generate, prompt_numbers, steps
from nearbank.models.sampling import Sampling, choose

MODEL = random_model("numpy")


def test_equal_seeds_give_equal_text_and_others_differ() -> None:
    def sample(seed: int) -> str:
        return generate(MODEL, "hello", 30, Sampling(temperature=1.5, seed=seed)).text

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_a_sequence_does_not_depend_on_its_neighbours() -> None:
    sampling = Sampling(temperature=0.9, seed=3)
    prompts = [MODEL.encode(text) for text in ("hello", "a much longer prompt", "x")]
    together = [result.tokens for result in steps(MODEL, prompts, 8, sampling)]
    alone = [result.tokens[0] for result in steps(MODEL, prompts[:1], 8, sampling)]
    assert [tokens[0] for tokens in together] == alone
    greedy = [result.tokens for result in steps(MODEL, prompts, 8)]
    for s, prompt in enumerate(prompts):
        assert tuple(tokens[s] for tokens in greedy) == generate(MODEL, list(prompt), 8).tokens


def test_the_measured_times_add_up() -> None:
    seen: list[tuple[int, int]] = []
    generation = generate(MODEL, "hello", 5, progress=lambda done, wanted: seen.append((done, wanted)))
    assert seen == [(i, 5) for i in range(1, 6)]
    assert generation.prompt_tokens == 5
    assert len(generation.text) == len(generation.tokens) == len(generation.step_ns) == 5
    assert generation.seconds == pytest.approx(generation.first_token_s + sum(generation.step_ns[1:]) / 1e9)
    assert generation.tokens_per_s == pytest.approx(5 / generation.seconds)
    assert generate(MODEL, "hello", 1).decode_tokens_per_s is None


LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=50).map(lambda x: np.array(x, np.float32))


@given(LOGITS, st.integers(0, 100))
def test_one_candidate_is_greedy(logits: np.ndarray, seed: int) -> None:
    best = choose(logits, Sampling(), np.random.default_rng(0))
    assert logits[best] == logits.max()
    for sampling in (Sampling(1.0, top_k=1), Sampling(1.0, top_p=1e-9)):
        assert choose(logits, sampling, np.random.default_rng(seed)) == best


@given(LOGITS, st.integers(1, 60), st.floats(0.05, 1), st.integers(0, 100))
def test_only_kept_tokens_are_drawn(logits: np.ndarray, top_k: int, top_p: float, seed: int) -> None:
    token = choose(logits, Sampling(1.0, top_k, top_p), np.random.default_rng(seed))
    likelier = logits > logits[token]
    assert likelier.sum() < top_k
    weights = np.exp(logits.astype(np.float64) - logits.max())
    assert weights[likelier].sum() / weights.sum() < top_p + 1e-9


def test_frequencies_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    generator = np.random.default_rng(0)
    drawn = np.bincount([choose(logits, Sampling(1.0), generator) for _ in range(20000)], minlength=3) / 20000
    np.testing.assert_allclose(drawn, [0.5, 0.3, 0.2], atol=0.015)
    cooled = np.bincount([choose(logits, Sampling(0.5), generator) for _ in range(20000)], minlength=3) / 20000
    np.testing.assert_allclose(cooled, np.array([25, 9, 4]) / 38, atol=0.015)


@pytest.mark.parametrize(
    ("prompt", "tokens", "message"),
    [
        ("", 5, "the prompt is empty"),
        ("hello", 0, "tokens to generate: 0; expected 1 or more"),
        ("hello", -3, "tokens to generate: -3"),
        ("a" * 65, 1, "the prompt has 65 tokens, but random has a context of 64"),
        ("a" * 60, 6, "ask for at most 5 tokens"),
        ("hellO", 5, "character 'O' at position 4 is not in the model's vocabulary; known: '.n abc"),
        ([1, 99], 5, "token 99: random has tokens 0 to 31"),
        ([1, -1], 5, "token -1"),
    ],
)
def test_bad_requests_are_refused_at_once(prompt: str | list[int], tokens: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(MODEL, prompt, tokens)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_k", 0),
        ("top_p", 0),
        ("top_p", 1.1),
        ("seed", -1),
    ],
)
def test_bad_sampling_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field.replace("_", "-")):
        Sampling(**{field: value})  # type: ignore[arg-type]


def test_the_whole_context_can_be_filled() -> None:
    generation = generate(MODEL, "a" * 60, SHAPE.context - 60 + 1)  # the last token takes no position
    assert len(generation.tokens) == 5
    assert len(prompt_numbers(MODEL, "abc")) == 3

"""What a step is made of adds up to the step, and follows from the shape."""

from fractions import Fraction

import pytest

from nearbank.anatomy import KINDS, anatomy
from nearbank.trace.moved import operation_bytes
from nearbank.workload import Workload, sketch_workload


@pytest.fixture(scope="module")
def load() -> Workload:
    return sketch_workload("gpt2-small", prompt_tokens=7, tokens=4)


@pytest.mark.parametrize("formats", [("bf16", "bf16"), ("ternary", "int4")])
def test_the_kinds_add_up_to_the_step(load: Workload, formats: tuple[str, str]) -> None:
    weights, kv = formats
    shares = anatomy(load, weights=weights, kv=kv)
    for step in load.steps(weights, kv):
        mine = [share for share in shares if share.step == step.index]
        assert [share.kind for share in mine] == list(KINDS)
        assert sum(share.macs for share in mine) == step.macs
        moved = sum(share.model_bytes + share.activation_bytes for share in mine)
        assert moved == sum(operation_bytes(operation) for _, operation in step.rows())


def test_a_prompt_uses_each_weight_once_a_token(load: Workload) -> None:
    blocks = [share for share in anatomy(load) if share.kind == "block weights"]
    assert [Fraction(share.macs, share.model_bytes) for share in blocks] == [Fraction(m, 2) for m in (7, 1, 1, 1)]
    assert [share.context for share in blocks] == [7, 8, 9, 10]


def test_the_cache_grows_with_the_context_and_the_weights_do_not(load: Workload) -> None:
    shares = anatomy(load)
    # K and V of 12 layers x 768 in bf16, read once and one position written.
    cache = [share.model_bytes for share in shares if share.kind == "K and V" and share.step]
    assert cache == [12 * 768 * 2 * 2 * (context + 1) for context in (8, 9, 10)]
    assert len({share.model_bytes for share in shares if share.kind == "block weights"}) == 1

"""Sketches of any causal or sequence-to-sequence model that transformers knows: it runs on the meta device, which
holds no data, and its matrix products and attention are caught. Needs torch and transformers; loads no weights and
runs no code of a checkpoint.

Masked pairs are counted, as the framework computes them. A decoder's steps after the first decoded token follow from
it, as contexts grow by one; the last one is run as well, and if it is not what was foreseen (sliding windows), all are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from nearbank.errors import NearbankError
from nearbank.models.catcher import reason, run_caught
from nearbank.models.meta_source import SourceRunner
from nearbank.models.observed import Observed, Reader, describe_observed, passes
from nearbank.trace import ModelDescription, Operation, Step, fold_layers


@dataclass(frozen=True)
class MetaSketch:
    """A sketched generation, and how often each operation was met that no rule knows."""

    model: ModelDescription
    steps: tuple[Step, ...]
    unknown: Mapping[str, int]


def sketch_config(
    config: Mapping[str, Any], prompt_tokens: int, new_tokens: int, name: str | None = None
) -> MetaSketch:
    """The steps of a generation by the model that a Hugging Face configuration describes.

    Where it has an encoder, the prompt is the source that it reads and the decoder begins with one token.
    Raises `NearbankError` when transformers does not know it or its layers cannot be told apart.
    """
    if prompt_tokens < 1 or new_tokens < 1:
        raise NearbankError(f"{prompt_tokens} prompt and {new_tokens} new tokens; expected 1 or more of each")
    model = _meta_model(dict(config))
    runner = SourceRunner(model) if model.config.is_encoder_decoder else _Runner(model)
    observed = runner.passes(prompt_tokens, new_tokens)
    limit = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    context = max(limit or 0, prompt_tokens + new_tokens)
    called = name or str(config.get("model_type"))
    try:
        described = describe_observed(called, observed[0], context)
    except ValidationError as error:
        raise NearbankError(
            f"{called}: cannot tell the layers apart: {reason(error.errors()[0]['ctx']['error'])}"
        ) from None
    steps = tuple(_step(index, one) for index, one in enumerate(observed))
    return MetaSketch(described, steps, dict(runner.unknown))


def _meta_model(config: dict[str, Any]) -> Any:
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    except ImportError as error:
        raise NearbankError(f"sketching needs {error.name}; pip install 'nearbank[models]'") from error
    kind = config.pop("model_type", None)
    try:
        with torch.device("meta"):
            made = AutoConfig.for_model(kind, **config)
            auto: Any = AutoModelForSeq2SeqLM if made.is_encoder_decoder else AutoModelForCausalLM
            return auto.from_config(made, attn_implementation="eager", trust_remote_code=False).eval()
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise NearbankError(
            f"model type {kind!r}: transformers cannot build a causal or sequence-to-sequence model: {reason(error)}"
        ) from error


class _Runner:
    """Runs passes of a meta model and reads what it called."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.unknown: dict[str, int] = {}
        self._past: Any = None
        heads = getattr(model.config, "num_key_value_heads", None)
        self._kv_heads = heads if isinstance(heads, int) else None

    def passes(self, prompt: int, new: int) -> list[Observed]:
        """The passes of a generation."""
        return [self.run(prompt), *self.decode(prompt, new)]

    def run(self, tokens: int) -> Observed:
        """One pass of new tokens after those of the passes before."""
        import torch

        ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
        out, calls = run_caught(self.model, input_ids=ids, past_key_values=self._past, use_cache=True, logits_to_keep=1)
        self._past = getattr(out, "past_key_values", None)
        reader = Reader(self._kv_heads)
        found = list(passes(calls, reader))
        if len(found) != 1:
            raise NearbankError(f"the model made {len(found)} passes with attention; expected one decoder")
        for name, count in reader.unknown.items():
            self.unknown[name] = self.unknown.get(name, 0) + count
        return found[0]

    def decode(self, prompt: int, new: int) -> list[Observed]:
        """The passes after the prompt's: the first is run, the others follow from it if the last one confirms it."""
        if new < 2:
            return []
        first = self.run(1)
        foreseen = [_later(first, i) for i in range(new - 1)]
        if new == 2 or self._fresh().last_of(prompt, new) == foreseen[-1]:
            return foreseen
        return [first, *(self.run(1) for _ in range(new - 2))]

    def _fresh(self) -> _Runner:
        return _Runner(self.model)

    def last_of(self, prompt: int, new: int) -> Observed:
        """The last pass of a generation, run straight after one pass over everything before."""
        self.run(prompt + new - 2)
        return self.run(1)


def _later(one: Observed, by: int) -> Observed:
    return Observed(tuple((layer, _shifted(o, by), time) for layer, o, time in one.rows), one.tokens)


def _shifted(operation: Operation, by: int) -> Operation:
    """A decode operation `by` tokens later."""
    if operation.context is None:
        return operation
    context = operation.context + by
    return replace(operation, context=context, pairs=None if operation.pairs is None else context)


def _step(index: int, one: Observed) -> Step:
    rows = [(layer, operation) for layer, operation, _ in one.rows]
    return Step(index, "decode" if index else "prefill", fold_layers(rows))

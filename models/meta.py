"""Sketches of any causal model that transformers knows: it runs on the meta device, which holds no data, and its
matrix products and attention are caught. Needs torch and transformers; loads no weights and runs no code of a
checkpoint.

Masked pairs are counted, as the framework computes them. Steps after the first decoded token follow from it, as
contexts grow by one; the last one is run as well, and if it is not what was foreseen (sliding windows), all are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nearbank.errors import NearbankError
from nearbank.models.observed import Observed, Reader, Seen, describe_observed, passes
from nearbank.trace import ModelDescription, Operation, Step, fold_layers

ALIASES = {"__matmul__": "matmul", "__rmatmul__": "matmul", "__add__": "add", "add_": "add", "__radd__": "add",
           "__iadd__": "add"}  # fmt: skip
LONGEST_REASON = 160
FORMATS = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}


@dataclass(frozen=True)
class MetaSketch:
    """A sketched generation, and how often each operation was met that no rule knows."""

    model: ModelDescription
    steps: tuple[Step, ...]
    unknown: Mapping[str, int]


def sketch_config(
    config: Mapping[str, Any], prompt_tokens: int, new_tokens: int, name: str | None = None
) -> MetaSketch:
    """The steps of a generation by the causal model that a Hugging Face configuration describes.

    Raises `NearbankError` when transformers does not know it or its layers cannot be told apart.
    """
    if prompt_tokens < 1 or new_tokens < 1:
        raise NearbankError(f"{prompt_tokens} prompt and {new_tokens} new tokens; expected 1 or more of each")
    model = _meta_model(dict(config))
    runner = _Runner(model)
    first = runner.run(prompt_tokens)
    observed = [first, *runner.decode(prompt_tokens, new_tokens)]
    limit = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    context = max(limit or 0, prompt_tokens + new_tokens)
    described = describe_observed(name or str(config.get("model_type")), first, context)
    steps = tuple(_step(index, one) for index, one in enumerate(observed))
    return MetaSketch(described, steps, dict(runner.unknown))


def _meta_model(config: dict[str, Any]) -> Any:
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise NearbankError(f"sketching needs {error.name}; pip install 'nearbank[models]'") from error
    kind = config.pop("model_type", None)
    try:
        with torch.device("meta"):
            made = AutoConfig.for_model(kind, **config)
            build: Any = AutoModelForCausalLM.from_config
            return build(made, attn_implementation="eager", trust_remote_code=False).eval()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NearbankError(
            f"model type {kind!r}: transformers cannot build a causal model: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """The beginning of another package's message, on one line."""
    return " ".join(str(error).split())[:LONGEST_REASON]


class _Runner:
    """Runs passes of a meta model and reads what it called."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.unknown: dict[str, int] = {}
        self._past: Any = None
        heads = getattr(model.config, "num_key_value_heads", None)
        self._kv_heads = heads if isinstance(heads, int) else None

    def run(self, tokens: int) -> Observed:
        """One pass of new tokens after those of the passes before."""
        import torch

        catcher = _catcher()
        ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
        try:
            with torch.no_grad(), catcher:
                out = self.model(input_ids=ids, past_key_values=self._past, use_cache=True, logits_to_keep=1)
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            raise NearbankError(f"the model does not run without data (meta device): {_reason(error)}") from error
        self._past = getattr(out, "past_key_values", None)
        reader = Reader(self._kv_heads)
        found = list(passes(catcher.calls, reader))
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


def _catcher() -> Any:
    """A torch mode that keeps the name, shapes and format of every call with tensors."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Catcher(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[Seen] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            tensors = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, torch.Tensor)]
            name = getattr(func, "__name__", str(func))
            if tensors:
                if name == "embedding":
                    tensors = sorted(tensors, key=lambda t: not t.is_floating_point())
                self.calls.append(_seen(ALIASES.get(name, name), tensors))
            return func(*args, **(kwargs or {}))

    return Catcher()


def _seen(name: str, tensors: list[Any]) -> Seen:
    floats = [str(t.dtype) for t in tensors if t.is_floating_point()]
    shapes = tuple(tuple(int(n) for n in t.shape) for t in tensors)
    return Seen(name, shapes, FORMATS.get(floats[0], "fp32") if floats else "fp32")

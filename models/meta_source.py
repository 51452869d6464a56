"""The passes of an encoder-decoder on the meta device: the encoder once, then the decoder token by token.

The encoder's layers come first, and its operations are called "encoder.…". In a decoder's layer the last attention
is the one over the source, called "cross.…"; K and V of the source are made and kept in the first pass.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from nearbank.errors import NearbankError
from nearbank.models.catcher import run_caught
from nearbank.models.observed import Observed, Reader, Row, Seen, Timed, with_layers
from nearbank.models.operations import OUTSIDE, append

ATTENTION = ("append", "score", "softmax", "context")
# ProphetNet's layers also run streams that predict tokens further on: each sees the past and its own token
KINDS = (("attn", "cross"), ("attn", "predict", "cross"))


@dataclass
class SourceRunner:
    """Runs an encoder-decoder and reads what it called; `unknown` counts what no rule knows."""

    model: Any
    unknown: Counter[str] = field(default_factory=Counter)

    def passes(self, source: int, new: int) -> list[Observed]:
        """Pass 0 reads the source and the start token; each further pass takes one token."""
        encoded, encoder = self._encode(source)
        layers = 1 + max(layer for layer, _, _ in encoder)
        past, rows = _empty_cache(), list[list[Row]]()
        for index in range(new):
            past, found = self._decode(encoded, past, source, index, layers)
            rows.append(found)
        return [Observed((*encoder, *rows[0]), 1), *(Observed(tuple(part), 1) for part in rows[1:])]

    def _encode(self, tokens: int) -> tuple[Any, list[Row]]:
        ids = _ids(tokens)
        encoded, calls = run_caught(self.model.get_encoder(), input_ids=ids)
        timed = self._read(calls)
        if not any(operation.op == "score" for operation, _ in timed):
            raise NearbankError(f"no attention of the encoder is known; unknown calls: {', '.join(self.unknown)}")
        rows = with_layers(timed, head=False)
        prefixes = {OUTSIDE: "encoder.outer."}
        named = [(layer, prefixes.get(layer, "encoder.") + o.name, o, time) for layer, o, time in rows]
        return encoded, [(layer, replace(o, name=name), time) for layer, name, o, time in named]

    def _decode(self, encoded: Any, past: Any, source: int, index: int, first_layer: int) -> tuple[Any, list[Row]]:
        inputs = {"encoder_outputs": encoded, "decoder_input_ids": _ids(1), "past_key_values": past}
        out, calls = run_caught(self.model, **inputs, use_cache=True)
        timed = self._read(calls)
        kinds = _kinds(timed, source, index + 1)
        rows = _with_kinds(list(with_layers(timed, attentions=len(kinds))), kinds, source, index == 0)
        return out.past_key_values, [(layer if layer == OUTSIDE else layer + first_layer, o, t) for layer, o, t in rows]

    def _read(self, calls: list[Seen]) -> list[Timed]:
        reader = Reader()
        found = [timed for seen in calls for timed in reader.read(seen)]
        self.unknown.update(reader.unknown)
        return found


def _ids(tokens: int) -> Any:
    import torch

    return torch.zeros(1, tokens, dtype=torch.long, device="meta")


def _empty_cache() -> Any:
    """A cache that grows as layers come: a cache made from a configuration may count the encoder's layers."""
    from transformers import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def _kinds(timed: list[Timed], source: int, tokens: int) -> tuple[str, ...]:
    """The attentions of one decoder layer in their order, told by how many positions each sees."""
    seen = {"attn": tokens, "predict": tokens + 1, "cross": source}
    contexts = [operation.context for operation, _ in timed if operation.op == "score"]
    for kinds in KINDS:
        if contexts and contexts == [seen[kind] for kind in kinds] * (len(contexts) // len(kinds)):
            return kinds
    raise NearbankError(
        f"the decoder's attentions see {contexts[:8]} positions; expected {tokens} of its own and {source} of the "
        "source in turn in every layer"
    )


def _with_kinds(rows: list[Row], kinds: tuple[str, ...], source: int, first: bool) -> list[Row]:
    """Attentions by kind. K and V of the source are made and kept in the first pass alone, those of a stream that
    predicts further tokens never: they are gone with the pass."""
    named, attentions = list[Row](), -1
    for layer, operation, time_ns in rows:
        attentions += operation.op == "append"  # the row that each attention begins with
        kind = kinds[attentions % len(kinds)]
        if operation.op not in ATTENTION or kind == "attn":
            named.append((layer, operation, time_ns))
        elif operation.op != "append":
            named.append((layer, replace(operation, name=operation.name.replace("attn", kind)), time_ns))
        elif first and kind == "cross":
            _name_source_products(named, source)
            heads = operation.kv_heads or 1
            kept = append("cross.kv", source, heads, (operation.n or 0) // heads, source, operation.kv or "")
            named.append((layer, kept, time_ns))
    return _renumbered(named)


def _name_source_products(rows: list[Row], source: int) -> None:
    """The last two products of all source tokens before an attention over the source: its K and V."""
    inside = [i for i, (_, o, _) in enumerate(rows) if o.op == "matmul" and o.m == source][-2:]
    for name, i in zip("kv", inside, strict=True):
        layer, operation, time_ns = rows[i]
        rows[i] = (layer, replace(operation, name=f"cross.{name}"), time_ns)


def _renumbered(rows: list[Row]) -> list[Row]:
    """Products numbered without K and V of the source, so that a matrix has one name in every pass."""
    counts: Counter[int] = Counter()
    result = []
    for layer, operation, time_ns in rows:
        if operation.name.startswith("matmul."):
            operation = replace(operation, name=f"matmul.{counts[layer]}")
            counts[layer] += 1
        result.append((layer, operation, time_ns))
    return result

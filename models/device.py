"""Decoding with everything on a GPU: weights, cache, stream and the choice of the token; one step is one CUDA graph.

`decoder_for` takes a model whose matrices are prepared for the backend "cupy", of GPT-2's or LLaMA's shape. By default
norms are fused with the rounding that follows them and attention is the fast one: logits then differ from those of
other backends by the float error of these two, and so may a token at a near tie. With `exact` every float is computed
in the order of `nearbank.models.functions` and of the kernels' definition, launch by launch: tokens are those of the
other backends (RMS means and exponentials are taken in double precision here).

Sampling copies the logits of a step to the host and draws there as `nearbank.models.sampling` does, so that a seed
means the same on every backend; greedy tokens never leave the device until the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels.cuda import cache, decode, host
from nearbank.kernels.cuda.cache import AttendScratch
from nearbank.kernels.cuda.decode import Columns, Norm
from nearbank.kernels.cuda.host import StagedRows
from nearbank.models.device_weights import NONE, DeviceBlock, DeviceWeights, Part, upload
from nearbank.models.model import Model
from nearbank.models.sampling import Sampling, choose

GREEDY = Sampling()
FP32 = host.KIND["fp32"]
Note = Callable[[str], None]  # called before an operation with its name, and with "" at the end


@dataclass
class Buffers:
    """Memory of a pass over M tokens."""

    tokens: Any  # [M] int32
    x: Any  # [M, D]: the residual stream
    normed: dict[int, Any]  # by width
    qkv: list[Any]  # the outputs of the matrices before attention
    heads: tuple[Any, Any, Any]  # q [M, H, E], k and v [M, G, E]
    mixed: Any  # [M, H, E]
    wide: list[Any]  # the outputs of the matrices before the activation
    h: Any  # [M, F]
    y: Any  # [M, D]: what the residual stream gains
    scratch: AttendScratch | None
    staged: dict[Any, StagedRows] = field(default_factory=dict)  # by the layout of the matrix

    @property
    def count(self) -> int:
        """M."""
        return int(self.x.shape[0])


def decoder_for(model: Model, capacity: int, exact: bool = False, runtime: Any = None) -> DeviceDecoder:
    """A decoder of one sequence of up to `capacity` tokens. Raises NearbankError naming what a GPU does not decode."""
    chosen = runtime or current_runtime()
    weights = upload(model, capacity, chosen)
    return DeviceDecoder(weights, model.cache_format(), capacity, chosen, exact)


class DeviceDecoder:
    """One sequence: its cache, its last logits and the tokens made."""

    def __init__(self, weights: DeviceWeights, form: Format, capacity: int, runtime: Any, exact: bool = False) -> None:
        self.runtime, self.weights, self.exact, self.capacity = runtime, weights, exact, capacity
        shape = weights.shape
        self.pages = cache.allocate(runtime, form, shape.layers, shape.kv_heads, shape.head_dim, capacity)
        if not exact and not self.pages.fast():
            raise NearbankError(
                f"fast attention has no {form.name} cache with head dimension {shape.head_dim}; decode with exact=True"
            )
        self.held = 0
        self.logits = runtime.empty((1, shape.vocabulary), np.float32)
        self._made = runtime.zeros(capacity + 1, np.int32)
        self._steps = runtime.zeros(1, np.int32)
        self._one = self._buffers(1)
        self._graph: Any = None

    # ------------------------------------------------------------ generating

    def generate(self, prompt: Sequence[int], tokens: int, sampling: Sampling = GREEDY) -> list[int]:
        """`tokens` new tokens after a prompt, from an empty cache."""
        if not prompt or tokens < 1 or len(prompt) + tokens - 1 > self.capacity:
            raise NearbankError(f"{len(prompt)} + {tokens} tokens; this decoder takes 1 + 1 to {self.capacity + 1}")
        self.clear()
        self.prefill(prompt)
        if sampling.temperature > 0:
            return self._sampled(tokens, sampling)
        self.choose()
        for _ in range(tokens - 1):
            self.step()
        return self.made()

    def _sampled(self, tokens: int, sampling: Sampling) -> list[int]:
        generator, made = sampling.generator(), list[int]()
        for index in range(tokens):
            made.append(choose(self._on_host(self.logits)[0], sampling, generator))
            if index < tokens - 1:
                self.feed(made[-1])
                self.step(greedy=False)
        return made

    def made(self) -> list[int]:
        """The tokens chosen on the device so far; waits for it."""
        count = int(self._on_host(self._steps)[0])
        return [int(token) for token in self._on_host(self._made)[:count]]

    def clear(self) -> None:
        """Forget every token."""
        self.held = 0
        self.pages.lengths.fill(0)
        self._steps.fill(0)

    def prefill(self, prompt: Sequence[int], note: Note | None = None) -> None:
        """All tokens of the prompt in one pass. note: as for `step`."""
        buffers = self._one if len(prompt) == 1 else self._buffers(len(prompt))
        buffers.tokens[...] = self.runtime.asarray(np.asarray(prompt, np.int32))
        self._pass(buffers, note or _silent)

    def feed(self, token: int) -> None:
        """The token that the next step takes in."""
        self._one.tokens[...] = self.runtime.asarray(np.array([token], np.int32))

    def choose(self) -> None:
        """The likeliest token after the last pass: noted, and what the next step takes in."""
        decode.choose_largest(self.runtime, self.logits, self._one.tokens, self._made, self._steps)

    def next_token(self) -> int:
        """The token that the next step takes in; waits for it."""
        return int(self._on_host(self._one.tokens)[0])

    def step(self, greedy: bool = True, note: Note | None = None) -> None:
        """One token in, the logits after it (and, greedy, the next token) out. Does not wait.

        note: called before every operation with its name, for timing; without it a captured step is replayed.
        """
        if self.held >= self.capacity:
            raise NearbankError(f"the decoder holds {self.held} tokens, all that it has room for")
        if note is None and self._graph is not None:
            self._graph.launch()
            self.held += 1
        else:
            self._pass(self._one, note or _silent)
        if greedy:
            (note or _silent)("sample")
            self.choose()

    def capture(self) -> None:
        """From now on a step is one CUDA graph, captured from CuPy's current stream, which must not be the default one.

        To be called after a first step, which compiles what a step needs. Nothing is computed.
        """
        if self.exact:
            raise NearbankError("exact decoding launches one by one: the host must know each position")
        stream, held = self.runtime.xp.cuda.get_current_stream(), self.held
        stream.begin_capture()
        try:
            self._pass(self._one, _silent)
        finally:
            self._graph, self.held = stream.end_capture(), held

    def _on_host(self, array: Any) -> npt.NDArray[Any]:
        return np.asarray(self.runtime.asnumpy(array))

    # ------------------------------------------------------------ one pass

    def _pass(self, b: Buffers, note: Note) -> None:
        """The tokens of `b` into the cache; the logits after the last of them."""
        runtime, w = self.runtime, self.weights
        note("wte")
        decode.embed(runtime, b.tokens, self.pages.lengths, w.embedding, w.positions, b.x, w.embedding_scale)
        for layer, block in enumerate(w.blocks):
            self._attend(b, layer, block, note)
            self._mlp(b, block, note)
        note("ln_f")
        last = b.x[-1:]
        normed = self._floats_normed(b, last, w.last_norm)
        note("lm_head")
        host.matmul_floats(runtime, normed, w.head, self.logits)
        note("")
        self.held += b.count

    def _attend(self, b: Buffers, layer: int, block: DeviceBlock, note: Note) -> None:
        note("attn.qkv")
        outputs = self._multiply(b, b.x, block.norm_1, block.qkv, b.qkv)
        note("attn.rope")
        start = self.pages.lengths[layer : layer + 1]
        decode.turn(self.runtime, split(outputs, b.heads), b.heads, start, self.weights.angles)
        note("attn.kv")
        cache.append(self.runtime, self.pages, layer, b.heads[1], b.heads[2], FP32)
        note("attn.context")
        mixed = self._mix(b, layer).reshape(b.count, -1)
        note("attn.proj")
        (gained,) = self._multiply(b, mixed, block.attn_norm, (block.proj,), [b.y])
        note("attn.residual")
        decode.add(self.runtime, b.x, gained)

    def _mix(self, b: Buffers, layer: int) -> Any:
        scale, q = self.weights.attention_scale, b.heads[0]
        if self.exact:
            return cache.attend_exact(self.runtime, self.pages, layer, self.held, q, np.float32(scale))
        assert b.scratch is not None
        return cache.attend(self.runtime, self.pages, layer, q, scale, b.scratch, b.mixed)

    def _mlp(self, b: Buffers, block: DeviceBlock, note: Note) -> None:
        note("mlp.fc1")
        outputs = self._multiply(b, b.x, block.norm_2, block.wide, b.wide)
        note(f"mlp.{self.weights.activation}")
        decode.gate(self.runtime, self.weights.activation, *halves(outputs, b.h.shape[1]), b.h)
        note("mlp.fc2")
        (gained,) = self._multiply(b, b.h, block.mlp_norm, (block.down,), [b.y])
        note("mlp.residual")
        decode.add(self.runtime, b.x, gained)

    def _multiply(self, b: Buffers, x: Any, norm: Norm, parts: Sequence[Part], outputs: Sequence[Any]) -> list[Columns]:
        """The norm of x [M, K], rounded where the matrices take int8, times each matrix, into its output."""
        if norm.kind and (self.exact or not parts[0].rounds):
            x, norm = self._floats_normed(b, x, norm), NONE
        for part, out in zip(parts, outputs, strict=True):
            self._product(b, x, norm, part, out)
        return [Columns(out, out.shape[1], part.bias) for part, out in zip(parts, outputs, strict=True)]

    def _product(self, b: Buffers, x: Any, norm: Norm, part: Part, out: Any) -> None:
        runtime, weights = self.runtime, part.weights
        if not part.rounds:
            host.matmul_floats(runtime, x, weights, out)
            return
        by = (norm.kind, norm.gain, norm.bias, norm.epsilon)
        if host.takes_one(runtime, b.count, weights.shape):
            host.linear_one(runtime, x, FP32, weights, *by, out)
            return
        if weights.shape not in b.staged:
            b.staged[weights.shape] = host.staging(runtime, b.count, weights.shape)
        rows = host.quantise(runtime, x, FP32, weights.shape, *by, b.staged[weights.shape])
        host.matmul(runtime, rows, weights, out)

    def _floats_normed(self, b: Buffers, x: Any, norm: Norm) -> Any:
        """x [M or 1, K] after its norm, as float32."""
        width = int(x.shape[1])
        if width not in b.normed:
            b.normed[width] = self.runtime.empty((b.count, width), np.float32)
        out = b.normed[width][: x.shape[0]]
        decode.norm(self.runtime, x, norm, out)
        return out

    def _buffers(self, tokens: int) -> Buffers:
        runtime, shape, block = self.runtime, self.weights.shape, self.weights.blocks[0]

        def floats(*size: int) -> Any:
            return runtime.empty((tokens, *size), np.float32)

        q, k, v = (floats(count, shape.head_dim) for count in (shape.heads, shape.kv_heads, shape.kv_heads))
        return Buffers(
            tokens=runtime.zeros(tokens, np.int32),
            x=floats(shape.width),
            normed={},
            qkv=[floats(part.outputs) for part in block.qkv],
            heads=(q, k, v),
            mixed=floats(shape.heads, shape.head_dim),
            wide=[floats(part.outputs) for part in block.wide],
            h=floats(shape.hidden),
            y=floats(shape.width),
            scratch=None if self.exact else cache.attend_scratch(runtime, self.pages, tokens, shape.heads),
        )


def split(outputs: Sequence[Columns], heads: tuple[Any, Any, Any]) -> tuple[Columns, Columns, Columns]:
    """Which columns are q, k and v: of one matrix, or of three."""
    if len(outputs) == 3:
        return outputs[0], outputs[1], outputs[2]
    sizes = [part.shape[1] * part.shape[2] for part in heads]
    ends = [int(end) for end in np.cumsum(sizes)]
    q, k, v = (_columns(outputs[0], end - size, end) for size, end in zip(sizes, ends, strict=True))
    return q, k, v


def halves(outputs: Sequence[Columns], hidden: int) -> tuple[Columns, Columns | None]:
    """Gate and up: of two matrices, of one, or no up at all."""
    if len(outputs) == 2:
        return outputs[0], outputs[1]
    if outputs[0].stride == hidden:
        return outputs[0], None
    return _columns(outputs[0], 0, hidden), _columns(outputs[0], hidden, 2 * hidden)


def _columns(whole: Columns, first: int, end: int) -> Columns:
    bias = None if whole.bias is None else whole.bias[first:end]
    return Columns(whole.values[:, first:end], whole.stride, bias)


def _silent(_: str) -> None:
    """Nobody listens."""


def current_runtime() -> Any:
    from nearbank.kernels import cupy_backend

    return cupy_backend.current_runtime()

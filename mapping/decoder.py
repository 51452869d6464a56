"""A GPT-shaped decoder whose matrix products and attention run in the banks, through the mapped programs.

    decoder = MappedDecoder(plan, weights)
    logits = decoder.run(step, tokens)   # the logits of the step's last token

The banks' bytes, the MAC units' arithmetic and the addresses are the machine's. What the ASIC computes is an
`AsicArithmetic`: exact, so that what differs from a plain computation is the mapping or its number formats, or with
the published approximations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Quantised
from nearbank.mapping.asic_arithmetic import EXACT, AsicArithmetic
from nearbank.mapping.bank_arithmetic import Bytes, Floats
from nearbank.mapping.functional import BankMemory, Moment, execute
from nearbank.mapping.gemv import MatrixSums, vector_bytes_of
from nearbank.mapping.loading import load_matrix
from nearbank.mapping.matmul import label_of
from nearbank.mapping.matrix_placement import MatrixPlacement
from nearbank.mapping.plan import Plan
from nearbank.mapping.sweep import READ
from nearbank.mapping.windowed_attention import attention_for
from nearbank.trace import Step

Array = npt.NDArray[np.float32]
ATTENTION = ("append", "score", "context", "softmax", "flush")
ATTENTION_JOBS = ("softmax", "quantise kv", "normalise", "newest", "scale q", "round keys", "round values")


@dataclass(frozen=True)
class Norm:
    """Layer norm's gain and bias [width], and what is added to the variance."""

    gain: Array
    bias: Array
    eps: float = 1e-5


@dataclass(frozen=True)
class GptWeights:
    """Everything a GPT needs: embeddings [vocabulary, width] and [context, width], and by name of the matrices
    ("qkv", "proj", "fc1", "fc2" of every layer, "lm_head") codes with scales, and biases where there are any.

    `context_scales`: what each layer's context product [heads · head_dim] is multiplied with, where V's channels have
    static scales.
    """

    tokens: Array
    positions: Array
    norms: Sequence[tuple[Norm, Norm]]
    final_norm: Norm
    matrices: Mapping[str, Sequence[Quantised]]
    biases: Mapping[str, Sequence[Array]] = field(default_factory=dict)
    context_scales: Sequence[Array] = ()


def _extent(step: Step) -> tuple[int, int]:
    """(tokens of a step, positions in the cache after it)."""
    operations = [operation for block in step.blocks for operation in block.operations]
    return max(o.m or 1 for o in operations), max(o.context or 0 for o in operations if o.op == "append")


class MappedDecoder:
    """One sequence, decoded step by step in order. It is the `Unit` beside the memory of its programs."""

    def __init__(self, plan: Plan, weights: GptWeights, arithmetic: AsicArithmetic = EXACT) -> None:
        if plan.target.choices.reuse > 1:
            raise NearbankError(
                f"a decoder is executed token by token, but the plan lets {plan.target.choices.reuse} vectors share "
                "rows; plan it with reuse=1 (nearbank.mapping.gemm executes products of several vectors)"
            )
        self.plan, self.weights, self.arithmetic = plan, weights, arithmetic
        self.memory = BankMemory(plan.target)
        self._matrices = {label_of(m.name): m for m in plan.placement.matrices}
        for label, matrix in self._matrices.items():
            for layer, codes in enumerate(weights.matrices[label]):
                load_matrix(self.memory, matrix, codes, layer)
        self._attention = attention_for(plan.placement.cache, plan.target, arithmetic)
        self._position = -1
        self._sums: MatrixSums | None = None
        self._qkv: MatrixSums
        self._label = ""
        self._layer = 0
        self._attending = False
        self._scales: dict[int, Bytes] = {}
        self._effects: Mapping[str, Callable[[Array], None]] = {
            "qkv": self._got_qkv,
            "proj": self._got_residual,
            "fc1": self._got_hidden,
            "fc2": self._got_residual,
            "lm_head": self._got_logits,
        }

    def run(self, step: Step, tokens: Sequence[int]) -> Array:
        """Execute one step on its new tokens; the logits [vocabulary] after the last of them.

        Raises `NearbankError` for tokens outside the vocabulary, and for a step that does not follow the last one.
        """
        self._check(step, tokens)
        self._tokens = list(tokens)
        self._taken = 0
        execute(self.plan.lower(step), self.memory, self)
        self._settle()
        return self._logits

    def _check(self, step: Step, tokens: Sequence[int]) -> None:
        expected, end = _extent(step)
        vocabulary = len(self.weights.tokens)
        if len(tokens) != expected:
            raise NearbankError(f"step {step.index} has {expected} tokens, but {len(tokens)} were given")
        if end - expected != self._position + 1:
            raise NearbankError(
                f"step {step.index} begins at position {end - expected}, but {self._position + 1} tokens were "
                "executed; run all steps of one sequence in order"
            )
        outside = [token for token in tokens if not 0 <= token < vocabulary]
        if outside:
            raise NearbankError(f"token {outside[0]} is outside the vocabulary of {vocabulary}")

    def inputs(self, label: str) -> str:
        return self._matrices[label].input_format if label in self._matrices else "bf16"

    def send(self, moment: Moment, command: str, channels: tuple[int, ...], data: int) -> tuple[Bytes, Bytes]:
        if moment.label in ATTENTION:
            self._settle()
            return self._attention.send(moment.label, channels, data)
        sums = self._begun(moment)
        burst = sums.send(channels, data)
        return burst, np.full_like(burst, 255)

    def receive(
        self, moment: Moment, command: str, channels: tuple[int, ...], data: int, burst: Floats | Bytes
    ) -> None:
        if moment.label in self._matrices:
            self._begun(moment).receive(command, channels, data, burst)
        elif moment.label == "scales" and data >> 20 == READ >> 20:
            self._store_scales(channels, data - READ, burst)
        else:
            if not self._attending:
                self._settle()
            self._attention.receive(moment.label, channels, data, burst)

    def job(self, moment: Moment, job: str) -> None:
        """Element-wise jobs; the sums of products and what follows them settle when their result is asked for."""
        if job == "embed":
            self._settle()
            self._embed()
        elif job == "norm":
            self._settle()
            self._norm(moment)
        elif job in ATTENTION_JOBS:
            self._settle()
            self._attention.run(job)

    def _embed(self) -> None:
        self._position += 1
        token = self._tokens[self._taken]
        self._taken += 1
        self._x = self.weights.tokens[token] + self.weights.positions[self._position]
        self._norms = 0

    def _norm(self, moment: Moment) -> None:
        """The first, second norm of each layer in turn, then the final one."""
        layer, second = divmod(self._norms, 2)
        norms = self.weights.norms
        norm = norms[layer][second] if layer < len(norms) else self.weights.final_norm
        self._vector = self.arithmetic.norm(self._x, norm.gain, norm.bias, norm.eps)
        self._norms += 1

    def _store_scales(self, channels: tuple[int, ...], index: int, burst: Floats | Bytes) -> None:
        room = self._scales.setdefault(index, np.zeros((self.plan.target.channels, burst.shape[1]), np.uint8))
        room[list(channels)] = burst

    def _begun(self, moment: Moment) -> MatrixSums:
        """The matrix product that the label names, begun when it is new."""
        if self._sums is None or self._label != moment.label:
            self._settle()
            self._label, self._layer = moment.label, moment.layer
            matrix = self._matrices[moment.label]
            if self._attending and matrix is self._qkv.matrix:
                self._sums = self._qkv  # v, which was put off until after q and k
                return self._sums
            if self._attending:
                self._vector = self._attention.result().reshape(-1)
                if self.weights.context_scales:
                    self._vector = self._vector * self.weights.context_scales[moment.layer]
                self._attending = False
            self._sums = self._product(matrix)
        self._sums.scale_bytes.update(self._scales)  # of all outputs, or part by part
        self._scales = {}
        return self._sums

    def _product(self, matrix: MatrixPlacement) -> MatrixSums:
        """The ASIC's side of the product with the vector at hand, rounded to the matrix's inputs."""
        vector: npt.NDArray[np.generic] = self._vector
        scale = np.float32(1)
        if matrix.integer_inputs:
            if matrix.input_format != "int8":
                raise NearbankError(
                    f"{matrix.name}: a decoder rounds inputs to int8 only, not to {matrix.input_format}"
                )
            vector, scales = self.arithmetic.quantise(self._vector)
            scale = np.float32(scales)
        return MatrixSums(matrix, self.plan.target, vector_bytes_of(matrix.input_format, vector), scale)

    def _settle(self) -> None:
        """Finish the matrix product at hand and do what its result is for."""
        if self._sums is None:
            return
        sums, self._sums = self._sums, None
        if self._label == "qkv":
            self._qkv = sums
        y = sums.result(self.weights.matrices[self._label][self._layer].scales)
        if self._label in self.weights.biases:
            y = y + self.weights.biases[self._label][self._layer]
        self._effects[self._label](y)

    def _got_qkv(self, y: Array) -> None:
        model = self.plan.model
        wide, narrow = model.heads * model.head_dim, model.kv_heads * model.head_dim
        if len(y) != wide + 2 * narrow:
            raise NearbankError(f"qkv gives {len(y)} values; expected {wide + 2 * narrow}")
        q, k, v = (part.reshape(-1, model.head_dim) for part in np.split(y, [wide, wide + narrow]))
        if self._attending:
            self._attention.take_values(v)
            return
        self._attention.begin(self._position, q * np.float32(model.head_dim**-0.5), k, v)
        self._attending = True

    def _got_residual(self, y: Array) -> None:
        self._x = self._x + y

    def _got_hidden(self, y: Array) -> None:
        self._vector = self.arithmetic.gelu(y)

    def _got_logits(self, y: Array) -> None:
        self._logits = y

"""A trained checkpoint evaluated in torch with the arithmetic it is deployed with: the kernels' rounding, order of sums
and exponential, written a second time from their definitions.

The training network computes with values, α · code, in whatever order torch's library adds. A value near the edge
between two codes may then fall to either side, and a near tie between characters is decided otherwise now and then.
Here products of codes are exact and float sums run in the kernels' written order or in double precision, so logits are
the runtime's, to the bit wherever double precision rounds alike. Slow; made to be compared with.
"""

import math

import torch

from nearbank.kernels.reference.exponential import LEAST, LN2_HIGH, LN2_LOW, LOG2_E, ROUND, TAYLOR
from nearbank.kernels.reference.lanes import LANES
from nearbank.models.checkpoint import Checkpoint, stored_codes
from nearbank.models.config import LEARNED, Matrix
from nearbank.models.elastic import Elastic
from nearbank.models.training.network import LAYER_NORM_EPS

Codes = tuple[torch.Tensor, torch.Tensor]  # integers as doubles [..., K], and scales float32 [..., 1]
Tensors = dict[str, torch.Tensor]


@torch.no_grad()
def deployed_logits(checkpoint: Checkpoint, tokens: torch.Tensor) -> torch.Tensor:
    """Logits float32 [T, V] of token numbers [T]; T up to one page of the KV cache, which is fp32 where not rounded."""
    config = checkpoint.config
    held = {name: torch.from_numpy(tensor) for name, tensor in checkpoint.tensors.items()}
    floats = {name: tensor.float() for name, tensor in held.items() if tensor.dtype != torch.uint8}
    x = floats["wte"][tokens] + floats["wpe"][: len(tokens)]
    for layer in range(config.shape.layers):
        qkv, proj, fc1, fc2 = config.block_matrices(layer)
        name = f"h.{layer}"
        mixed = _attend(checkpoint, layer, _linear(checkpoint, qkv, _norm(x, floats, f"{name}.ln_1")))
        x = x + _linear(checkpoint, proj, mixed)
        wide = _gelu(_linear(checkpoint, fc1, _norm(x, floats, f"{name}.ln_2")))
        x = x + _linear(checkpoint, fc2, wide)
    return _dot_in_lanes(_norm(x, floats, "ln_f"), floats["wte"].bfloat16().float())


def _norm(x: torch.Tensor, floats: Tensors, name: str) -> torch.Tensor:
    """LayerNorm over the last axis. In double precision: the means, and the root, which torch may get 1 ulp wrong."""
    centred = x - x.double().mean(-1, keepdim=True).float()
    variance = centred.square().double().mean(-1, keepdim=True).float()
    root = (variance + LAYER_NORM_EPS).double().sqrt().float()
    return centred / root * floats[f"{name}.weight"] + floats[f"{name}.bias"]


def _gelu(x: torch.Tensor) -> torch.Tensor:
    inner = _f32(math.sqrt(2 / math.pi)) * (x + _f32(0.044715) * x * x * x)
    return 0.5 * x * (1 + inner.double().tanh().float())


def _f32(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _linear(checkpoint: Checkpoint, matrix: Matrix, x: torch.Tensor) -> torch.Tensor:
    """Codes of x [T, K] times codes of the matrix, exactly, then the product of their scales."""
    codes, scales = _rounded(checkpoint, checkpoint.config.activations, matrix.name, x)
    weights = stored_codes(checkpoint.config, checkpoint.tensors, matrix)
    fmt_codes = torch.from_numpy(weights.codes).double()
    levels = fmt_codes - 1 if checkpoint.config.weights == "ternary" else 2 * fmt_codes - 1
    assert weights.scales is not None
    return (codes @ levels.T).float() * (scales * torch.from_numpy(weights.scales).T)


def _attend(checkpoint: Checkpoint, layer: int, qkv: torch.Tensor) -> torch.Tensor:
    """qkv [T, 3D] → context [T, D]."""
    shape, kind = checkpoint.config.shape, checkpoint.config.attention
    q, k, v = qkv.view(len(qkv), 3, shape.heads, shape.head_dim).permute(1, 2, 0, 3)  # each [H, T, E]
    ahead = torch.ones(len(qkv), len(qkv), dtype=torch.bool).triu(1)
    if kind == "fp32":
        mixed = _attend_in_lanes(q, k, v, ahead)
    else:
        owner = f"h.{layer}.attn"
        qc, qs = _rounded(checkpoint, kind, f"{owner}.q", q)
        kc, ks = _rounded(checkpoint, kind, f"{owner}.k", k)
        vc, vs = _rounded(checkpoint, kind, f"{owner}.v", v)
        scores = (qc @ kc.mT) * (qs.double() * ks.double().mT) * shape.head_dim**-0.5
        probabilities = scores.masked_fill(ahead, -math.inf).softmax(-1).float()
        pc, ps = _rounded(checkpoint, kind, f"{owner}.p", probabilities, signed=False)
        mixed = ((pc * vs.double().mT) @ vc * ps.double()).float()
    return mixed.transpose(0, 1).reshape(len(qkv), -1)


def _rounded(checkpoint: Checkpoint, kind: str, owner: str, x: torch.Tensor, signed: bool = True) -> Codes:
    """x [..., K] as codes and scales, by the kind's equation (`nearbank.models.rounding`)."""
    if kind in LEARNED:
        alpha = torch.from_numpy(checkpoint.tensors[f"{owner}.alpha"])
        form = (checkpoint.config.variant or "paper") if signed else "paper"
        return _elastic_codes(x, alpha, Elastic(int(kind[-1]), signed, form)), alpha.expand(*x.shape[:-1], 1)
    if kind == "int8":
        scale = x.abs().amax(-1, keepdim=True) / (127 if signed else 255)
        return (x / torch.where(scale > 0, scale, 1)).round().double(), scale
    size = x.abs()
    count = x.shape[-1] if signed else (x > 0).sum(-1, keepdim=True)  # masked positions are 0 and do not count
    mean = (size.double().sum(-1, keepdim=True) / count).float()
    if kind == "bwn":
        return (torch.where(x >= 0, 1.0, -1.0) if signed else (x > 0).float()).double(), mean
    large = size > _f32(0.7) * mean
    total = (size * large).double().sum(-1, keepdim=True) / large.sum(-1, keepdim=True).clamp_min(1)
    return (x.sign() * large).double(), total.float()


def _elastic_codes(x: torch.Tensor, alpha: torch.Tensor, kind: Elastic) -> torch.Tensor:
    if kind.offset == "mean":
        x = x - x.double().mean(-1, keepdim=True).float()
    elif kind.offset == "minimum":
        x = x - x.amin(-1, keepdim=True)
    ratio = x / alpha
    if kind.bits == 1 and kind.signed:
        return torch.where(ratio >= 0, 1.0, -1.0).double()
    return ratio.clamp(kind.low, kind.high).round().double()


def _attend_in_lanes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ahead: torch.Tensor) -> torch.Tensor:
    """[H, T, E] each → [H, T, E]: as `nearbank.kernels.reference.attention` with a cache that rounds nothing."""
    scores = _dot_in_lanes(q, k) * _f32(q.shape[-1] ** -0.5)
    scores = scores.masked_fill(ahead, -math.inf)
    weights = _exp(scores - scores.amax(-1, keepdim=True))
    total = torch.zeros_like(v)
    for j in range(v.shape[1]):  # the context adds token by token
        total = total + weights[:, :, j : j + 1] * v[:, j : j + 1]
    return total / _sum_in_lanes(weights)[..., None]


def _dot_in_lanes(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x [..., M, K] · w [..., N, K] → [..., M, N], adding over K in lanes. K is a multiple of the lanes here."""
    total = torch.zeros(*x.shape[:-1], w.shape[-2], LANES)
    for j in range(0, x.shape[-1], LANES):
        total = total + x[..., :, None, j : j + LANES] * w[..., None, :, j : j + LANES]
    return _fold(total)


def _sum_in_lanes(x: torch.Tensor) -> torch.Tensor:
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % LANES))
    total = torch.zeros(*x.shape[:-1], LANES)
    for j in range(0, padded.shape[-1], LANES):
        total = total + padded[..., j : j + LANES]
    return _fold(total)


def _fold(lanes: torch.Tensor) -> torch.Tensor:
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def _exp(x: torch.Tensor) -> torch.Tensor:
    """exp(x) for x ≤ 0, as `nearbank.kernels.reference.exponential`."""
    clamped = x.clamp_min(float(LEAST))
    n = (clamped * float(LOG2_E) + float(ROUND)) - float(ROUND)
    r = (clamped - n * float(LN2_HIGH)) - n * float(LN2_LOW)
    poly = torch.full_like(r, float(TAYLOR[0]))
    for c in TAYLOR[1:]:
        poly = poly * r + float(c)
    value = (poly * (r * r) + r) + 1.0
    power = ((n.to(torch.int32) + 127) << 23).view(torch.float32)
    return torch.where(x < float(LEAST), 0.0, value * power)

"""The LLaMA family: RMSNorm, rotary positions, grouped-query attention, a gated MLP.

One network for LLaMA 2/3, Mistral, Qwen 2/2.5/3, Gemma 1/2, Phi-3 and BitNet b1.58. What differs is in `Llama`'s
fields and in which optional norms a block has: Qwen 3 normalises queries and keys, BitNet normalises before `proj`
and `down`, Gemma 2 after both halves; Phi-3 stores q, k, v and gate, up as one matrix each.

Shapes: M new tokens, D width, H heads, G KV heads, E head_dim, F hidden, V vocabulary. Weights are [outputs, inputs].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from nearbank.models.execution import Floats, Linear, Pass, Tokens
from nearbank.models.functions import gelu_tanh, relu_squared, rms_norm, silu
from nearbank.models.operations import OUTSIDE
from nearbank.models.rotary import Rotary, rotary_from, rotate
from nearbank.models.shape import Shape
from nearbank.models.tensors import Tensors


@dataclass(frozen=True)
class Rms:
    """RMSNorm: weight [D] and what is added to the mean square."""

    weight: Floats
    eps: float

    def __call__(self, x: Floats) -> Floats:
        return rms_norm(x, self.weight, self.eps)


@dataclass(frozen=True)
class Block:
    ln_1: Rms
    qkv: tuple[Linear, ...]  # [HE, D], [GE, D], [GE, D], or one of [HE + 2GE, D]
    proj: Linear  # [D, HE]
    ln_2: Rms
    gate_up: tuple[Linear, ...]  # [F, D], [F, D], or one of [2F, D]
    down: Linear  # [D, F]
    q_norm: Rms | None = None  # [E]
    k_norm: Rms | None = None  # [E]
    attn_sub: Rms | None = None  # [HE]
    attn_post: Rms | None = None  # [D]
    mlp_sub: Rms | None = None  # [F]
    mlp_post: Rms | None = None  # [D]


@dataclass(frozen=True)
class Llama:
    """A network of the family. softcap: of the logits, cap · tanh(logit / cap)."""

    shape: Shape
    embedding: Floats  # [V, D]
    blocks: tuple[Block, ...]
    ln_f: Rms
    head: Linear  # [V, D]
    rotary: Rotary
    activation: Callable[[Floats], Floats]
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    softcap: float | None = None

    def forward(self, run: Pass, every: bool = False) -> Floats:
        """Logits [sequences, V] after the last token of each sequence, or [M, V] after every token."""
        x = run.embed("wte", self._embed, run.tokens)  # [M, D]
        angles = self.rotary.angles(run.positions, run.reach)
        for run.layer, block in enumerate(self.blocks):
            x = self._attend(run, block, x, angles)
            x = self._mlp(run, block, x)
        run.layer = OUTSIDE
        x = x if every else x[run.last]
        logits = run.matmul(self.head, run.norm("ln_f", self.ln_f, x))
        return logits if self.softcap is None else _soft_capped(logits, np.float32(self.softcap))

    def _embed(self, tokens: Tokens) -> Floats:
        return self.embedding[tokens] * np.float32(self.embedding_scale)

    def _attend(self, run: Pass, block: Block, x: Floats, angles: tuple[Floats, Floats]) -> Floats:
        h = run.norm("ln_1", block.ln_1, x)
        q, k, v = self._heads(np.concatenate([run.matmul(part, h) for part in block.qkv], axis=1))
        q, k = _head_norm(run, "attn.q_norm", block.q_norm, q), _head_norm(run, "attn.k_norm", block.k_norm, k)
        turned = run.activation("attn.rope", rotate, np.concatenate((q, k), axis=1), *angles)  # [M, H + G, E]
        heads = self.shape.heads
        window = self.shape.window(run.layer)
        mixed = run.attend("attn", turned[:, :heads], turned[:, heads:], v, self.attention_scale, window)  # [M, H, E]
        flat = _optional(run, "attn.sub_norm", block.attn_sub, mixed.reshape(len(x), -1))
        y = _optional(run, "attn.post_norm", block.attn_post, run.matmul(block.proj, flat))
        return run.residual("attn.residual", x, y)

    def _heads(self, qkv: Floats) -> tuple[Floats, Floats, Floats]:
        """[M, HE + 2GE] → [M, H, E], [M, G, E], [M, G, E]."""
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        split = qkv.reshape(len(qkv), heads + 2 * kv_heads, self.shape.head_dim)
        return split[:, :heads], split[:, heads : heads + kv_heads], split[:, heads + kv_heads :]

    def _mlp(self, run: Pass, block: Block, x: Floats) -> Floats:
        h = run.norm("ln_2", block.ln_2, x)
        gate_up = np.concatenate([run.matmul(part, h) for part in block.gate_up], axis=1)  # [M, 2F]
        gate, up = np.split(gate_up, 2, axis=1)
        h = run.activation(f"mlp.{self.shape.activation}", self.activation, gate)
        h = run.activation("mlp.product", np.multiply, h, up)  # [M, F]
        h = _optional(run, "mlp.sub_norm", block.mlp_sub, h)
        y = _optional(run, "mlp.post_norm", block.mlp_post, run.matmul(block.down, h))
        return run.residual("mlp.residual", x, y)


def _optional(run: Pass, name: str, norm: Rms | None, x: Floats) -> Floats:
    return x if norm is None else run.norm(name, norm, x)


def _head_norm(run: Pass, name: str, norm: Rms | None, x: Floats) -> Floats:
    """Each head [E] of x [M, heads, E] by itself."""
    return _optional(run, name, norm, x.reshape(-1, x.shape[-1])).reshape(x.shape)


def _soft_capped(x: Floats, cap: np.float32) -> Floats:
    return np.asarray(np.tanh(x / cap) * cap, dtype=np.float32)


@dataclass(frozen=True)
class Traits:
    """What a member of the family does differently.

    fused: q, k, v and gate, up are one matrix each; norm_offset: added to the stored weights of norms.
    """

    fused: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    sub_norms: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    scaled_embedding: bool = False


TRAITS: Mapping[str, Traits] = MappingProxyType(
    {
        "llama": Traits(),
        "mistral": Traits(),
        "qwen2": Traits(qkv_bias=True),
        "qwen3": Traits(qk_norm=True),
        "gemma": Traits(norm_offset=1.0, scaled_embedding=True),
        "gemma2": Traits(norm_offset=1.0, scaled_embedding=True, post_norms=True),
        "phi3": Traits(fused=True),
        "bitnet": Traits(sub_norms=True),
    }
)
ACTIVATIONS: Mapping[str, Callable[[Floats], Floats]] = MappingProxyType(
    {"silu": silu, "gelu": gelu_tanh, "relu2": relu_squared}
)


def load_llama(shape: Shape, config: Mapping[str, Any], tensors: Tensors) -> Llama:
    """A network from a Hugging Face configuration and tensors `model.embed_tokens.weight`, `model.layers.0` …"""
    traits = TRAITS[shape.family]
    eps = float(config.get("rms_norm_eps", 1e-6))
    embedding = tensors.floats("model.embed_tokens.weight", shape.vocabulary, shape.width)
    untied = tensors.has("lm_head.weight") and not config.get("tie_word_embeddings", False)
    scalar = config.get("query_pre_attn_scalar")
    return Llama(
        shape,
        embedding,
        tuple(_load_block(shape, config, tensors.at(f"model.layers.{i}.")) for i in range(shape.layers)),
        _load_norm(tensors, "model.norm", shape.width, eps, traits),
        tensors.head(tensors.floats("lm_head.weight", *embedding.shape) if untied else embedding),
        rotary_from(config, shape.head_dim),
        ACTIVATIONS[shape.activation],
        embedding_scale=shape.width**0.5 if traits.scaled_embedding else 1.0,
        attention_scale=None if scalar is None else float(scalar) ** -0.5,
        softcap=config.get("final_logit_softcapping"),
    )


def _load_norm(tensors: Tensors, name: str, width: int, eps: float, traits: Traits) -> Rms:
    return Rms(tensors.floats(f"{name}.weight", width) + np.float32(traits.norm_offset), eps)


def _load_block(shape: Shape, config: Mapping[str, Any], tensors: Tensors) -> Block:
    traits, eps = TRAITS[shape.family], float(config.get("rms_norm_eps", 1e-6))
    bias = bool(config.get("attention_bias", False))
    mlp_bias = bool(config.get("mlp_bias", False))
    second = "pre_feedforward_layernorm" if traits.post_norms else "post_attention_layernorm"

    def norm(name: str, width: int, present: bool = True) -> Rms | None:
        return _load_norm(tensors, name, width, eps, traits) if present else None

    return Block(
        _load_norm(tensors, "input_layernorm", shape.width, eps, traits),
        _load_qkv(shape, tensors.at("self_attn."), bias or traits.qkv_bias),
        tensors.linear("self_attn.o_proj", "attn.proj", shape.width, shape.q_width, bias),
        _load_norm(tensors, second, shape.width, eps, traits),
        _load_gate_up(shape, tensors.at("mlp."), mlp_bias),
        tensors.linear("mlp.down_proj", "mlp.down", shape.width, shape.hidden, mlp_bias),
        q_norm=norm("self_attn.q_norm", shape.head_dim, traits.qk_norm),
        k_norm=norm("self_attn.k_norm", shape.head_dim, traits.qk_norm),
        attn_sub=norm("self_attn.attn_sub_norm", shape.q_width, traits.sub_norms),
        attn_post=norm("post_attention_layernorm", shape.width, traits.post_norms),
        mlp_sub=norm("mlp.ffn_sub_norm", shape.hidden, traits.sub_norms),
        mlp_post=norm("post_feedforward_layernorm", shape.width, traits.post_norms),
    )


def _load_qkv(shape: Shape, tensors: Tensors, bias: bool) -> tuple[Linear, ...]:
    if TRAITS[shape.family].fused:
        return (tensors.linear("qkv_proj", "attn.qkv", shape.q_width + 2 * shape.kv_width, shape.width, bias),)
    sizes = {"q": shape.q_width, "k": shape.kv_width, "v": shape.kv_width}
    return tuple(tensors.linear(f"{x}_proj", f"attn.{x}", n, shape.width, bias) for x, n in sizes.items())


def _load_gate_up(shape: Shape, tensors: Tensors, bias: bool) -> tuple[Linear, ...]:
    if TRAITS[shape.family].fused:
        return (tensors.linear("gate_up_proj", "mlp.gate_up", 2 * shape.hidden, shape.width, bias),)
    return tuple(tensors.linear(f"{x}_proj", f"mlp.{x}", shape.hidden, shape.width, bias) for x in ("gate", "up"))

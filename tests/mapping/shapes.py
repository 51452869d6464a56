"""Models and machines that the mapping's tests share."""

from __future__ import annotations

from collections.abc import Iterator

from nearbank.trace import Block, Matrix, ModelDescription, Operation, Step


def gpt(
    name: str, layers: int, width: int, heads: int, vocabulary: int = 50257, context: int = 1024
) -> ModelDescription:
    """A GPT-2 shaped model."""
    matrices = (
        Matrix(name="attn.qkv", n=3 * width, k=width, per_layer=True),
        Matrix(name="attn.proj", n=width, k=width, per_layer=True),
        Matrix(name="mlp.fc1", n=4 * width, k=width, per_layer=True),
        Matrix(name="mlp.fc2", n=width, k=4 * width, per_layer=True),
        Matrix(name="lm_head", n=vocabulary, k=width, per_layer=False),
    )
    return ModelDescription(
        name=name,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        hidden=4 * width,
        vocabulary=vocabulary,
        context=context,
        matrices=matrices,
    )


def paper_models() -> list[ModelDescription]:
    """The eight models PIM-GPT was evaluated with."""
    sizes = {
        "gpt2-small": (12, 768, 12),
        "gpt2-medium": (24, 1024, 16),
        "gpt2-large": (36, 1280, 20),
        "gpt2-xl": (48, 1600, 25),
        "gpt3-small": (12, 768, 12),
        "gpt3-medium": (24, 1024, 16),
        "gpt3-large": (24, 1536, 16),
        "gpt3-xl": (24, 2048, 16),
    }
    return [gpt(name, *size) for name, size in sizes.items()]


def steps(model: ModelDescription, prompt: int, tokens: int, window: int | None = None) -> Iterator[Step]:
    """The prompt, then one token a step, in bf16."""
    yield Step(0, "prefill", _blocks(model, prompt, prompt, window))
    for i in range(1, tokens):
        yield Step(i, "decode", _blocks(model, 1, prompt + i, window))


def _blocks(model: ModelDescription, m: int, end: int, window: int | None) -> tuple[Block, ...]:
    head = model.matrices[-1]
    after = (
        Operation("norm", "ln_f", m=1, n=model.width),
        Operation("matmul", "lm_head", m=1, n=head.n, k=head.k, weights="bf16", inputs="bf16"),
        Operation("sample", "sample", m=1, n=head.n),
    )
    return (
        Block(-1, 1, (Operation("embed", "wte", m=m, n=model.width),)),
        Block(0, model.layers, _layer(model, m, end, window)),
        Block(-1, 1, after),
    )


def _layer(model: ModelDescription, m: int, end: int, window: int | None) -> tuple[Operation, ...]:
    seen = end if window is None else min(end, window)
    sizes = {matrix.name: {"n": matrix.n, "k": matrix.k} for matrix in model.matrices}
    heads = {"m": m, "heads": model.heads, "context": seen, "pairs": m * end - m * (m - 1) // 2}
    cached = heads | {"kv_heads": model.kv_heads, "kv": "bf16"}

    def matmul(name: str) -> Operation:
        return Operation("matmul", name, m=m, weights="bf16", inputs="bf16", **sizes[name])

    return (
        Operation("norm", "ln_1", m=m, n=model.width),
        matmul("attn.qkv"),
        Operation(
            "append", "kv", m=m, n=model.kv_heads * model.head_dim, kv_heads=model.kv_heads, context=end, kv="bf16"
        ),
        Operation("score", "score", k=model.head_dim, **cached),
        Operation("softmax", "softmax", **heads),
        Operation("context", "context", n=model.head_dim, **cached),
        matmul("attn.proj"),
        Operation("residual", "r1", m=m, n=model.width),
        Operation("norm", "ln_2", m=m, n=model.width),
        matmul("mlp.fc1"),
        Operation("activation", "gelu", m=m, n=model.hidden),
        matmul("mlp.fc2"),
        Operation("residual", "r2", m=m, n=model.width),
    )

"""The card of a trained checkpoint: what it is, what it learned from, how good it is, how to train it again."""

import os
import platform

from nearbank.models.checkpoint import Checkpoint
from nearbank.models.training.data import Corpus
from nearbank.models.training.options import TrainOptions


def card_text(checkpoint: Checkpoint, corpus: Corpus, options: TrainOptions, training_time_s: float) -> str:
    """Markdown."""
    origin, config = checkpoint.origin, checkpoint.config
    gap = origin.val_loss_nats - origin.val_loss_twin_nats
    size = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    tokens = options.batch * options.context
    return f"""# {config.name}

A character-level GPT: {config.shape.layers} layers, width {config.shape.width}, {config.shape.heads} heads,
context {config.shape.context}, {config.shape.vocabulary} characters.
{config.block_parameters():,} {config.weights} weights, {config.parameters():,} parameters in all,
{size:,} bytes of tensors.

Block matrices: {config.weights}, one float32 scale per output row, quantiser of "Binary and Ternary Natural Language
Generation" (arXiv 2306.01841), {config.variant} form. Their inputs: 8-bit integers, one scale max|x|/127 per token.
(The authors clip 8-bit activations to ±2.5 with one scale per tensor over batch and tokens, which lets later tokens
influence earlier ones; a scale per token is causal and can be deployed.)
Embeddings and the tied LM head: float16. LayerNorms: float32.

| model | validation loss, nats per character |
|---|---|
| full-precision twin (float32) | {origin.val_loss_twin_nats:.4f} |
| this checkpoint, measured on the packed values | {origin.val_loss_nats:.4f} |
| difference | {gap:+.4f} |

Validation: the last 10 % of the text ({len(corpus.validation):,} characters), cut into windows of
{config.shape.context} characters side by side (the last one shorter). Every character but the first is predicted
once, from the characters before it in its window; the mean over all of them, in float32. Both models alike.

Data: {options.text.name}, SHA-256 `{corpus.sha256}`;
the first 90 % ({len(corpus.train):,} characters) trained.

Training: twin {origin.twin_steps} steps, then the student {origin.student_steps} steps from the twin's weights with
straight-through gradients; its loss is the mean of the text's cross-entropy and the Kullback-Leibler divergence from
the twin's probabilities. {tokens:,} characters per step, Muon for the block matrices and AdamW for the rest,
bfloat16 autocast, warm-up {options.warmup_steps} steps, linear fall to zero over the last {options.decay_percent} %,
learning rates {options.twin_lr:g} and {options.student_lr:g}, dropout {options.dropout:g} (twin only),
seed {options.seed}.
{training_time_s / 60:.0f} minutes of steps on {_machine(options)}, torch {origin.torch_version}, {origin.date}.

Again, on the same text:

    {_command(options)}
"""


def _machine(options: TrainOptions) -> str:
    if options.device == "cuda":
        return "one GPU"
    return f"{options.threads} threads of a {os.cpu_count()}-core {platform.machine()} CPU"


def _command(options: TrainOptions) -> str:
    shown = (
        "layers", "width", "heads", "context", "batch", "twin_steps", "student_steps", "seed", "threads", "device",
    )  # fmt: skip
    flags = " ".join(f"--{key.replace('_', '-')} {getattr(options, key)}" for key in shown)
    return f"nearbank train {options.text.name} --out {options.name} {flags}"

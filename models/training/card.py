"""The card of a trained checkpoint: what it is, what it learned from, how good it is, how to train it again."""

import os
import platform
from dataclasses import asdict

from nearbank.models.checkpoint import Checkpoint
from nearbank.models.config import ModelConfig
from nearbank.models.training.data import Corpus
from nearbank.models.training.optimiser import working_dtype
from nearbank.models.training.options import TrainOptions

ACTIVATIONS = {
    "fp32": "not rounded",
    "int8": "8-bit integers, one scale per token",
    "elastic2": "−1, 0, 1 (0, 1, 2 where nowhere negative) times a learned scale",
    "elastic1": "−1, 1 (0, 1 where nowhere negative) times a learned scale",
    "twn": "−1, 0, 1 by TWN's rule, one scale per token",
    "bwn": "−1, 1 by BWN's rule, one scale per token",
}


def card_text(checkpoint: Checkpoint, corpus: Corpus, options: TrainOptions, training_time_s: float) -> str:
    """Markdown."""
    origin, config = checkpoint.origin, checkpoint.config
    size = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    return f"""# {config.name}

A character-level GPT: {config.shape.layers} layers, width {config.shape.width}, {config.shape.heads} heads,
context {config.shape.context}, {config.shape.vocabulary} characters.
{config.block_parameters():,} {config.weights} weights in the blocks, {config.parameters():,} parameters in all,
{size:,} bytes of tensors.

{_numbers(config)}

{_losses(checkpoint)}

Validation: the last 10 % of the text ({len(corpus.validation):,} characters), cut into windows of
{config.shape.context} characters side by side (the last one shorter). Every character but the first is predicted
once, from the characters before it in its window; the mean over all of them, in float32. Both models alike.

Data: {options.text.name}, SHA-256 `{corpus.sha256}`;
the first 90 % ({len(corpus.train):,} characters) trained.

{_training(options)}
{options.batch * options.context:,} characters per step, Muon for the block matrices and AdamW for the rest,
matrix products in {_products(options)}, warm-up {options.warmup_steps} steps, linear fall to zero over the last
{options.decay_percent} %,
learning rates {options.twin_lr:g} and {options.student_lr:g}, dropout {options.dropout:g} (twin only),
seed {options.seed}.
{training_time_s / 60:.0f} minutes of steps on {_machine(options)}, torch {origin.torch_version}, {origin.date}.

Again, on the same text:

    {_command(options)}
"""


def _numbers(config: ModelConfig) -> str:
    """How weights and activations are stored."""
    if not config.is_packed:
        return "All tensors: float32."
    return f"""Block matrices: {config.weights}, one float32 scale per output row, quantiser of "Binary and Ternary
Natural Language Generation" (arXiv 2306.01841), {config.variant} form. Their inputs: {ACTIVATIONS[config.activations]}.
Queries, keys, values and attention probabilities: {ACTIVATIONS[config.attention]}.
Embeddings and the tied LM head: float16. LayerNorms: float32."""


def _losses(checkpoint: Checkpoint) -> str:
    origin = checkpoint.origin
    rows = [("full-precision twin (float32)", f"{origin.val_loss_twin_nats:.4f}")]
    if origin.student_steps:
        gap = origin.val_loss_nats - origin.val_loss_twin_nats
        rows.append(("this checkpoint, measured on the packed values", f"{origin.val_loss_nats:.4f}"))
        rows.append(("difference", f"{gap:+.4f}"))
    table = "\n".join(f"| {model} | {loss} |" for model, loss in rows)
    return f"| model | validation loss, nats per character |\n|---|---|\n{table}"


def _training(options: TrainOptions) -> str:
    twin = "a twin from another run" if options.teacher else f"twin {options.twin_steps} steps"
    if not options.has_student:
        return f"Training: {options.twin_steps} steps on the text."
    started = f"Training: {twin}, then {options.student_steps} steps from the twin's weights"
    if not options.recipe.distilled:
        return f"{started} on the text alone."
    return f"""{started};
the loss is the mean of the text's cross-entropy and the Kullback-Leibler divergence from the twin's probabilities,
plus {options.hidden_weight:g} × the relative squared distance of the hidden states and {options.attention_weight:g} ×
that of the attention scores."""


def _products(options: TrainOptions) -> str:
    return str(working_dtype(options.device)).removeprefix("torch.")


def _machine(options: TrainOptions) -> str:
    if options.device == "cuda":
        return "one GPU"
    return f"{options.threads} threads of a {os.cpu_count()}-core {platform.machine()} CPU"


def _command(options: TrainOptions) -> str:
    unsaid = ("text", "name", "teacher", "weight_decay", "save_every", "evaluate_every")
    shown = {key: value for key, value in asdict(options).items() if key not in unsaid}
    flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in shown.items())
    teacher = "" if options.teacher is None else f" --teacher {options.teacher.name}"
    return f"nearbank train {options.text.name} --out {options.name} --name {options.name}{teacher} {flags}"

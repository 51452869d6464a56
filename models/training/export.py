"""From a trained network to a packed checkpoint, and back into a torch network that computes with the packed values."""

import datetime

import numpy as np
import torch

from nearbank.formats import FORMATS
from nearbank.models.checkpoint import Checkpoint, Origin, Tensors, stored_codes
from nearbank.models.config import ModelConfig
from nearbank.models.shape import gpt_shape
from nearbank.models.training.data import Corpus
from nearbank.models.training.network import CharGpt, Rounding
from nearbank.models.training.options import TrainOptions
from nearbank.models.training.straight_through import PARTS
from nearbank.models.training.tasks import validation_loss


def pack_network(trained: CharGpt, twin: CharGpt, corpus: Corpus, options: TrainOptions) -> Checkpoint:
    """The trained network as a checkpoint; its validation loss is measured on the packed values."""
    config = _config_of(corpus, options)
    tensors = _pack(trained, config, options)
    packed = unpack_network(config, tensors).to(options.device)
    origin = Origin(
        val_loss_nats=validation_loss(packed, corpus.validation, options.context),
        val_loss_twin_nats=validation_loss(twin, corpus.validation, options.context),
        twin_steps=options.twin_steps,
        student_steps=options.student_steps if options.has_student else 0,
        batch=options.batch,
        seed=options.seed,
        data_sha256=corpus.sha256,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        torch_version=torch.__version__,
        device=options.device,
    )
    return Checkpoint(config, corpus.vocabulary, origin, tensors)


def _config_of(corpus: Corpus, options: TrainOptions) -> ModelConfig:
    sizes = (options.layers, options.width, options.heads, len(corpus.vocabulary), options.context)
    recipe = options.recipe
    form = options.form if recipe.rounds else None
    kind = recipe.activations
    return ModelConfig(gpt_shape(options.name, *sizes), True, recipe.stored_as, kind, form, kind)


def _pack(trained: CharGpt, config: ModelConfig, options: TrainOptions) -> Tensors:
    values = {name: tensor.detach().cpu().numpy() for name, tensor in trained.state_dict().items()}
    tensors: Tensors = {name: values[_torch_name(name)].astype(dtype) for name, (dtype, _) in config.floats().items()}
    if options.recipe.rounds:
        for matrix in config.all_block_matrices():
            latent = trained.get_parameter(f"{matrix.name}.weight").detach().cpu()
            codes, alpha = PARTS[options.recipe.weights](latent, options.form)
            tensors |= _stored(matrix.name, config.weights, codes.numpy(), alpha.numpy())
    for name in config.alphas():
        module = trained.get_submodule(_rounding_name(name))
        tensors[name] = module.alpha.detach().cpu().numpy().astype(np.float32).reshape(1)  # type: ignore[operator]
    return tensors


def _stored(name: str, weights: str, codes: np.ndarray, alpha: np.ndarray) -> Tensors:
    """Signs −1, 0, 1 as packed codes, and scales."""
    fmt = FORMATS[weights]
    packed = fmt.pack(((codes + fmt.zero) / fmt.step).astype(np.uint8))
    return {f"{name}.codes": packed, f"{name}.scale": alpha[:, 0].astype(np.float32)}


def unpack_network(config: ModelConfig, tensors: Tensors) -> CharGpt:
    """A torch network in float32 that has the checkpoint's values for weights, and its rounding of activations."""
    shape = config.shape
    rounding = Rounding("fp32", config.activations, config.attention, config.variant or "paper")
    network = CharGpt(shape.vocabulary, shape.layers, shape.width, shape.heads, shape.context, rounding)
    state = network.state_dict()
    state |= {_torch_name(name): _float32(tensors[name]) for name in config.floats()}
    if config.is_packed:
        for matrix in config.all_block_matrices():
            weights = FORMATS[config.weights].dequantise(stored_codes(config, tensors, matrix))
            state[f"{matrix.name}.weight"] = torch.from_numpy(weights)
    state |= {f"{_rounding_name(name)}.first": _float32(tensors[name])[0] for name in config.alphas()}
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def _float32(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _torch_name(name: str) -> str:
    return f"{name}.weight" if name in ("wte", "wpe") else name


def _rounding_name(alpha: str) -> str:
    """h.0.attn.qkv.alpha is learned by h.0.attn.qkv.input, h.0.attn.q.alpha by h.0.attn.mix.q."""
    owner, _, part = alpha.removesuffix(".alpha").rpartition(".")
    return f"{owner}.mix.{part}" if part in ("q", "k", "v", "p") else f"{owner}.{part}.input"

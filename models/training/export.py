"""From a trained student to a packed checkpoint, and back into a torch network that computes with the packed values."""

import datetime

import numpy as np
import torch

from nearbank.formats import FORMATS
from nearbank.models.checkpoint import Checkpoint, Origin, Tensors, stored_codes
from nearbank.models.config import ModelConfig
from nearbank.models.quantize import WeightQuantiser
from nearbank.models.shape import gpt_shape
from nearbank.models.training.data import Corpus
from nearbank.models.training.distill import validation_loss
from nearbank.models.training.network import CharGpt
from nearbank.models.training.options import TrainOptions
from nearbank.models.training.straight_through import STORED


def pack_student(student: CharGpt, twin: CharGpt, corpus: Corpus, options: TrainOptions) -> Checkpoint:
    """The student as a checkpoint; its validation loss is measured on the packed values."""
    config = _config_of(corpus, options)
    tensors = _pack(student, config)
    packed = unpack_network(config, tensors).to(options.device)
    origin = Origin(
        val_loss_nats=validation_loss(packed, corpus.validation, options.context),
        val_loss_twin_nats=validation_loss(twin, corpus.validation, options.context),
        twin_steps=options.twin_steps,
        student_steps=options.student_steps,
        batch=options.batch,
        seed=options.seed,
        data_sha256=corpus.sha256,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        torch_version=torch.__version__,
        device=options.device,
    )
    return Checkpoint(config, corpus.vocabulary, origin, tensors)


def _config_of(corpus: Corpus, options: TrainOptions) -> ModelConfig:
    shape = gpt_shape(
        options.name, options.layers, options.width, options.heads, len(corpus.vocabulary), options.context
    )
    return ModelConfig(shape, True, options.weights, "int8", options.variant)


def _pack(student: CharGpt, config: ModelConfig) -> Tensors:
    values = {name: tensor.detach().cpu().numpy() for name, tensor in student.state_dict().items()}
    tensors: Tensors = {
        name: values[_torch_name(name)].astype(np.float16 if len(dims) == 2 else np.float32)
        for name, dims in config.vector_shapes().items()
    }
    assert config.variant is not None
    quantiser = WeightQuantiser(config.weights, config.variant)
    for layer in range(config.shape.layers):
        for matrix in config.block_matrices(layer):
            quantised = quantiser.apply(values[f"{matrix.name}.weight"])
            assert quantised.scales is not None
            tensors[f"{matrix.name}.codes"] = quantiser.stored_as.pack(quantised.codes)
            tensors[f"{matrix.name}.scale"] = quantised.scales[:, 0]
    return tensors


def unpack_network(config: ModelConfig, tensors: Tensors) -> CharGpt:
    """A torch network in float32 whose block weights are the packed ones and whose inputs are rounded to 8 bits."""
    shape = config.shape
    network = CharGpt(shape.vocabulary, shape.layers, shape.width, shape.heads, shape.context, STORED)
    state = {_torch_name(name): torch.from_numpy(tensors[name].astype(np.float32)) for name in config.vector_shapes()}
    stored_as = FORMATS[config.weights]
    for layer in range(shape.layers):
        for matrix in config.block_matrices(layer):
            weights = stored_as.dequantise(stored_codes(config, tensors, matrix))
            state[f"{matrix.name}.weight"] = torch.from_numpy(weights)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def _torch_name(name: str) -> str:
    return f"{name}.weight" if name in ("wte", "wpe") else name

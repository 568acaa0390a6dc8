"""Weights to start from (model.init): adapted to the model's grid of patches and its number of classes."""

from __future__ import annotations

import math
from typing import Callable, Dict, List, Sequence, Tuple

from torch import Tensor

from vit_ipu.backends.contract import Backend
from vit_ipu.config import Config, ModelConfig
from vit_ipu.errors import CheckpointError
from vit_ipu.text import Notify, counted
from vit_ipu.weights.describe import assumptions_of_config
from vit_ipu.weights.native import ONE_CLASS, SEVERAL_CLASSES
from vit_ipu.weights.position_embeddings import resize_pos_embed
from vit_ipu.weights.read import Weights, read_weights

_REMEDY = "set the keys of model to the shape of the weights, or give other weights"


def load_init(
    config: Config, own: Dict[str, Tensor], *, trust_pickle: bool = False, notify: Notify
) -> Dict[str, Tensor]:
    """Returns the state dict to start from: `own`, that of a fresh model, with the matching weights of model.init.

    Position embeddings are resized to the model's grid, by the rule of the library that the weights come from. A head
    for another number of classes is zero, or fresh if model.head_init says so. A representation layer that the weights
    lack keeps its fresh value; a representation layer that the model lacks is dropped. `notify` is told of each change.
    Raises CheckpointError for any other mismatch.
    """
    source = config.model.init
    assert source is not None
    try:
        weights = read_weights(source, sha256=config.model.init_sha256, trust_pickle=trust_pickle, notify=notify)
        require_heads(weights, config)
        notify(f"starting from {source}, {weights.origin} naming")
        for note in assumptions_of_config(weights, config.model, config.data) + differing_settings(weights, config):
            notify(f"note: {note}")
        return adapt_to_model(weights, _with_new_head(own, config.model), notify=notify)
    except CheckpointError as error:
        raise CheckpointError(f"model.init: {error}") from None


def adapt_to_model(weights: Weights, own: Dict[str, Tensor], *, notify: Notify) -> Dict[str, Tensor]:
    """Returns the tensors with the names, shapes and types of `own`.

    Raises CheckpointError if the weights are of another variant.
    """
    tensors = dict(weights.tensors)
    grid, new_grid = (math.isqrt(state["pos_embed"].shape[1] - 1) for state in (tensors, own))
    if grid != new_grid:
        notify(f"position embeddings resized from {grid} x {grid} to {new_grid} x {new_grid} ({weights.resize_rule})")
        tensors["pos_embed"] = resize_pos_embed(tensors["pos_embed"], new_grid**2, weights.resize_rule)
    tensors = _without_unfit_head(tensors, own, notify=notify)
    missing, extra = key_difference(list(own), list(tensors))
    for name in missing + extra:
        if not name.startswith(("head.", "pre_logits.")):
            problem = "missing" if name in missing else "not in the model"
            raise CheckpointError(f"{weights.source}: {name} is {problem}: {_REMEDY}")
    return {name: _fitting(name, tensors.get(name, tensor), tensor, weights.source) for name, tensor in own.items()}


def differing_settings(weights: Weights, config: Config) -> List[str]:
    """Returns a note for each setting in which the config differs from the weights' training, as far as known."""
    metadata, model, data = weights.metadata, config.model, config.data
    compared = (
        ("model.gelu", model.gelu, metadata.gelu),
        ("model.layer_norm_eps", model.layer_norm_eps, metadata.layer_norm_eps),
        ("data.mean", data.mean, metadata.mean),
        ("data.std", data.std, metadata.std),
    )
    notes = []
    outputs = SEVERAL_CLASSES if config.optim.loss == "bce" else ONE_CLASS
    if metadata.problem_type not in (ONE_CLASS, outputs):
        notes.append(
            f"the weights were trained for {metadata.problem_type}, but this program trains with "
            f"{'sigmoids and binary' if config.optim.loss == 'bce' else 'softmax and'} cross-entropy"
        )
    known, usual = "the weights were trained with", "weights of their naming usually have"
    return notes + [
        f"{key} is {now}, but {known if metadata.states(key.partition('.')[2]) else usual} {before}"
        for key, now, before in compared
        if now != before
    ]


def _with_new_head(own: Dict[str, Tensor], model: ModelConfig) -> Dict[str, Tensor]:
    """Returns the fresh state dict with the weights of a head that replaces another one, or that the weights lack."""
    if model.head_init != "auto":
        return own
    return dict(own, **{"head.weight": own["head.weight"].new_zeros(own["head.weight"].shape)})


def _without_unfit_head(tensors: Dict[str, Tensor], own: Dict[str, Tensor], *, notify: Notify) -> Dict[str, Tensor]:
    """Drops a head for another number of classes.

    Drops representation layer and head if only the weights or only the model have a representation layer.
    """
    classes, features = len(own["head.bias"]), "pre_logits.fc.weight"
    found = len(tensors["head.bias"]) if "head.bias" in tensors else 0
    if found != classes:
        theirs = f"that of the weights has {found}" if found else "the weights have no head"
        notify(f"the head is new, for {counted(classes, 'class', 'classes')}: {theirs}")
        tensors = _without(tensors, "head.")
    if (features in tensors) != (features in own):
        what = "dropped: model.representation_size is null" if features in tensors else "new, and so is the head"
        notify(f"the representation layer is {what}")
        tensors = _without(_without(tensors, "pre_logits."), "head.")
    return tensors


def require_heads(weights: Weights, config: Config) -> None:
    """Raises CheckpointError if the weights are known to have another number of attention heads than the config."""
    if weights.metadata.states("num_heads") and weights.metadata.num_heads != config.model.num_heads:
        raise CheckpointError(
            f"{weights.source} has {weights.metadata.num_heads} attention heads but model.num_heads is "
            f"{config.model.num_heads}: {_REMEDY}"
        )


def _without(tensors: Dict[str, Tensor], prefix: str) -> Dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


def _fitting(name: str, tensor: Tensor, own: Tensor, source: str) -> Tensor:
    if tensor.shape != own.shape:
        raise CheckpointError(
            f"{source}: {name} has shape {tuple(tensor.shape)} but the model needs {tuple(own.shape)}: {_REMEDY}"
        )
    return tensor.to(own.dtype)


# ------------------------------------------------------------------------------------- into a backend


def load_weights(backend: Backend, weights: Weights) -> None:
    """Loads weights of exactly the backend's model. Raises CheckpointError if a name or a shape differs."""
    _load(backend, lambda own: require_same_model(weights.tensors, own, weights.source))


def load_initial_weights(backend: Backend, config: Config, *, trust_pickle: bool = False, notify: Notify) -> None:
    """Loads model.init, adapted to the backend's model."""
    _load(backend, lambda own: load_init(config, own, trust_pickle=trust_pickle, notify=notify))


def _load(backend: Backend, weights_for: Callable[[Dict[str, Tensor]], Dict[str, Tensor]]) -> None:
    backend.load_state_dict({"model": weights_for(backend.state_dict()["model"])})


def require_same_model(weights: Dict[str, Tensor], own: Dict[str, Tensor], source: str) -> Dict[str, Tensor]:
    """Returns the weights. Raises CheckpointError unless they have the names and shapes of `own`."""
    missing, extra = key_difference(list(own), list(weights))
    for name in missing + extra:
        raise CheckpointError(f"{source} is of another model: {name} is in only one of the two")
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            raise CheckpointError(
                f"{source} is of another model: {name} has shape {tuple(weights[name].shape)} there and "
                f"{tuple(tensor.shape)} in the config"
            )
    return weights


def key_difference(expected: Sequence[str], found: Sequence[str]) -> Tuple[List[str], List[str]]:
    """Returns the expected names that are missing, and the found names that are not expected, in order."""
    return [n for n in expected if n not in set(found)], [n for n in found if n not in set(expected)]

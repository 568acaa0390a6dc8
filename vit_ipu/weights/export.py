"""Writes checkpoints for other tools: completely or not at all, and read back before they get their final name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, List, Optional

import torch
from safetensors import SafetensorError

from vit_ipu.config import ModelConfig
from vit_ipu.config_sections.colors import color_text
from vit_ipu.errors import CheckpointError, RunFailed, UserError, suggest
from vit_ipu.files import place_problem, written_whole
from vit_ipu.text import Notify
from vit_ipu.weights.completeness import measured_shape
from vit_ipu.weights.describe import (
    assumptions,
    describe,
    published_heads,
    setting_texts,
    with_heads,
    without_head,
)
from vit_ipu.weights.export_formats import FILE_SUFFIXES, FOLDERS, FORMATS, PICKLES, WRITERS, Export
from vit_ipu.weights.model_card import LIBRARIES, RunFacts, model_card
from vit_ipu.weights.namings import NAMINGS
from vit_ipu.weights.native import ONE_CLASS, PIXEL_SETTINGS, ModelDescription, Preprocessing
from vit_ipu.weights.read import Weights, read_weights


def convert(
    source: str,
    target: Path,
    to: str,
    *,
    sha256: Optional[str] = None,
    trust_pickle: bool = False,
    num_heads: Optional[int] = None,
    features: bool = False,
    facts_of: Callable[[Path], RunFacts] = lambda path: RunFacts(),
    card_name: Optional[str] = None,
    notify: Notify,
) -> Weights:
    """Writes the weights of `source` to `target` in the format `to`, one of FORMATS; returns the weights read.

    `num_heads` are the attention heads of weights that do not state them. `notify` receives a note on settings that
    had to be assumed, which are marked so in the target, and on settings that the format cannot store. `features`
    leaves out the head and the representation layer: weights to start from. A folder for transformers or timm has a
    model card: `facts_of` returns what is known of the training of the checkpoint at a path, and `card_name` is the
    name by which the card's example loads the model, the target's if not given. An existing target is not overwritten.
    Raises UserError for a wrong target, and CheckpointError for weights that cannot be read, or that the format cannot
    store.
    """
    check_target(target, to, features)
    weights = read_weights(source, sha256=sha256, trust_pickle=trust_pickle, notify=notify)
    weights = with_heads(weights, num_heads)
    if features:
        weights = without_head(weights)
    export = Export(weights.tensors, describe(weights, headless=features))
    as_file = bool(target.suffix) and target.suffix in FILE_SUFFIXES[to]
    if to in LIBRARIES and not as_file:
        card = _card(export, weights, to, card_name or target.name, facts_of(weights.path))
        export = replace(export, card=card)
    _check_assumptions_can_be_marked(export, to, source)
    notes = assumptions(weights, export.description) + unsupported_settings(export.model, to, as_file=as_file)
    notes += _unstated_heads(export, to, target) + unsupported_description(export.description, to, as_file=as_file)
    for note in notes:
        notify(f"note: {note}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target, unique=True) as temporary:
            WRITERS[to](export, temporary)
            _check_written(export, temporary, to)
    except (UserError, RunFailed):
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # what torch and safetensors raise if they cannot write
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot write {target}: {reason}") from None
    return weights


def _card(export: Export, weights: Weights, to: str, name: str, facts: RunFacts) -> str:
    size = sum(tensor.numel() for tensor in export.tensors.values())
    origin, source = weights.origin, weights.source
    library = weights.metadata.assumed_from
    return model_card(
        name,
        export.description,
        to=to,
        num_parameters=size,
        source=source,
        origin=origin,
        assumed_from=library,
        facts=facts,
    )


def unsupported_settings(model: ModelConfig, to: str, *, as_file: bool) -> List[str]:
    """Returns notes on settings of the model that the format cannot store, for those who use the exported file."""
    naming = NAMINGS.get(to)
    if naming is None or to == "huggingface":  # these files state the settings
        return []
    if to == "timm" and not as_file:  # timm's config.json states the activation
        naming = replace(naming, gelu=model.gelu)
    notes = []
    if model.gelu != naming.gelu:
        notes.append(f"{to} computes GELU as {naming.gelu}, but the model was trained with {model.gelu}")
    if model.layer_norm_eps != naming.layer_norm_eps:
        notes.append(
            f"{to} has a layer norm epsilon of {naming.layer_norm_eps:g}, but the model was trained with "
            f"{model.layer_norm_eps:g}"
        )
    return notes


def unsupported_description(description: ModelDescription, to: str, *, as_file: bool) -> List[str]:
    """Returns notes on the meaning of outputs and on the pixels, if the format cannot store them."""
    notes = []
    if description.problem_type != ONE_CLASS and to not in ("native", "huggingface", "onnx"):
        notes.append(f"{to} does not state that the model was trained for {description.problem_type}")
    if to not in ("native", "huggingface", "onnx") and (to != "timm" or as_file):
        notes += _unusual_pixels(description, to)
    background = description.preprocessing.background
    if background is not None and to not in ("native", "onnx"):
        notes.append(
            f"{to} does not state that transparent images are laid on {color_text(background)}: do so before the model "
            "gets them"
        )
    return notes


def _unusual_pixels(description: ModelDescription, to: str) -> List[str]:
    """Returns a note if images become pixels in another way than the library's own, which its users would take."""
    model, ours, naming = description.model, description.preprocessing, NAMINGS[to]
    usual = naming.pixels.of_model(width=model.width, patch_size=model.patch_size, side=model.image_size)
    resize = usual.eval_resize(model.image_size)
    theirs = Preprocessing(usual.mean, usual.std, resize, usual.interpolation, usual.eval_crop)
    texts = zip(*(setting_texts(PIXEL_SETTINGS, model, pixels) for pixels in (theirs, ours)))
    differing = [pair for pair in texts if pair[0] != pair[1]]
    if not differing:
        return []
    default, expected = (", ".join(column) for column in zip(*differing))
    return [f"{to} does not state pixels: {naming.library} has {default} by default, but the model expects {expected}"]


def _check_assumptions_can_be_marked(export: Export, to: str, source: str) -> None:
    """Raises CheckpointError if the target would state assumed heads as a fact: in the shapes of google's kernels."""
    if to == "google" and "num_heads" in export.description.assumed:
        raise CheckpointError(
            f"{source} does not state its number of attention heads, and the kernels of a google file would state the "
            f"usual number, {export.model.num_heads}, as a fact: give --num-heads"
        )


def _unstated_heads(export: Export, to: str, target: Path) -> List[str]:
    """Returns a note if the target cannot state the heads and its readers would assume another number of them."""
    heads = export.model.num_heads
    if to not in ("timm", "torchvision", "graphcore") or target.suffix not in PICKLES:
        return []
    if published_heads(measured_shape(export.tensors)) == (heads,):
        return []
    return [f"{target.name} cannot state the number of attention heads, {heads}: read it with --num-heads {heads}"]


def check_target(target: Path, to: str, features: bool) -> None:
    if to not in FORMATS:
        raise UserError(f"--to {to}: unknown{suggest(to, FORMATS)}")
    if features and (to == "onnx" or target.suffix not in FILE_SUFFIXES[to] or not target.suffix):
        raise UserError(
            f"{target}: --features writes weights without a head, not a complete {to} model: write a file --to timm"
        )
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} is already there: give another name")
    problem = place_problem(target)
    if problem is not None:
        raise UserError(f"{target} cannot be made: {problem}: give another path")
    suffixes = FILE_SUFFIXES[to]
    if to not in FOLDERS and target.suffix not in suffixes:
        raise UserError(f"{target}: --to {to} writes a file: give a name that ends in {' or '.join(suffixes)}")
    known = {suffix for group in FILE_SUFFIXES.values() for suffix in group}
    if to in FOLDERS and target.suffix in known and target.suffix not in suffixes:
        raise UserError(f"{target}: {to} is written as a folder{_or_files(suffixes)}")


def _or_files(suffixes: Any) -> str:
    return f" or as a file that ends in {' or '.join(suffixes)}" if suffixes else ", without a suffix"


def _check_written(export: Export, path: Path, to: str) -> None:
    """Reads the checkpoint back, and raises RunFailed unless every tensor is equal to the last bit.

    An ONNX file is checked by its logits when it is written.
    """
    if to == "onnx":
        return
    back = read_weights(str(path), trust_pickle=True).tensors  # this program has just written the file
    for name, tensor in export.tensors.items():
        if name not in back or not torch.equal(back[name], tensor):
            raise RunFailed(f"{to} was not written correctly: {name} differs when it is read back")

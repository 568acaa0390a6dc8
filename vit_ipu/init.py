"""First config for a folder of images: looks at the folder and at the weights, and writes a YAML file that trains."""

from __future__ import annotations

import os
import shlex
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Optional

from vit_ipu import __version__
from vit_ipu.backends.build import DEVICES, resolve_device
from vit_ipu.config_file import SCHEMA_COMMENT, parse_text, schema_file
from vit_ipu.config_sections.colors import Rgb, color_text
from vit_ipu.data.sources.held_out_classes import text_of_note
from vit_ipu.data.sources.survey import FolderSurvey, require_folder_of_images, survey_folder
from vit_ipu.errors import CheckpointError, DeviceError, UserError
from vit_ipu.files import expand_home, is_within, place_problem
from vit_ipu.starter_config import Pictures, StartingWeights, background_of, config_text, describe_shape, model_shape
from vit_ipu.text import Notify, counted, escaped, reason_of
from vit_ipu.variants import VARIANTS
from vit_ipu.weights.describe import assumptions_in_new_config, describe, with_heads
from vit_ipu.weights.fetch import require_source
from vit_ipu.weights.read import read_weights

_FAR_ABOVE = 10
"""The largest picture is named if it has at least this many times the pixels of one of the median size."""
_LONGEST_NAMES = 60
"""Characters of the class names that a comment gives as examples."""


_TRIAL = "--set run.updates=20 --set optim.warmup_updates=5"
"""Options of a short trial: the warmup of a complete run would be longer than it."""


@dataclass(frozen=True)
class Started:
    """A config that was written, and what it is about."""

    path: Path
    """File of the config."""
    folder: FolderSurvey
    model: str
    """The model's shape and where its weights come from, for people."""
    device: str
    train_command: str
    """Command that trains with the config."""


def init(
    folder: str,
    *,
    model: Optional[str] = None,
    device: str = "auto",
    output: Optional[Path] = None,
    num_heads: Optional[int] = None,
    sha256: Optional[str] = None,
    trust_pickle: bool = False,
    notify: Notify = lambda text: None,
) -> Started:
    """Writes a short commented config that trains on the images in `folder`, and returns its path and what was found.

    `model` are weights to fine-tune, as `model.init` names them; None: a small model from random weights. `device` is
    a name of `--device`; that device need not be in this machine. `output` is <folder's name>.yaml in the current
    folder if not given. `num_heads`, `sha256` and `trust_pickle` are as for `convert`. `notify` receives notes on
    files that are left out and on settings that are assumed. Raises UserError if the file exists, and for a folder or
    weights that cannot be used; nothing is written then.
    """
    require_folder_of_images(folder)
    kind = _device_kind(device)
    target = _free_path(output, folder)
    if model is not None:
        _require_weights(model, sha256)
    notes: List[str] = []  # shown once nothing is wrong, so that a mistake is the only line
    survey = survey_folder(folder, notify=notes.append)
    _require_another_current_folder(folder, survey)
    weights = None
    if model is not None:
        weights = _starting_weights(model, target, num_heads, sha256, trust_pickle, notes.append)
    pictures = _pictures_of(survey)
    if survey.not_held_out:
        notes.append(text_of_note(survey.not_held_out, len(survey.classes)))
    notes += _notes_on_pictures(survey, background_of(pictures, weights))
    command = shlex.join(["vit-ipu", "train", str(target), *([] if device == "auto" else ["--device", device])])
    text = _header(target, survey, device, kind, command) + config_text(pictures, weights, kind)
    parse_text(text)
    _write_new(target, text)
    for note in notes:
        notify(note)
    return Started(target, survey, _model_text(pictures, weights), kind, command)


def _pictures_of(survey: FolderSurvey) -> Pictures:
    return Pictures(
        path=survey.path,
        num_classes=len(survey.classes),
        num_train=survey.num_train,
        short_side=min(survey.width, survey.height),
        holdout=survey.holdout,
        num_unreadable=len(survey.unreadable),
        num_transparent=survey.num_transparent,
    )


def _device_kind(name: str) -> str:
    """Returns the kind of device that a name means; only `auto` looks at this machine."""
    if name not in DEVICES:
        raise DeviceError(f"--device {name}: unknown; use one of {', '.join(DEVICES)}")
    return resolve_device(name).kind if name == "auto" else name.partition(":")[0]


def _require_another_current_folder(folder: str, survey: FolderSurvey) -> None:
    """Raises UserError if runs, which are written into the current folder, would lie among the class folders."""
    images = expand_home(folder)
    if survey.holdout is not None and is_within(Path.cwd(), images):
        raise UserError(
            f"{escaped(folder)} contains the current folder, so runs would lie among its class folders: go to another "
            f"folder, such as {escaped(os.path.relpath(os.path.dirname(os.path.realpath(str(images)))))}, and give the "
            "path from there"
        )


# --------------------------------------------------------------------------------------------- file


def _free_path(output: Optional[Path], folder: str) -> Path:
    """Returns the path of the new config. Raises UserError if it exists or has no folder."""
    target = output if output is not None else Path(f"{_folder_name(folder)}.yaml")
    if os.path.lexists(str(target)):
        kind = "is a folder: give a file" if target.is_dir() else "exists and stays as it is: give another file"
        raise UserError(f"{escaped(str(target))} {kind} with --output")
    path, parent = (escaped(str(place)) for place in (target, target.parent))
    if not target.parent.is_dir():
        raise UserError(f"--output {path}: {parent} is not a folder: make it first")
    if place_problem(target) is not None:
        raise UserError(f"--output {path}: {parent} cannot be written: name a file in another folder")
    return target


def _folder_name(folder: str) -> str:
    name = os.path.basename(os.path.abspath(str(expand_home(folder))))
    return name or "images"


def _write_new(target: Path, text: str) -> None:
    """Writes a file that does not exist yet, completely or not at all. Raises UserError if it cannot be written."""
    try:
        with target.open("x", encoding="utf-8") as file, _removed_on_error(target):
            file.write(text)
            file.flush()
    except OSError as error:
        raise UserError(
            f"cannot write {escaped(str(target))}: {reason_of(error)}; name another file with --output"
        ) from None


@contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    """Removes the file if the body raises, such as on a full disk."""
    try:
        yield
    except BaseException:
        path.unlink()
        raise


# ------------------------------------------------------------------------------------------ weights


def _require_weights(source: str, sha256: Optional[str]) -> None:
    """Raises CheckpointError if the weights are the name of a shape, or do not exist."""
    if source in VARIANTS and not os.path.exists(source):
        raise CheckpointError(
            f"--model {source} is the name of a shape, not of weights: give a file, a folder or hf-hub:owner/name, or "
            "leave --model out to start from random weights"
        )
    try:
        require_source(source, sha256=sha256)
    except CheckpointError as error:
        raise CheckpointError(f"--model: {error}") from None


def _starting_weights(
    source: str,
    target: Path,
    num_heads: Optional[int],
    sha256: Optional[str],
    trust_pickle: bool,
    notify: Notify,
) -> StartingWeights:
    """Reads weights to fine-tune with the config `target`.

    Raises CheckpointError if they cannot be read or are not a plain ViT.
    """
    try:
        weights = with_heads(read_weights(source, sha256=sha256, trust_pickle=trust_pickle, notify=notify), num_heads)
        description = describe(weights, headless=True)
    except CheckpointError as error:
        raise CheckpointError(f"--model: {error}") from None
    for note in assumptions_in_new_config(weights, description, target):
        notify(f"note: {note}")
    return StartingWeights(source, description.model, description.preprocessing, sha256, description.assumed)


# --------------------------------------------------------------------------------------------- text


def _notes_on_pictures(survey: FolderSurvey, background: Optional[Rgb]) -> List[str]:
    """Returns notes on pictures with transparency, and on pictures that are far larger than the others."""
    notes, looked_at = [], counted(survey.num_probed, "picture")
    if survey.num_transparent:
        verb = "has" if survey.num_transparent == 1 else "have"
        notes.append(
            f"note: {survey.num_transparent:,} of {looked_at} {verb} transparency: data.background: "
            f"{color_text(background)} is written"
        )
    width, height = survey.largest_size
    largest = f"{escaped(survey.largest)} with {width:,} x {height:,}"
    if survey.num_large:
        verb = "has" if survey.num_large == 1 else "have"
        notes.append(
            f"note: {survey.num_large:,} of {looked_at} {verb} more than 20 megapixels, the largest {largest}, and "
            f"will take long to load: {_remedy_for_large(survey)}"
        )
    elif width * height >= _FAR_ABOVE * survey.width * survey.height:
        notes.append(f"note: the largest picture is {largest} pixels")
    return notes


def _remedy_for_large(survey: FolderSurvey) -> str:
    color = " --background white" if survey.num_transparent else ""
    return (
        f"vit-ipu pack {shlex.quote(survey.path)} SHARDS --short-side 256{color} makes small copies, and "
        "data.source: shards with data.path: SHARDS trains from them"
    )


def _header(target: Path, survey: FolderSurvey, device: str, kind: str, command: str) -> str:
    run = shlex.quote(f"runs/{target.stem}")
    schema = schema_file()
    lines = [f"{SCHEMA_COMMENT}{schema.as_uri()}"] if schema is not None else []
    lines += [
        f"# {command}",
        f"# vit-ipu evaluate {shlex.quote(str(target))} --checkpoint {run}",
        f"# vit-ipu convert {run} {shlex.quote(f'{target.stem}.onnx')} --to onnx",
        "#",
        f"# Written by vit-ipu init {__version__} for {_DEVICE_TEXTS[kind]}.",
        f"# {_classes_text(survey)}",
        f"# {counted(survey.num_train, 'image')} to train on ({survey.images_a_class} a class), "
        f"{survey.num_eval:,} held out. Not yet measured.",
        "# All keys: vit-ipu config --schema, and docs/config.md. Change one for a run: --set optim.learning_rate=3e-5",
        f"# For a short trial, add to train: {_TRIAL} --output {shlex.quote(f'runs/{target.stem}-trial')}",
    ]
    return "\n".join(escaped(line) for line in lines) + "\n"


_DEVICE_TEXTS = {
    "cpu": "a CPU",
    "cuda": "a GPU",
    "ipu": "four IPUs (a POD16 has room for pipeline.replication_factor 4)",
    "ipu-sim": "four simulated IPUs",
}


def _classes_text(survey: FolderSurvey) -> str:
    """Returns the number of classes and the names of the first ones."""
    names = ", ".join(survey.classes)
    shown = names if len(names) <= _LONGEST_NAMES else f"{names[:_LONGEST_NAMES].rpartition(',')[0]}, ..."
    return f"{counted(len(survey.classes), 'class', 'classes')}: {shown}"


def _model_text(pictures: Pictures, weights: Optional[StartingWeights]) -> str:
    """Returns the model's shape, and where its weights come from."""
    name, size = describe_shape(model_shape(pictures, weights))
    if weights is None:
        return f"{name} at {size} from random weights; --model WEIGHTS fine-tunes, and needs far fewer images"
    return (
        f"{name} at {size} from {weights.source}, with a new head for "
        f"{counted(pictures.num_classes, 'class', 'classes')}"
    )

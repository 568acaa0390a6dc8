"""Weights in this program's format: model.safetensors by timm's names, and config.json, which describes the model.

A run keeps its weights in checkpoints, folders called update-NUMBER in its folder `checkpoints`, with the state of the
training in state.json. `convert --to native` writes such a folder without that state. checksums.json has the size and
the SHA-256 of each file; checkpoints of earlier versions lack it.
"""

from __future__ import annotations

import errno
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vit_ipu import small_files
from vit_ipu.config import Config, ModelConfig
from vit_ipu.config_file import parse_config
from vit_ipu.config_sections.colors import Rgb, color_value, rgb_of
from vit_ipu.errors import CheckpointError, DamagedCheckpoint, NotSupported, RunFailed
from vit_ipu.files import CHECKSUMS, find_damage
from vit_ipu.text import Notify, reason_of

MODEL, STATE, CONFIG = "model.safetensors", "state.json", "config.json"
BEST = "best.json"
PREFIX = "update-"
"""Prefix of the name of a run's checkpoint."""
Loaded = TypeVar("Loaded")
ONE_CLASS, SEVERAL_CLASSES, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (ONE_CLASS, SEVERAL_CLASSES, REGRESSION)
"""Meanings of a model's outputs, by transformers' names: each image has one class (softmax), any number of classes (a
sigmoid of each output), or values."""

PIXEL_SETTINGS = ("mean", "std", "eval_crop", "eval_resize", "interpolation")
ASSUMABLE = ("num_heads", "gelu", "layer_norm_eps", "pooling", *PIXEL_SETTINGS)
"""Settings that tensors do not show, which had to be assumed if no file and no user stated them.

`pooling`: the class token is classified.
"""


@dataclass(frozen=True)
class Preprocessing:
    """The steps from an image to pixels of the size that a model takes."""

    mean: Tuple[float, float, float]
    """Mean of each channel, of pixels in [0, 1]."""
    std: Tuple[float, float, float]
    """Standard deviation of each channel, of pixels in [0, 1]."""
    eval_resize: Optional[int] = None
    """Short side in pixels before the centre crop; the image size when None."""
    interpolation: str = "bilinear"
    eval_crop: str = "center"
    """`center`, or `squash`: both sides are resized to `eval_resize`, whatever the image's aspect ratio."""
    background: Optional[Rgb] = None
    """Colour on which transparent images are laid; None: transparency is dropped."""


@dataclass(frozen=True)
class Trained:
    """The training of a model in a run."""

    config: Config
    num_train: int
    """Number of images that the model was trained on."""
    labels_sha256: Optional[str]
    """SHA-256 of the labels (int64) of these images, in order; None in checkpoints of older versions."""


@dataclass(frozen=True)
class ModelDescription:
    """The data that is needed to use a model: its shape, its preprocessing and the name of each class."""

    model: ModelConfig
    preprocessing: Preprocessing
    classes: Tuple[str, ...]
    trained: Optional[Trained] = None
    """None for weights that were converted."""
    problem_type: str = ONE_CLASS
    """One of PROBLEM_TYPES."""
    assumed: Tuple[str, ...] = ()
    """Settings, of ASSUMABLE, that were assumed when the weights were converted."""

    @classmethod
    def of_run(
        cls, config: Config, classes: Tuple[str, ...], num_train: int, labels_sha256: Optional[str] = None
    ) -> ModelDescription:
        """Describes the model that a run trains."""
        data = config.data
        pixels = Preprocessing(
            data.mean, data.std, data.eval_resize, data.interpolation, data.eval_crop, data.background_rgb
        )
        outputs = SEVERAL_CLASSES if config.optim.loss == "bce" else ONE_CLASS  # sigmoids, or a softmax
        return cls(config.model, pixels, classes, Trained(config, num_train, labels_sha256), outputs)


@dataclass(frozen=True)
class NativeWeights:
    """The weights in a checkpoint, and their description."""

    path: Path
    description: ModelDescription
    tensors: Dict[str, Tensor]


# ---------------------------------------------------------------------------------------- writing


def save_tensors(tensors: Dict[str, Tensor], path: Path, metadata: Optional[Dict[str, str]] = None) -> None:
    """Writes a safetensors file with the usual permissions of new files: newer versions of the library set 0600.

    Raises RunFailed if the file cannot be written, for example to a full disk.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        path.touch()
        usual = path.stat().st_mode  # reading the umask itself would change it for other threads
        save_file(contiguous, str(path), {"format": "pt", **(metadata or {})})
        path.chmod(usual)
    except (OSError, SafetensorError) as error:
        raise RunFailed(f"cannot write {path}: {reason_of(error)}") from None


def write_description(folder: Path, description: ModelDescription) -> None:
    """Writes config.json, which makes a folder with model.safetensors readable by `load_description`."""
    trained = description.trained
    values = {
        "id2label": {str(label): name for label, name in enumerate(description.classes)},
        "num_train": 0 if trained is None else trained.num_train,
        "labels_sha256": None if trained is None else trained.labels_sha256,
        "problem_type": description.problem_type,
        "config": _sections(description) if trained is None else trained.config.model_dump(mode="json"),
    }
    values["checksums"] = CHECKSUMS  # so that a folder that lacks the file is not taken for one of an earlier version
    if description.assumed:
        values["assumed"] = list(description.assumed)
    (folder / CONFIG).write_text(json.dumps(values, indent=1), encoding="utf-8")


def _sections(description: ModelDescription) -> Dict[str, Any]:
    """Returns the sections of a config that describe how to use a model, with only the keys needed for that."""
    pixels = description.preprocessing
    data = {
        "mean": list(pixels.mean),
        "std": list(pixels.std),
        "eval_resize": pixels.eval_resize,
        "interpolation": pixels.interpolation,
        "eval_crop": pixels.eval_crop,
        "background": color_value(pixels.background),
    }
    return {"model": description.model.model_dump(mode="json"), "data": data}


# ---------------------------------------------------------------------------------------- reading


def checkpoints_in(folder: Path) -> List[Path]:
    """Lists the checkpoints of a run in `folder`, oldest first, with those that are damaged."""
    found = [path for path in folder.glob(PREFIX + "*") if re.fullmatch(r"\d+", path.name[len(PREFIX) :])]
    return sorted((path for path in found if path.is_dir()), key=update_of)


def update_of(checkpoint: Path) -> int:
    """Returns the update in the name of a run's checkpoint."""
    return int(checkpoint.name[len(PREFIX) :])


def newest_checkpoint(folder: Path) -> Optional[Path]:
    """Returns the newest checkpoint in `folder`, if there is one."""
    found = checkpoints_in(folder)
    return found[-1] if found else None


def is_native(folder: Path) -> bool:
    """Tells whether a folder is a run or a checkpoint of this program, even if it is damaged."""
    if (folder / STATE).is_file() or (folder / "checkpoints").is_dir() or newest_checkpoint(folder) is not None:
        return True
    path = folder / CONFIG
    try:
        return "config" in small_files.read_json(path)
    except (OSError, ValueError, TypeError):
        return False


def find_checkpoints(path: Path) -> List[Path]:
    """Returns the checkpoints that `path` may mean: `path` itself, or those of a run folder, oldest first.

    Raises CheckpointError if there is none.
    """
    if (path / MODEL).is_file():
        return [path]
    for folder in (path / "checkpoints", path):
        found = checkpoints_in(folder)
        if found:
            return found
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: there is no such file or folder")
    if (path / "checkpoints").is_dir():
        raise CheckpointError(f"{path} has no checkpoint yet: let the run train on, or continue it with --resume")
    raise CheckpointError(f"no checkpoint at {path}: expected a run folder or a checkpoint folder")


def best_update(run: Path) -> Optional[int]:
    """Returns the update of the best checkpoint that best.json in a run folder names; None if there is none."""
    try:
        best = small_files.read_json(run / BEST)
    except (OSError, ValueError):
        return None
    update = best.get("update") if isinstance(best, dict) else None
    return update if type(update) is int and 0 <= update < 1 << 31 else None


def load_native(path: Path, *, notify: Notify) -> NativeWeights:
    """Reads the weights of a checkpoint, or of a run folder: of its best checkpoint if `run.keep_best` has kept one,
    else of the newest whole one, as `first_whole` says. `notify` receives a note if the best is not the newest."""

    def load(checkpoint: Path) -> NativeWeights:
        require_whole(checkpoint, (MODEL, CONFIG), notify=notify)
        return NativeWeights(checkpoint, load_description(checkpoint), load_tensors(checkpoint / MODEL))

    checkpoints = find_checkpoints(path)
    best = [checkpoint for checkpoint in checkpoints[:-1] if update_of(checkpoint) == best_update(path)]
    if best:
        notify(f"note: {path}: using the best checkpoint, {best[0].name}; the newest one is {checkpoints[-1].name}")
    others = [checkpoint for checkpoint in checkpoints if checkpoint not in best]
    return first_whole(others + best, load, notify=notify)


def first_whole(checkpoints: Sequence[Path], load: Callable[[Path], Loaded], *, notify: Notify) -> Loaded:
    """Returns what `load` returns for the newest checkpoint for which `load` does not raise DamagedCheckpoint.

    `checkpoints` are ordered oldest first. `notify` receives a warning that names each damaged checkpoint and the one
    that is used instead. Raises DamagedCheckpoint, which names each, if none is whole.
    """
    damages: List[str] = []
    for checkpoint in reversed(checkpoints):
        try:
            loaded = load(checkpoint)
        except DamagedCheckpoint as error:
            damages.append(str(error))
            continue
        if damages:
            notify(f"warning: {'; '.join(damages)}; {checkpoint} is used instead")
        return loaded
    none = "no checkpoint is whole: " if len(damages) > 1 else ""
    raise DamagedCheckpoint(none + "; ".join(damages))


def require_whole(checkpoint: Path, names: Sequence[str], *, notify: Notify) -> None:
    """Raises DamagedCheckpoint unless these files of a checkpoint are as they were written, by its checksums.

    `notify` receives a note if the checkpoint has no checksums because an earlier version wrote it.
    """
    try:
        damage = find_damage(checkpoint, names)
    except FileNotFoundError:
        values = read_json(checkpoint / CONFIG)
        if isinstance(values, dict) and "checksums" in values:
            raise DamagedCheckpoint(
                f"cannot read {checkpoint / CHECKSUMS}: it is missing; copy all files of a checkpoint"
            ) from None
        if re.fullmatch(rf"{PREFIX}\d+", checkpoint.name) and not (checkpoint / STATE).is_file():
            raise DamagedCheckpoint(f"cannot read {checkpoint / STATE}: it is missing") from None
        notify(f"note: {checkpoint} has no {CHECKSUMS}, as an earlier version wrote it: damage may go unnoticed")
        return
    except OSError as error:
        raise unreadable(checkpoint, error) from None
    if damage is not None:
        raise DamagedCheckpoint(f"cannot read {checkpoint / damage.split()[0]}: {damage}")


def load_tensors(path: Path) -> Dict[str, Tensor]:
    """Returns the tensors of a safetensors file by name. Raises DamagedCheckpoint if it is missing or damaged."""
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise DamagedCheckpoint(f"cannot read {path}: {error}") from None
    except OSError as error:
        raise unreadable(path, error) from None


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file of a checkpoint. Raises DamagedCheckpoint if it is missing or damaged."""
    try:
        return small_files.read_json(path, allow_nan=True)
    except ValueError as error:
        raise DamagedCheckpoint(f"cannot read {path}: {reason_of(error)}") from None
    except OSError as error:
        raise unreadable(path, error) from None


_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Returns the error for a file that cannot be read: damage, unless the file may be whole but access is denied."""
    kind = DamagedCheckpoint if error.errno in (*_DAMAGE, None) else CheckpointError
    return kind(f"cannot read {path}: {reason_of(error)}")


def load_description(checkpoint: Path) -> ModelDescription:
    """Returns the description of a checkpoint's model. Raises DamagedCheckpoint if config.json cannot be used."""
    values = read_json(checkpoint / CONFIG)
    try:
        names, config, num_train = values["id2label"], values["config"], int(values["num_train"])
        classes = tuple(names[str(label)] for label in range(len(names)))
        if num_train == 0:
            problem_type = known_problem_type(values.get("problem_type", ONE_CLASS))
            assumed = assumed_names(values.get("assumed", []))
            return replace(_converted(config, classes), problem_type=problem_type, assumed=assumed)
        return ModelDescription.of_run(parse_config(config), classes, num_train, values.get("labels_sha256"))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DamagedCheckpoint(f"{checkpoint / CONFIG} is damaged: {reason_of(error)}") from None


def _converted(config: Dict[str, Any], classes: Tuple[str, ...]) -> ModelDescription:
    data = config["data"]
    mean, std = (tuple(float(value) for value in data[name]) for name in ("mean", "std"))
    pixels = Preprocessing(
        mean,  # type: ignore[arg-type]
        std,  # type: ignore[arg-type]
        data["eval_resize"],
        data["interpolation"],
        data.get("eval_crop", "center"),
        None if data.get("background") is None else rgb_of(data["background"]),
    )
    return ModelDescription(ModelConfig.model_validate(config["model"]), pixels, classes)


def known_problem_type(name: Any) -> str:
    """Returns the name of a kind of outputs. Raises NotSupported if it is not one of PROBLEM_TYPES."""
    if name not in PROBLEM_TYPES:
        raise NotSupported(f"problem_type {name} is not one of {', '.join(PROBLEM_TYPES)}")
    return str(name)


def assumed_names(values: Any) -> Tuple[str, ...]:
    """Returns the names of settings that a file marks as assumed. Raises ValueError if one of them is not known."""
    for name in values:
        if name not in ASSUMABLE:
            raise ValueError(f"{name!r} is marked as assumed, but is not one of {', '.join(ASSUMABLE)}")
    return tuple(values)

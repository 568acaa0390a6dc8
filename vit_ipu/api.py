"""Python functions that do what the commands do, and return their results as objects.

A config is a `Config`, or what the commands take: the path of a YAML file, or the name of a shipped config. A device is
a name of `--device`. A mistake of the caller raises `vit_ipu.errors.UserError`, and work that fails raises
`vit_ipu.errors.RunFailed`, each with a message of one line. Progress and notes are printed, also in a notebook, unless
`quiet` is true. Nothing here imports torch before a function is called.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple, Union

from vit_ipu.config import Config
from vit_ipu.config_file import load_config
from vit_ipu.errors import ConfigError
from vit_ipu.text import Notify

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from vit_ipu.backends.contract import Device
    from vit_ipu.evaluate import CheckpointEvaluation, Evaluation
    from vit_ipu.model import ViT
    from vit_ipu.predict import Prediction
    from vit_ipu.weights.read import Weights

Paths = Union[str, "os.PathLike[str]"]
AnyConfig = Union[Config, Paths]


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended, or was stopped by Ctrl-C."""

    path: Path
    """The run folder."""
    config: Config
    updates: int
    """Weight updates that are done."""
    total_updates: int
    """Weight updates of the complete run."""
    evaluation: Optional[Evaluation]
    """Top-1 and top-5 in per cent, loss and number of images after the last update; None if it was not reached."""
    checkpoint: Optional[Path]
    """The newest checkpoint; None if there is none."""
    seconds: float
    """Wall time of training, evaluations included, in this process."""
    stopped_early: bool = False
    """Tells whether the run has ended before its last update, as `run.early_stopping` says."""

    @property
    def finished(self) -> bool:
        """Tells whether the run has reached its end and evaluated it; if not, `resume=True` continues it."""
        return (self.updates == self.total_updates or self.stopped_early) and self.evaluation is not None

    @property
    def report(self) -> Path:
        """The HTML page with curves, timetable and environment."""
        return self.path / "report.html"


@dataclass(frozen=True)
class LoadedModel:
    """A model in torch, ready for inference, with what its images and outputs mean."""

    module: ViT
    """The model in float32 on the CPU, in evaluation mode, from normalised pixels (B, 3, S, S) to logits (B, K)."""
    classes: Tuple[str, ...]
    """Name of each of the K outputs."""
    config: Config
    """Config of the run that trained the model; for weights of other programs, a config for inference only."""

    def preprocess(self, images: Union[Paths, Sequence[Paths]]) -> Tensor:
        """Returns normalised pixels (B, 3, S, S) float32 of image files. Raises DataError if one cannot be read."""
        from vit_ipu.data.images.image_file import open_picture
        from vit_ipu.data.images.transforms import EvalTransform
        from vit_ipu.data.loading.loader import stack_images

        data = self.config.data.model_copy(update={"transfer": "float32"})
        transform = EvalTransform(data, self.config.model.image_size)
        return stack_images([transform(open_picture(path)) for path in _listed(images)], data)


def train(
    config: AnyConfig,
    *,
    device: str = "auto",
    numerics: Optional[str] = None,
    output: Optional[Paths] = None,
    resume: bool = False,
    restart: bool = False,
    allow_config_change: Sequence[str] = (),
    overrides: Sequence[str] = (),
    trust_pickle: bool = False,
    rescan: bool = False,
    quiet: bool = False,
) -> TrainedRun:
    """Trains or fine-tunes, evaluates, and writes a run folder, as `vit-ipu train` does.

    `output` is the run folder: runs/NAME if not given, by the name of the config's file, or runs/run. `resume`
    continues a run that was stopped, `restart` removes an earlier run of this config first, and `overrides` are of the
    form `section.key=value`. Ctrl-C ends the run after the current host step with a checkpoint; the result is then not
    `finished`. Raises UserError for a mistake of the caller, and RunFailed if the run diverges or cannot write.
    """
    from vit_ipu.backends.build import find_instances
    from vit_ipu.cli.progress import TrainingBar
    from vit_ipu.data.sources.listing import ListingCache
    from vit_ipu.report.page import write_report
    from vit_ipu.runs.display import NO_DISPLAY
    from vit_ipu.runs.folder import RunFolder
    from vit_ipu.train import earlier_run_replaced, open_run_folder
    from vit_ipu.train import train as run

    console = _console(quiet)
    loaded, resolved = _prepare(config, overrides, device, numerics, console.print)
    path = Path(output) if output is not None else Path("runs") / _name(config)
    options: Dict[str, Any] = {"resume": resume, "trust_pickle": trust_pickle}
    options["cache"] = ListingCache(rescan=rescan, notify=console.print)
    if find_instances(loaded, resolved).index > 0:  # one of the processes of torchrun or poprun that write no files
        return _result(run(loaded, resolved, RunFolder(path), **options), path, loaded)
    changes = allow_config_change
    with ExitStack() as stack:
        if restart:
            stack.enter_context(earlier_run_replaced(path, loaded, resume=resume))
        folder = stack.enter_context(
            open_run_folder(path, loaded, resume=resume, allowed_changes=changes, notify=console.print)
        )
        display = NO_DISPLAY if quiet else TrainingBar(console)
        summary = run(loaded, resolved, folder, display=display, **options)
    write_report(folder)
    return _result(summary, path, loaded)


def evaluate(
    config: AnyConfig,
    checkpoint: Paths,
    *,
    device: str = "auto",
    numerics: Optional[str] = None,
    overrides: Sequence[str] = (),
    trust_pickle: bool = False,
    num_heads: Optional[int] = None,
    rescan: bool = False,
    quiet: bool = False,
) -> CheckpointEvaluation:
    """Measures top-1 and top-5 in per cent and the mean loss over every held-out image, as `vit-ipu evaluate` does.

    `checkpoint` is a run, a checkpoint or weights in any known naming. Raises UserError if it belongs to another model
    or to other classes than the images.
    """
    from vit_ipu.data.sources.listing import ListingCache
    from vit_ipu.evaluate import evaluate as run

    notify = _console(quiet).print
    loaded, resolved = _prepare(config, overrides, device, numerics, notify, training=False)
    cache = ListingCache(rescan=rescan, notify=notify)
    options: Dict[str, Any] = {"trust_pickle": trust_pickle, "num_heads": num_heads, "cache": cache}
    return run(loaded, resolved, str(checkpoint), notify=notify, **options)


def predict(
    checkpoint: Paths,
    images: Union[Paths, Sequence[Paths]],
    *,
    device: str = "auto",
    numerics: Optional[str] = None,
    top: int = 5,
    trust_pickle: bool = False,
    num_heads: Optional[int] = None,
    quiet: bool = False,
) -> List[Prediction]:
    """Returns the `top` most probable classes of each image file, best first, as `vit-ipu predict` does.

    Raises DataError, a UserError, if an image cannot be read.
    """
    from vit_ipu.backends.build import require_one_process, resolve_device
    from vit_ipu.predict import predict as run

    require_one_process("predict")
    resolved = resolve_device(device, numerics=numerics)
    options: Dict[str, Any] = {"top": top, "trust_pickle": trust_pickle, "num_heads": num_heads}
    return run(str(checkpoint), _listed(images), resolved, notify=_console(quiet).print, **options)


def load_model(
    checkpoint: Paths, *, trust_pickle: bool = False, num_heads: Optional[int] = None, quiet: bool = False
) -> LoadedModel:
    """Loads a run, a checkpoint or weights in any known naming as a torch module.

    Raises CheckpointError, a UserError, if the weights cannot be read, are not a plain ViT, or lack a head.
    """
    import torch

    from vit_ipu.model import ViT
    from vit_ipu.predict import inference_config
    from vit_ipu.weights.describe import assumptions, describe, with_heads
    from vit_ipu.weights.fit import require_same_model
    from vit_ipu.weights.read import read_weights

    notify = _console(quiet).print
    weights = with_heads(read_weights(str(checkpoint), trust_pickle=trust_pickle, notify=notify), num_heads)
    description = describe(weights)
    for note in assumptions(str(checkpoint), description):
        notify(f"note: {note}")
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers do not depend on fresh weights
        module = ViT(description.model).eval()
    module.load_state_dict(require_same_model(weights.tensors, module.state_dict(), weights.source))
    return LoadedModel(module, description.classes, inference_config(description, weights.path))


def plan(config: AnyConfig, *, overrides: Sequence[str] = ()) -> Dict[str, Any]:
    """Returns the units of each IPU and the batch sizes of a config, by the names of `vit-ipu plan --json`."""
    from vit_ipu.plan import describe_plan

    return describe_plan(_loaded(config, overrides))


def convert(
    source: Paths,
    target: Paths,
    to: str,
    *,
    sha256: Optional[str] = None,
    trust_pickle: bool = False,
    num_heads: Optional[int] = None,
    features: bool = False,
    push: Optional[str] = None,
    private: bool = False,
    quiet: bool = False,
) -> Weights:
    """Writes a checkpoint in another format, as `vit-ipu convert` does, and returns the weights that were read.

    `to` is timm, huggingface, torchvision, mmpretrain, google, graphcore, onnx or native; `features` leaves out the
    head. `push`, OWNER/NAME, uploads a huggingface export to the Hugging Face Hub; a new repository is public unless
    `private`. Raises UserError for a target that exists or a hub that refuses, CheckpointError if the format cannot
    hold the weights, and RunFailed if the upload fails.
    """
    from vit_ipu.convert import convert as run

    options: Dict[str, Any] = {"sha256": sha256, "trust_pickle": trust_pickle, "num_heads": num_heads}
    options.update(push=push, private=private)
    return run(str(source), Path(target), to, features=features, notify=_console(quiet).print, **options)


# ------------------------------------------------------------------------------------------ helpers


def _console(quiet: bool) -> Console:
    from vit_ipu.cli.console import make_console

    console = make_console(False, keep_going=True)
    console.quiet = quiet
    return console


def _loaded(config: AnyConfig, overrides: Sequence[str]) -> Config:
    """Returns the config that is given, or reads it with the overrides. Raises ConfigError."""
    if isinstance(config, Config):
        if overrides:
            raise ConfigError("overrides change a config when it is read: give them to load_config")
        return config
    return load_config(os.fspath(config), overrides)


def _prepare(
    config: AnyConfig,
    overrides: Sequence[str],
    device: str,
    numerics: Optional[str],
    notify: Notify,
    *,
    training: bool = True,
) -> Tuple[Config, Device]:
    """Returns the config and the device, once they are known to fit; `notify` receives notes on the config."""
    from vit_ipu.backends.build import require_runnable_on, resolve_device
    from vit_ipu.unused_options import unused_options

    loaded = _loaded(config, overrides)
    resolved = resolve_device(device, numerics=numerics)
    for note in require_runnable_on(loaded, resolved, training=training) + unused_options(loaded):
        notify(f"note: {note}")
    return loaded, resolved


def _name(config: AnyConfig) -> str:
    return "run" if isinstance(config, Config) else Path(os.fspath(config)).stem


def _listed(images: Union[Paths, Sequence[Paths]]) -> List[str]:
    """Returns the paths of one image file or of several."""
    several = [images] if isinstance(images, (str, os.PathLike)) else images
    return [os.fspath(path) for path in several]


def _result(summary: Any, path: Path, config: Config) -> TrainedRun:
    progress = summary.progress
    return TrainedRun(
        path,
        config,
        progress.update,
        summary.total_updates,
        summary.evaluation,
        summary.checkpoint,
        summary.seconds,
        summary.stopped_early,
    )

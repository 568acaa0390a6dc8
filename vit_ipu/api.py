"""Python functions that do what the commands do, and return their results as objects.

A config is a `Config`, or what the commands take: the path of a YAML file, the name of a shipped config, or a run
folder. A device is a name of `--device`. A mistake of the caller raises `vit_ipu.errors.UserError`, and work that fails
raises `vit_ipu.errors.RunFailed`, each with a message of one line. Progress and notes are printed, also in a notebook,
unless `quiet` is true. Nothing here imports torch before a function is called.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple, Union

from vit_ipu.argument_types import optional_count, optional_text, path_text, path_texts, texts
from vit_ipu.config import Config
from vit_ipu.config_file import load_config as read_config
from vit_ipu.errors import ConfigError, DataError
from vit_ipu.option_names import for_python, in_python
from vit_ipu.run_config import run_folder_of
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
_CONFIG = "the path of a YAML file, the name of a shipped config, or a run folder"


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
        """Returns normalised pixels (B, 3, S, S) float32 of image files.

        Raises DataError if there is none, or if one cannot be read.
        """
        from vit_ipu.data.images.image_file import open_picture
        from vit_ipu.data.images.transforms import EvalTransform
        from vit_ipu.data.loading.loader import stack_images

        paths = path_texts("images", images)
        if not paths:
            raise DataError("there are no images to preprocess: give one image file or several")
        data = self.config.data.model_copy(update={"transfer": "float32"})
        transform = EvalTransform(data, self.config.model.image_size)
        return stack_images([transform(open_picture(path).on(data.background_rgb)) for path in paths], data)


@for_python
def load_config(path: Paths, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, a shipped config by its name, or the config of a run folder, and applies the overrides.

    `overrides` are of the form `section.key=value`. Raises ConfigError, a UserError, with a message of one line.
    """
    return read_config(path_text("path", path, _CONFIG), texts("overrides", overrides))


@for_python
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
    from vit_ipu.cli.paths import output_of_run
    from vit_ipu.cli.preparation import is_first_instance, report_if_failed
    from vit_ipu.cli.progress import TrainingBar
    from vit_ipu.data.sources.listing import ListingCache
    from vit_ipu.report.page import write_report
    from vit_ipu.runs.display import NO_DISPLAY
    from vit_ipu.runs.folder import RunFolder
    from vit_ipu.train import earlier_run_replaced, open_run_folder
    from vit_ipu.train import train as run

    console = _console(quiet)
    loaded = _loaded(config, overrides)
    path = Path("runs") / _name(config) if output is None else Path(path_text("output", output))
    if output is None and not isinstance(config, Config) and run_folder_of(Path(config)) is not None:
        path = output_of_run(Path(config), None, resume=resume, restart=restart)
    resolved, notes = _prepare(loaded, device, numerics, initial_weights=not resume)
    options: Dict[str, Any] = {"resume": resume, "trust_pickle": trust_pickle}
    options["cache"] = ListingCache(rescan=rescan, notify=console.print)
    if not is_first_instance(loaded, resolved):  # one of the processes of torchrun or poprun that write no files
        return _result(run(loaded, resolved, RunFolder(path), **options), path, loaded)
    changes = texts("allow_config_change", allow_config_change)
    with ExitStack() as stack:
        if restart:
            stack.enter_context(earlier_run_replaced(path, loaded, resume=resume))
        folder = stack.enter_context(
            open_run_folder(path, loaded, resume=resume, allowed_changes=changes, notify=console.print)
        )
        _show(notes, console.print)
        display = NO_DISPLAY if quiet else TrainingBar(console)
        with report_if_failed(folder):
            summary = run(loaded, resolved, folder, display=display, **options)
    write_report(folder)
    return _result(summary, path, loaded)


@for_python
def evaluate(
    config: AnyConfig,
    checkpoint: Optional[Paths] = None,
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

    `checkpoint` is a run, a checkpoint or weights in any known naming. If `config` is a run folder, it may be left out:
    the run's best checkpoint is evaluated, or else its last one. Raises UserError if the checkpoint belongs to another
    model or to other classes than the images.
    """
    from vit_ipu.cli.preparation import checkpoint_to_evaluate
    from vit_ipu.data.sources.listing import ListingCache
    from vit_ipu.evaluate import evaluate as run

    notify = _console(quiet).print
    loaded = _loaded(config, overrides)
    resolved, notes = _prepare(loaded, device, numerics, training=False)
    run_folder = None if isinstance(config, Config) else Path(config)
    given = None if checkpoint is None else path_text("checkpoint", checkpoint)
    heads = optional_count("num_heads", num_heads)
    weights = checkpoint_to_evaluate(run_folder, given)
    _show(notes, notify)
    cache = ListingCache(rescan=rescan, notify=notify)
    options: Dict[str, Any] = {"trust_pickle": trust_pickle, "num_heads": heads, "cache": cache}
    return run(loaded, resolved, weights, notify=notify, **options)


@for_python
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

    A folder stands for all images below it. Raises DataError, a UserError, if an image cannot be read, or if there is
    none, and UserError if `top` is below 1.
    """
    from vit_ipu.backends.build import require_one_process, resolve_device
    from vit_ipu.predict import predict as run
    from vit_ipu.predict import require_top

    require_top(top)
    heads = optional_count("num_heads", num_heads)
    source, paths = path_text("checkpoint", checkpoint), path_texts("images", images)
    require_one_process("predict")
    resolved = resolve_device(device, numerics=numerics)
    options: Dict[str, Any] = {"top": top, "trust_pickle": trust_pickle, "num_heads": heads}
    return run(source, paths, resolved, notify=_console(quiet).print, **options)


@for_python
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
    heads = optional_count("num_heads", num_heads)
    source = path_text("checkpoint", checkpoint)
    weights = with_heads(read_weights(source, trust_pickle=trust_pickle, notify=notify), heads)
    description = describe(weights)
    for note in assumptions(weights, description):
        notify(f"note: {note}")
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers do not depend on fresh weights
        module = ViT(description.model).eval()
    module.load_state_dict(require_same_model(weights.tensors, module.state_dict(), weights.source))
    return LoadedModel(module, description.classes, inference_config(description, weights.path))


@for_python
def plan(
    config: AnyConfig,
    *,
    hardware: Optional[str] = None,
    search: bool = False,
    pod: Optional[int] = None,
    overrides: Sequence[str] = (),
) -> Dict[str, Any]:
    """Returns placement, batch sizes and predictions of a config, by the names of `vit-ipu plan --json`.

    `hardware` is gc200 or bow, or gc200,bow for both; None: the config's. `search` adds the fastest configs that are
    predicted to fit on a POD of `pod` IPUs; None: the smallest that has the config's IPUs. Raises ConfigError, a
    UserError, for an unknown kind of IPU or POD.
    """
    from vit_ipu.plan import describe_plan, describe_search, require_searchable, search_plans

    kinds = None if hardware is None else path_text("hardware", hardware, "gc200, bow or gc200,bow")
    require_searchable(kinds, pod, search=search)
    loaded = _loaded(config, overrides)
    described = describe_plan(loaded, kinds)
    return {**described, **describe_search(search_plans(loaded, kinds, pod))} if search else described


@for_python
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

    heads = optional_count("num_heads", num_heads)
    options: Dict[str, Any] = {"sha256": optional_text("sha256", sha256), "num_heads": heads}
    options.update(push=optional_text("push", push), private=private, trust_pickle=trust_pickle)
    places = path_text("source", source), Path(path_text("target", target))
    return run(
        *places, path_text("to", to, "the name of a format"), features=features, notify=_console(quiet).print, **options
    )


# ------------------------------------------------------------------------------------------ helpers


def _console(quiet: bool) -> Console:
    from vit_ipu.cli.console import make_console

    console = make_console(False, keep_going=True)
    console.quiet = quiet
    write = console.print

    def show(*objects: Any, **options: Any) -> None:
        write(*(in_python(part) if isinstance(part, str) else part for part in objects), **options)

    console.print = show  # type: ignore[method-assign]
    return console


def _loaded(config: AnyConfig, overrides: Sequence[str]) -> Config:
    """Returns the config that is given, or reads it with the overrides. Raises ConfigError."""
    if isinstance(config, Config):
        if overrides:
            raise ConfigError("overrides change a config when it is read: give them to load_config")
        return config
    return read_config(path_text("config", config, f"a Config, {_CONFIG}"), texts("overrides", overrides))


def _prepare(config: Config, device: str, numerics: Optional[str], **options: bool) -> Tuple[Device, List[str]]:
    """Returns the device and notes on the config, as the commands do before they begin."""
    from vit_ipu.cli.preparation import prepare

    return prepare(config, device, numerics=numerics, **options)


def _show(notes: Sequence[str], notify: Notify) -> None:
    for note in notes:
        notify(f"note: {note}")


def _name(config: AnyConfig) -> str:
    return "run" if isinstance(config, Config) else Path(os.fspath(config)).stem


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

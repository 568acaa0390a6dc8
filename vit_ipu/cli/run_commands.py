"""Commands that run a model: train, evaluate, predict, compile, benchmark.

Each command makes its heavy imports itself, so that the program starts quickly. Annotations are not postponed, because
on Python 3.8 typer cannot resolve Annotated in a postponed annotation.
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional

import typer
from typing_extensions import Annotated

from vit_ipu.cli.console import error_line, make_console, print_error
from vit_ipu.cli.options import (
    ConfigPath,
    DeviceName,
    Json,
    Numerics,
    NumHeads,
    Overrides,
    Rescan,
    TrustPickle,
)
from vit_ipu.cli.paths import note_on_earlier_run, output_of_run, require_parent
from vit_ipu.cli.run_output import (
    print_compilation,
    print_evaluation,
    print_notes,
    print_prediction_file,
    print_run_header,
    print_summary,
    print_throughput,
    write_predictions,
)
from vit_ipu.signals import INTERRUPTED, exit_code_of_stopped_run

if TYPE_CHECKING:
    from vit_ipu.backends.contract import Device
    from vit_ipu.config import Config


def train(
    config: ConfigPath,
    device: DeviceName = "auto",
    numerics: Numerics = None,
    output: Annotated[Optional[Path], typer.Option(help="Run folder; runs/CONFIG if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    allow_config_change: Annotated[
        Optional[List[str]],
        typer.Option(metavar="SECTION.KEY", help="With --resume: accept another value of this setting."),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Remove an earlier run of this config from the run folder, and start.")
    ] = False,
    overrides: Overrides = None,
    trust_pickle: TrustPickle = False,
    rescan: Rescan = False,
    as_json: Json = False,
) -> Optional[int]:
    """Train or fine-tune, evaluate, and write a run folder."""
    from vit_ipu.cli.preparation import is_first_instance, prepare, report_if_failed
    from vit_ipu.cli.progress import TrainingBar
    from vit_ipu.config_file import load_config
    from vit_ipu.data.sources.listing import ListingCache
    from vit_ipu.report.page import write_report
    from vit_ipu.train import earlier_run_replaced, open_run_folder
    from vit_ipu.train import train as run

    console = make_console(as_json, keep_going=True)
    loaded = load_config(config, overrides or ())
    path = output_of_run(config, output, resume=resume, restart=restart)
    resolved, notes = prepare(loaded, device, numerics=numerics, initial_weights=not resume)
    if output is None and not (resume or restart):
        notes = [*notes, *note_on_earlier_run(config, path)]
    options: Dict[str, Any] = {"resume": resume, "trust_pickle": trust_pickle}
    options["cache"] = ListingCache(rescan=rescan, notify=console.print)
    console.quiet = not is_first_instance(loaded, resolved)
    if console.quiet:
        _train_beside_the_first(loaded, resolved, path, options)
        return None
    changes = allow_config_change or ()
    with ExitStack() as stack:
        if restart:
            stack.enter_context(earlier_run_replaced(path, loaded, resume=resume))
        folder = stack.enter_context(
            open_run_folder(path, loaded, resume=resume, allowed_changes=changes, notify=console.print)
        )
        try:
            print_notes(console, notes)
            print_run_header(console, loaded, resolved, folder)
            with report_if_failed(folder):
                summary = run(loaded, resolved, folder, display=TrainingBar(console), **options)
        except KeyboardInterrupt:
            print_error(f"stopped at once; the last checkpoint is {folder.newest_checkpoint() or 'none'}")
            return INTERRUPTED
    write_report(folder)
    print_summary(console, summary, folder, resolved, as_json=as_json)
    return exit_code_of_stopped_run(summary.stopped_by) if summary.interrupted else None


def _train_beside_the_first(config: "Config", device: "Device", path: Path, options: Dict[str, Any]) -> None:
    """Trains as one of the processes of poprun or torchrun that write no files."""
    from vit_ipu.runs.folder import RunFolder
    from vit_ipu.train import train as run

    run(config, device, RunFolder(path), **options)


def evaluate(
    config: ConfigPath,
    checkpoint: Annotated[
        Optional[str],
        typer.Option(
            help="A run, a checkpoint, or weights of any known naming. If not given, and CONFIG is a run folder: its "
            "best checkpoint, or else its last one."
        ),
    ] = None,
    device: DeviceName = "auto",
    numerics: Numerics = None,
    overrides: Overrides = None,
    trust_pickle: TrustPickle = False,
    num_heads: NumHeads = None,
    rescan: Rescan = False,
    predictions: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE.csv", help="Write each image's class, predicted class and probability."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure top-1, top-5 and mean loss. Each held-out image counts exactly once."""
    from vit_ipu.backends.build import require_one_process
    from vit_ipu.cli.preparation import checkpoint_to_evaluate, is_first_instance, prepare
    from vit_ipu.config_file import load_config
    from vit_ipu.data.sources.listing import ListingCache
    from vit_ipu.evaluate import evaluate as run

    console = make_console(as_json)
    if predictions is not None:
        require_one_process("evaluate --predictions")
        require_parent(predictions, "--predictions")
    loaded = load_config(config, overrides or ())
    resolved, notes = prepare(loaded, device, numerics=numerics, training=False)
    weights = checkpoint_to_evaluate(config, checkpoint)
    console.quiet = not is_first_instance(loaded, resolved)
    print_notes(console, notes)
    cache = ListingCache(rescan=rescan, notify=console.print)
    options: Dict[str, Any] = {"trust_pickle": trust_pickle, "num_heads": num_heads, "cache": cache}
    found = run(loaded, resolved, weights, notify=console.print, **options)
    if predictions is not None:
        write_predictions(predictions, found, console.print)
    if not console.quiet:
        print_evaluation(console, found, resolved, as_json=as_json)


def predict(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A run, a checkpoint, or weights of any known naming.")
    ],
    images: Annotated[List[str], typer.Argument(metavar="IMAGE...", help="Image files, or folders of images.")],
    device: DeviceName = "auto",
    numerics: Numerics = None,
    trust_pickle: TrustPickle = False,
    num_heads: NumHeads = None,
    output: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Write the predictions to a file .csv or .json.")
    ] = None,
    as_json: Json = False,
) -> Optional[int]:
    """Print the five most probable classes of each image. The exit code is 2 if an image cannot be read."""
    from vit_ipu.backends.build import require_one_process, resolve_device
    from vit_ipu.cli.prediction_output import open_writer, require_prediction_file
    from vit_ipu.cli.progress import CountBar
    from vit_ipu.data.sources.image_list import find_images
    from vit_ipu.predict import predictions
    from vit_ipu.weights.fetch import require_source

    require_one_process("predict")
    if output is not None:
        require_prediction_file(output)
    resolved = resolve_device(device, numerics=numerics)
    require_source(checkpoint)
    console = make_console(as_json)
    found = find_images(images, console.print)
    unreadable: Dict[str, str] = {}

    def leave_out(path: str, error: Exception) -> None:
        unreadable[path] = error_line(error)
        print_error(unreadable[path])

    options: Dict[str, Any] = {"trust_pickle": trust_pickle, "num_heads": num_heads, "on_error": leave_out}
    shows_text = output is None and not as_json
    with CountBar(console, "image", quiet=shows_text) as bar:
        options["progress"] = lambda done: bar.show("predict", done, len(found))
        with open_writer(output, stdout=sys.stdout, as_json=as_json) as writer:
            for prediction in predictions(checkpoint, found, resolved, notify=console.print, **options):
                writer.write(prediction)
            writer.end(unreadable, resolved.facts)
    if output is not None:
        print_prediction_file(console, output, len(found) - len(unreadable), unreadable, resolved, as_json=as_json)
    return 2 if unreadable else None


def compile(
    config: ConfigPath,
    device: DeviceName = "ipu",
    numerics: Numerics = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Compile without IPUs, for later use (useOfflineIpuTarget).")
    ] = False,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Compile the programs of training and evaluation into the executable cache."""
    from vit_ipu.cli.preparation import is_first_instance, prepare
    from vit_ipu.compile import compile_program
    from vit_ipu.config_file import load_config
    from vit_ipu.data.sources.listing import ListingCache

    console = make_console(as_json)
    loaded = load_config(config, overrides or ())
    needs_labels = loaded.optim.class_weights is not None
    options: Dict[str, Any] = {"offline": offline, "allow_synthetic": True, "images": needs_labels}
    resolved, notes = prepare(loaded, device, numerics=numerics, **options)
    console.quiet = not is_first_instance(loaded, resolved)
    print_notes(console, notes)
    seconds = compile_program(loaded, resolved, offline=offline, cache=ListingCache(notify=console.print))
    print_compilation(console, loaded, resolved, seconds, as_json=as_json)


def benchmark(
    config: ConfigPath,
    device: DeviceName = "auto",
    numerics: Numerics = None,
    steps: Annotated[int, typer.Option(min=1, max=1_000_000, help="Host steps to time.")] = 10,
    burn_in: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Untimed host steps after the first one, which compiles.")
    ] = 2,
    real_data: Annotated[
        bool, typer.Option("--real-data", help="Load the config's images, and include loading in the times.")
    ] = False,
    overrides: Overrides = None,
    rescan: Rescan = False,
    as_json: Json = False,
) -> None:
    """Measure the throughput of the training step."""
    from vit_ipu.benchmark import benchmark as run
    from vit_ipu.cli.preparation import is_first_instance, prepare
    from vit_ipu.config_file import load_config
    from vit_ipu.data.sources.listing import ListingCache

    console = make_console(as_json)
    loaded = load_config(config, overrides or ())
    resolved, notes = prepare(loaded, device, numerics=numerics, allow_synthetic=True, images=real_data)
    console.quiet = not is_first_instance(loaded, resolved)
    print_notes(console, notes)
    cache = ListingCache(rescan=rescan, notify=console.print)
    found = run(loaded, resolved, steps=steps, burn_in=burn_in, real_data=real_data, cache=cache)
    if not console.quiet:
        print_throughput(console, loaded, resolved, found, as_json=as_json)

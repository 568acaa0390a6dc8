"""Commands of `vit-ipu`. Each command makes its heavy imports itself, so that the program starts quickly.

Annotations are not postponed here, because on Python 3.8 typer cannot resolve Annotated in a postponed annotation.
"""

import os
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

import typer
import typer.core
from typing_extensions import Annotated

from vit_ipu.cli.console import error_line, exit_code, make_console, print_error, standard_streams
from vit_ipu.cli.output import (
    interrupted_pack,
    print_check,
    print_compilation,
    print_config,
    print_conversion,
    print_evaluation,
    print_json,
    print_models,
    print_packed,
    print_predictions,
    print_run_header,
    print_shipped,
    print_started,
    print_summary,
    print_throughput,
    print_verified,
    write_predictions,
)
from vit_ipu.errors import ConfigError, RunFailed, UserError
from vit_ipu.signals import INTERRUPTED, Terminated, exit_code_of_stopped_run, exit_on_signals

if TYPE_CHECKING:
    from rich.console import Console

    from vit_ipu.backends.contract import Device
    from vit_ipu.config import Config


class _Commands(typer.core.TyperGroup):
    """Command group that prints "interrupted" and exits with 130 on Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print_error("interrupted")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="vit-ipu",
    cls=_Commands,
    help="Fine-tune Vision Transformers over a pipeline of Graphcore IPUs, or with the same program on a GPU or a CPU.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as those in pipeline_configs/.")]
Numerics = Annotated[
    Optional[str],
    typer.Option(
        "--numerics",
        metavar="exact|ipu",
        help="Arithmetic of ipu-sim: exact (float16 computed in float32) if not given, or an IPU's.",
    ),
]
DeviceName = Annotated[str, typer.Option("--device", help="auto, ipu, ipu-sim, ipu-sim:cuda, cuda or cpu.")]
Overrides = Annotated[Optional[List[str]], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting.")]
TrustPickle = Annotated[
    bool,
    typer.Option("--trust-pickle", help="Read .pth and .bin files even with a torch that has known security holes."),
]
NumHeads = Annotated[Optional[int], typer.Option(min=1, help="Attention heads, if the checkpoint does not state them.")]
Rescan = Annotated[bool, typer.Option("--rescan", help="Ignore the cached listing (pack: repack everything).")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def main() -> None:
    """Runs the command line; prints an error as one line on stderr, and exits with 2 for a user's mistake, else 1."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"] or ["--help"]
    exit_on_signals()  # training has handlers of its own while it can save a checkpoint
    try:
        with standard_streams():
            code = app(args=arguments, prog_name="vit-ipu", standalone_mode=False)
        sys.exit(code)
    except Terminated as ended:
        print_error(f"ended by {ended.signal_name}")
        raise
    except BrokenPipeError:  # such as that of `vit-ipu models | head -1`, which needs no message
        sys.exit(1)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        if not (isinstance(error, ConfigError) and os.environ.get("RANK", "0") != "0"):  # torchrun's first one tells it
            print_error(error_line(error))
        sys.exit(exit_code(error))


def _print_version(wanted: bool) -> None:
    if wanted:
        from vit_ipu import __version__

        print(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; can be given anywhere in the command.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""


# ---------------------------------------------------------------------------------------- commands


@app.command()
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
    from vit_ipu.cli.progress import TrainingBar
    from vit_ipu.data.sources.listing import ListingCache
    from vit_ipu.report.page import write_report
    from vit_ipu.train import earlier_run_replaced, open_run_folder
    from vit_ipu.train import train as run

    console = make_console(as_json, keep_going=True)
    loaded, resolved = _prepare(config, device, overrides, console, numerics=numerics)
    options: Dict[str, Any] = {"resume": resume, "trust_pickle": trust_pickle}
    options["cache"] = ListingCache(rescan=rescan, notify=console.print)
    path = output or _default_output(config, resume=resume, restart=restart)
    if not _is_first_instance(loaded, resolved):
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
            print_run_header(console, loaded, resolved, folder)
            summary = run(loaded, resolved, folder, display=TrainingBar(console), **options)
        except KeyboardInterrupt:
            print_error(f"stopped at once; the last checkpoint is {folder.newest_checkpoint() or 'none'}")
            return INTERRUPTED
        except RunFailed:
            if os.environ.get("WORLD_SIZE", "1") == "1":  # torchrun may be about to end this process
                with suppress(UserError, OSError):  # the error of the run matters more
                    write_report(folder)
            raise
    write_report(folder)
    print_summary(console, summary, folder, resolved, as_json=as_json)
    return exit_code_of_stopped_run(summary.stopped_by) if summary.interrupted else None


def _require_parent(path: Path, option: str) -> None:
    """Raises UserError unless a file can be made at `path`, as far as its folder tells."""
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: {path.parent} is not a folder: make it first, or give another path")
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a file"
        raise UserError(f"{option} {path} is {kind}: give the path of a file")


def _is_first_instance(config: "Config", device: "Device") -> bool:
    """Tells whether this is the only process of the run that writes files and shows results."""
    from vit_ipu.backends.build import find_instances

    return find_instances(config, device).index == 0


def _train_beside_the_first(config: "Config", device: "Device", path: Path, options: Dict[str, Any]) -> None:
    """Trains as one of the processes of poprun or torchrun that write no files."""
    from vit_ipu.runs.folder import RunFolder
    from vit_ipu.train import train as run

    run(config, device, RunFolder(path), **options)


@app.command()
def init(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Images, in one folder for each class.")],
    model: Annotated[
        Optional[str], typer.Option(metavar="WEIGHTS", help="Weights to fine-tune; random weights if not given.")
    ] = None,
    device: DeviceName = "auto",
    output: Annotated[Optional[Path], typer.Option(help="Config to write; FOLDER's name.yaml if not given.")] = None,
    num_heads: NumHeads = None,
    sha256: Annotated[Optional[str], typer.Option(help="SHA-256 of WEIGHTS; needed for https.")] = None,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
) -> None:
    """Look at a folder of images and at weights, and write a config that trains."""
    from vit_ipu.init import init as run

    console = make_console(as_json)
    options: Dict[str, Any] = {"num_heads": num_heads, "sha256": sha256, "trust_pickle": trust_pickle}
    found = run(folder, model=model, device=device, output=output, notify=console.print, **options)
    print_started(console, found, as_json=as_json)


@app.command()
def config(
    name: Annotated[
        Optional[str], typer.Argument(metavar="[NAME]", help="A shipped config or a YAML file; all if not given.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a config, for editors.")] = False,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """List the shipped configs, show one with all its keys, or print the JSON schema."""
    from vit_ipu.config_file import describe_shipped, load_config

    if schema:
        from vit_ipu.config_reference import json_schema

        print_json(json_schema())
    elif name is not None:
        print_config(load_config(name, overrides or ()), as_json=as_json)
    elif overrides:
        raise ConfigError("--set needs the NAME of a config: vit-ipu config NAME --set SECTION.KEY=VALUE")
    else:
        print_shipped(describe_shipped(), as_json=as_json)


@app.command()
def evaluate(
    config: ConfigPath,
    checkpoint: Annotated[str, typer.Option(help="A run, a checkpoint, or weights of any known naming.")],
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
    from vit_ipu.data.sources.listing import ListingCache
    from vit_ipu.evaluate import evaluate as run

    console = make_console(as_json)
    if predictions is not None:
        require_one_process("evaluate --predictions")
        _require_parent(predictions, "--predictions")
    loaded, resolved = _prepare(config, device, overrides, console, numerics=numerics, training=False)
    is_first = _is_first_instance(loaded, resolved)
    cache = ListingCache(rescan=rescan, notify=console.print)
    options: Dict[str, Any] = {"trust_pickle": trust_pickle, "num_heads": num_heads, "cache": cache}
    found = run(loaded, resolved, checkpoint, notify=console.print, **options)
    if predictions is not None:
        write_predictions(predictions, found)
    if is_first:
        print_evaluation(console, found, resolved, as_json=as_json)


@app.command()
def predict(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A run, a checkpoint, or weights of any known naming.")
    ],
    images: Annotated[List[str], typer.Argument(metavar="IMAGE...", help="Image files.")],
    device: DeviceName = "auto",
    numerics: Numerics = None,
    trust_pickle: TrustPickle = False,
    num_heads: NumHeads = None,
    as_json: Json = False,
) -> Optional[int]:
    """Print the five most probable classes of each image. The exit code is 2 if an image cannot be read."""
    from vit_ipu.backends.build import require_one_process, resolve_device
    from vit_ipu.predict import predict as run

    require_one_process("predict")
    unreadable: Dict[str, str] = {}

    def leave_out(path: str, error: Exception) -> None:
        unreadable[path] = error_line(error)
        print_error(unreadable[path])

    options: Dict[str, Any] = {"trust_pickle": trust_pickle, "num_heads": num_heads, "on_error": leave_out}
    notify = make_console(as_json).print
    resolved = resolve_device(device, numerics=numerics)
    found = run(checkpoint, images, resolved, notify=notify, **options)
    print_predictions(found, unreadable, resolved, as_json=as_json)
    return 2 if unreadable else None


@app.command()
def plan(
    config: ConfigPath,
    hardware: Annotated[
        Optional[str],
        typer.Option("--hardware", metavar="gc200|bow", help="IPUs to predict for; the config's if not given."),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Search for faster splits, micro-batches and memory settings that fit.")
    ] = False,
    pod: Annotated[
        Optional[int],
        typer.Option(
            metavar="4|16|64|256", help="With --search: IPUs of the POD; as many as the config's if not given."
        ),
    ] = None,
    output: Annotated[
        Optional[Path], typer.Option(help="With --search: folder to write the configs to that the search finds.")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> Optional[int]:
    """Show the units of each IPU, batches, and predicted memory and time. Exits with 2 if PopTorch would refuse it."""
    from vit_ipu.cli.plan_output import print_candidates, print_plan
    from vit_ipu.config_file import load_config
    from vit_ipu.plan import describe_candidate, describe_plan, search_plans, write_candidates

    if (pod is not None or output is not None) and not search:
        raise ConfigError(f"--{'output' if pod is None else 'pod'} has no effect without --search: add --search")
    loaded = load_config(config, overrides or ())
    described = describe_plan(loaded, hardware)
    found = search_plans(loaded, hardware, pod) if search else []
    paths = write_candidates(found, output) if output is not None else []
    if as_json:
        candidates = {"search": [describe_candidate(candidate) for candidate in found]} if search else {}
        print_json({**described, **candidates})
    else:
        print_plan(described)
        if search:
            print_candidates(found, paths)
    return 2 if described["violations"] else None


@app.command()
def check(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: Json = False,
) -> Optional[int]:
    """Check whether PopTorch would take the model and the config. The exit code is 2 if not."""
    from vit_ipu.check import check_config
    from vit_ipu.config_file import load_config

    report = check_config(load_config(config, overrides or ()))
    print_check(make_console(as_json), config.name, report, as_json=as_json)
    return None if report.accepted else 2


@app.command()
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
    from vit_ipu.compile import compile_program

    console = make_console(as_json)
    options: Dict[str, Any] = {"numerics": numerics, "offline": offline, "allow_synthetic": True}
    loaded, resolved = _prepare(config, device, overrides, console, **options)
    seconds = compile_program(loaded, resolved, offline=offline)
    print_compilation(console, loaded, resolved, seconds, as_json=as_json)


@app.command()
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
    from vit_ipu.data.sources.listing import ListingCache

    console = make_console(as_json)
    loaded, resolved = _prepare(config, device, overrides, console, numerics=numerics, allow_synthetic=True)
    is_first = _is_first_instance(loaded, resolved)
    cache = ListingCache(rescan=rescan, notify=console.print)
    found = run(loaded, resolved, steps=steps, burn_in=burn_in, real_data=real_data, cache=cache)
    if is_first:
        print_throughput(console, loaded, resolved, found, as_json=as_json)


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A run, a file, a folder, hf-hub:owner/name or an https address.")
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A file or folder that does not exist yet.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="timm, huggingface, torchvision, mmpretrain, google, graphcore, onnx or native.",
        ),
    ],
    sha256: Annotated[
        Optional[str], typer.Option(help="SHA-256 of the file that SOURCE names; needed for https.")
    ] = None,
    num_heads: NumHeads = None,
    features: Annotated[
        bool, typer.Option("--features", help="Leave out the head and the representation layer, for fine-tuning.")
    ] = False,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
) -> None:
    """Convert checkpoints from and to other tools. Every tensor stays equal to the last bit."""
    from vit_ipu.weights.export import convert as run

    console = make_console(as_json)
    weights = run(
        source,
        target,
        to,
        sha256=sha256,
        trust_pickle=trust_pickle,
        num_heads=num_heads,
        features=features,
        notify=console.print,
    )
    print_conversion(console, weights, target, to, as_json=as_json)


@app.command()
def models(
    image_size: Annotated[int, typer.Option(min=1, help="Side of the input in pixels.")] = 224,
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of the head.")] = 1000,
    as_json: Json = False,
) -> None:
    """List the variants with their parameters and operations."""
    from vit_ipu.model_cost import describe_variants

    print_models(describe_variants(image_size, num_classes), as_json=as_json)


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Images in train/CLASS and val/CLASS, or ImageNet.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A folder for the shards.")],
    short_side: Annotated[
        Optional[int],
        typer.Option(min=1, help="Resize larger images to this short side, as JPEG; no resizing if not given."),
    ] = None,
    quality: Annotated[
        Optional[int], typer.Option(min=1, max=100, help="JPEG quality of resized images; 90 if not given.")
    ] = None,
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Approximate size of a shard, such as 256MB or 1GB.")
    ] = "256MB",
    workers: Annotated[
        Optional[int], typer.Option(min=1, help="Number of processes; one per core if not given.")
    ] = None,
    on_error: Annotated[
        str, typer.Option(metavar="raise|skip", help="Stop at an image that cannot be read, or leave it out.")
    ] = "raise",
    verify: Annotated[
        bool, typer.Option("--verify", help="Write nothing: check TARGET's shards against their checksums.")
    ] = False,
    rescan: Rescan = False,
    as_json: Json = False,
) -> Optional[int]:
    """Pack an image folder into tar shards. Hosts read shards quickly and in any order; images can be resized."""
    from vit_ipu.cli.progress import CountBar
    from vit_ipu.data.packing import pack as packing
    from vit_ipu.data.packing.jobs import PackOptions
    from vit_ipu.data.sources.listing import ListingCache
    from vit_ipu.errors import PackInterrupted

    console = make_console(as_json, keep_going=True)
    options = PackOptions.of(short_side, quality, shard_size, on_error)
    count = workers or os.cpu_count() or 1
    cache = ListingCache(rescan=rescan, notify=console.print)
    try:
        with CountBar(console, "images", quiet=as_json) as bar:
            if verify:
                counts = packing.verify(target, workers=count, progress=bar.show)
            else:
                packed = packing.pack(source, target, options, workers=count, cache=cache, progress=bar.show)
    except (KeyboardInterrupt, PackInterrupted) as error:
        print_error(interrupted_pack(error, verify=verify))
        return INTERRUPTED
    if verify:
        print_verified(console, target, counts, as_json=as_json)
    else:
        print_packed(console, target, packed, as_json=as_json)
    return None


@app.command()
def report(
    runs: Annotated[List[Path], typer.Argument(metavar="RUN...", help="One run folder, or several to compare.")],
    output: Annotated[
        Optional[Path], typer.Option(help="HTML file; RUN/report.html, or comparison.html for several runs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page about a run: mistakes, confusions, curves, pipeline, config. Several runs are compared."""
    from vit_ipu.report.comparison import write_comparison
    from vit_ipu.report.page import write_report
    from vit_ipu.runs.folder import RunFolder

    folders = [RunFolder(path) for path in runs]
    target = output or (folders[0].report if len(folders) == 1 else Path("comparison.html"))
    if output is not None:
        _require_parent(output, "--output")
    if len(folders) == 1:
        write_report(folders[0], target)
    else:
        write_comparison(folders, target)
    if as_json:
        print_json({"report": str(target)})
    else:
        make_console(as_json).print(str(target))


# ----------------------------------------------------------------------------------------- helpers


def _prepare(
    path: Path,
    device: str,
    overrides: Optional[List[str]],
    console: "Console",
    *,
    numerics: Optional[str],
    offline: bool = False,
    training: bool = True,
    allow_synthetic: bool = False,
) -> "Tuple[Config, Device]":
    """Loads the config and resolves the device; checks that they fit before data or device is touched."""
    from vit_ipu.backends.build import require_runnable_on, resolve_device
    from vit_ipu.config_file import load_config
    from vit_ipu.unused_options import unused_options

    loaded = load_config(path, overrides or ())
    resolved = resolve_device(device, numerics=numerics, offline=offline)
    notes = require_runnable_on(loaded, resolved, training=training, allow_synthetic=allow_synthetic)
    console.quiet = not _is_first_instance(loaded, resolved)
    for note in notes + unused_options(loaded):
        console.print(f"note: {note}")
    return loaded, resolved


def _default_output(config: Path, *, resume: bool, restart: bool = False) -> Path:
    """Returns runs/NAME, or the first free one of runs/NAME-2, -3, ...; to resume or restart, the last that exists."""
    paths = [Path("runs") / config.stem] + [Path("runs") / f"{config.stem}-{n}" for n in range(2, 10000)]
    taken = [path for path in paths if (path / "config.yaml").exists()]
    if resume or restart:
        return taken[-1] if taken else paths[0]
    return next(path for path in paths if path not in taken)

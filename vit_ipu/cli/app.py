"""The command line: `vit-ipu`. Heavy imports wait for the command that needs them.

Annotations are not postponed here: on Python 3.8 typer does not see through strings to what is Annotated.
"""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional

import typer
import typer.core
from typing_extensions import Annotated

from vit_ipu.cli.output import (
    exit_code,
    interrupted_pack,
    introduce,
    make_console,
    one_line,
    print_json,
    print_packed,
    print_predictions,
    print_summary,
    print_verified,
    summary_values,
)

if TYPE_CHECKING:
    from rich.console import Console

    from vit_ipu.backends import Device
    from vit_ipu.config import Config


class _Commands(typer.core.TyperGroup):
    """The commands, of which one that is interrupted says so, rather than nothing."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("vit-ipu: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="vit-ipu",
    cls=_Commands,
    help="Fine-tune Vision Transformers over a pipeline of Graphcore IPUs, or the same program on a GPU or a CPU.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as those in pipeline_configs/.")]
DeviceName = Annotated[str, typer.Option("--device", help="auto, ipu, ipu-sim, ipu-sim:cuda, cuda or cpu.")]
Overrides = Annotated[Optional[List[str]], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting.")]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Read a .pth or .bin also with a torch that has known holes.")
]
Rescan = Annotated[
    bool, typer.Option("--rescan", help="List the images anew, or pack them anew, after files were exchanged in place.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def main() -> None:
    """Runs the command line; an error is one line on stderr, and exit 2 if it is the user's, else 1."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"] or ["--help"]
    try:
        sys.exit(app(args=arguments, prog_name="vit-ipu", standalone_mode=False))
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        print(f"vit-ipu: {one_line(error)}", file=sys.stderr)
        sys.exit(exit_code(error))


def _print_version(wanted: bool) -> None:
    if wanted:
        from vit_ipu import __version__

        print(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; anywhere on the line.")
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
    output: Annotated[Optional[Path], typer.Option(help="Run folder; runs/CONFIG when not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overrides: Overrides = None,
    trust_pickle: TrustPickle = False,
    rescan: Rescan = False,
    as_json: Json = False,
) -> Optional[int]:
    """Train or fine-tune; evaluates as it goes, and writes a run folder."""
    from vit_ipu.backends import find_instances
    from vit_ipu.data.sources.listing import ListingCache
    from vit_ipu.report.page import write_report
    from vit_ipu.runs.folder import RunFolder
    from vit_ipu.runs.metrics import require_tracking
    from vit_ipu.train import train as run

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # until the training loop has its own
    console = make_console(as_json)
    loaded, resolved = _prepare(config, device, overrides, console)
    _refuse_synthetic_data(loaded)
    require_tracking(loaded)
    path = output or _default_output(config, resume=resume)
    cache = ListingCache(rescan=rescan, say=console.print)
    if find_instances(loaded, resolved).index > 0:
        run(loaded, resolved, RunFolder(path), console, resume=resume, trust_pickle=trust_pickle, cache=cache)
        return None
    folder = (RunFolder.reopen if resume else RunFolder.create)(path, loaded)
    try:
        introduce(console, loaded, resolved, folder)
        summary = run(loaded, resolved, folder, console, resume=resume, trust_pickle=trust_pickle, cache=cache)
    except KeyboardInterrupt:
        print(
            "vit-ipu: stopped at once; the last checkpoint is {}".format(folder.newest_checkpoint() or "none"),
            file=sys.stderr,
        )
        return 130
    except OSError as error:
        error.filename = error.filename or str(folder.path)  # such as of a disk that is full
        raise
    finally:
        folder.release()
    write_report(folder)
    if as_json:
        print_json(summary_values(summary, folder, resolved))
    else:
        print_summary(console, summary, folder)
    return 130 if summary.interrupted else None


@app.command()
def evaluate(
    config: ConfigPath,
    checkpoint: Annotated[str, typer.Option(help="A run, a checkpoint, or weights of any known naming.")],
    device: DeviceName = "auto",
    overrides: Overrides = None,
    trust_pickle: TrustPickle = False,
    rescan: Rescan = False,
    as_json: Json = False,
) -> None:
    """Top-1, top-5 and mean loss on the held-out images, every one exactly once."""
    from dataclasses import asdict

    from vit_ipu.backends import open_backend
    from vit_ipu.data.loading.loader import EvaluationLoader
    from vit_ipu.data.sources.listing import ListingCache
    from vit_ipu.data.sources.registry import open_source
    from vit_ipu.evaluate import differences_from
    from vit_ipu.evaluate import evaluate as run
    from vit_ipu.runs.checkpoint import require_same_model
    from vit_ipu.weights.fit import differing_facts, require_heads
    from vit_ipu.weights.read import read_weights

    console = make_console(as_json)
    loaded, resolved = _prepare(config, device, overrides, console, training=False)
    _refuse_synthetic_data(loaded)
    weights = read_weights(checkpoint, trust_pickle=trust_pickle, say=console.print)
    cache = ListingCache(rescan=rescan, say=console.print)
    source = open_source(loaded.data, loaded.model, "eval", cache=cache)
    if weights.description is not None:
        notes = differences_from(weights.description, loaded, source.classes)
    else:
        require_heads(weights, loaded)
        notes = differing_facts(weights, loaded)
    for note in notes:
        console.print(f"note: {note}")
    with open_backend(loaded, resolved) as backend:
        own = backend.state_dict()["model"]
        backend.load_state_dict({"model": require_same_model(weights.tensors, own, checkpoint)})
        loader = EvaluationLoader(source, loaded)
        found = run(backend, loader)
    for skipped in loader.skipped:
        console.print(f"skipped: {skipped}")
    if as_json:
        facts = {"checkpoint": str(weights.path), "device": str(resolved), "simulated": resolved.simulated}
        print_json(dict(asdict(found), skipped=list(loader.skipped), **facts))
    else:
        console.print(f"top-1 {found.top1:.2f} %, top-5 {found.top5:.2f} %, loss {found.loss:.4f}")
        console.print(f"{found.num_images:,} images, {weights.path}")


@app.command()
def predict(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A run, a checkpoint, or weights of any known naming.")
    ],
    images: Annotated[List[str], typer.Argument(metavar="IMAGE...", help="Image files.")],
    device: DeviceName = "auto",
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
) -> Optional[int]:
    """The five most probable classes of each image; one that cannot be read is named, and makes the exit 2."""
    from vit_ipu.backends import resolve_device
    from vit_ipu.predict import predict as run

    unreadable: Dict[str, str] = {}

    def leave_out(path: str, error: Exception) -> None:
        unreadable[path] = one_line(error)
        print(f"vit-ipu: {unreadable[path]}", file=sys.stderr)

    found = run(checkpoint, images, resolve_device(device), trust_pickle=trust_pickle, on_error=leave_out)
    print_predictions(found, unreadable, as_json=as_json)
    return 2 if unreadable else None


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Where each unit goes, and the arithmetic of batches."""
    from vit_ipu.config_file import load_config
    from vit_ipu.plan import describe_plan, plan_lines

    loaded = load_config(config, overrides or ())
    if as_json:
        print_json(describe_plan(loaded))
    else:
        for line in plan_lines(loaded):
            print(line)


@app.command()
def compile(
    config: ConfigPath,
    device: DeviceName = "ipu",
    offline: Annotated[
        bool, typer.Option("--offline", help="Without IPUs, for later use (useOfflineIpuTarget).")
    ] = False,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Compile for training into the executable cache, without training."""
    import time

    from vit_ipu.backends import open_backend
    from vit_ipu.config import UserError

    console = make_console(as_json)
    loaded, resolved = _prepare(config, device, overrides, console, offline=offline)
    if resolved.kind not in ("ipu", "ipu-sim"):
        raise UserError(f"compile is for IPUs, but --device is {resolved}: use ipu or ipu-sim")
    if resolved.kind == "ipu" and loaded.pipeline.executable_cache is None:
        raise UserError("nowhere to keep the program: give --set pipeline.executable_cache=FOLDER")
    start = time.monotonic()
    with open_backend(loaded, resolved, offline=offline) as backend:
        backend.compile()
    seconds = time.monotonic() - start
    if as_json:
        print_json({"device": str(resolved), "simulated": resolved.simulated, "seconds": seconds})
    elif resolved.simulated:
        console.print("PopTorch's rules hold for this model and config (simulated: nothing was compiled)")
    else:
        console.print(f"compiled in {seconds:.0f} s into {loaded.pipeline.executable_cache}")


@app.command()
def benchmark(
    config: ConfigPath,
    device: DeviceName = "auto",
    steps: Annotated[int, typer.Option(min=1, help="Host steps to time.")] = 10,
    burn_in: Annotated[int, typer.Option(min=0, help="Host steps before, after the first, which compiles.")] = 2,
    real_data: Annotated[
        bool, typer.Option("--real-data", help="Load the config's images, and time that too.")
    ] = False,
    overrides: Overrides = None,
    rescan: Rescan = False,
    as_json: Json = False,
) -> None:
    """Throughput of the training step."""
    from dataclasses import asdict

    from vit_ipu.benchmark import benchmark as run
    from vit_ipu.data.sources.listing import ListingCache
    from vit_ipu.runs.environment import environment

    console = make_console(as_json)
    loaded, resolved = _prepare(config, device, overrides, console)
    cache = ListingCache(rescan=rescan, say=console.print)
    found = run(loaded, resolved, steps=steps, burn_in=burn_in, real_data=real_data, cache=cache)
    if as_json:
        measured = dict(asdict(found), config=loaded.model_dump(mode="json"), **environment(loaded, resolved))
        print_json(measured)
        return
    word = "simulated" if resolved.simulated else "measured"
    console.print(
        "{:,.1f} images/s ({}; quartiles {:,.1f} and {:,.1f} of {} host steps of {:,} images)".format(
            found.images_per_second, word, *reversed(found.quartiles), len(found.seconds), found.samples_per_step
        ),
        highlight=False,
    )


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A run, a file, a folder, hf-hub:owner/name or an https address.")
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A file or folder that is not there yet.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="timm, huggingface, torchvision, mmpretrain, google, graphcore, onnx or native.",
        ),
    ],
    sha256: Annotated[Optional[str], typer.Option(help="Of the file that SOURCE means; https needs it.")] = None,
    num_heads: Annotated[
        Optional[int], typer.Option(min=1, help="Attention heads, where nothing tells: a width that is not usual.")
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Without the head and the representation layer: to start from.")
    ] = False,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
) -> None:
    """Checkpoints from and to other tools, every tensor equal to the last bit."""
    from vit_ipu.weights.export import convert as run

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # nothing half written stays
    console = make_console(as_json)
    weights = run(
        source,
        target,
        to,
        sha256=sha256,
        trust_pickle=trust_pickle,
        num_heads=num_heads,
        features=features,
        say=console.print,
    )
    num_parameters = sum(tensor.numel() for tensor in weights.tensors.values())
    if as_json:
        values = {"source": source, "origin": weights.origin, "target": str(target), "to": to}
        print_json(dict(values, num_parameters=num_parameters, num_classes=weights.num_classes))
    else:
        console.print(
            f"{source} ({weights.origin}, {num_parameters:,} parameters, {weights.num_classes} classes) written as "
            f"{to} to {target}"
        )


@app.command()
def models(
    image_size: Annotated[int, typer.Option(min=1, help="Side of the input in pixels.")] = 224,
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of the head.")] = 1000,
    as_json: Json = False,
) -> None:
    """The variants with their parameters and operations."""
    from vit_ipu.planner.variants import describe_variants, variant_lines

    rows = describe_variants(image_size, num_classes)
    if as_json:
        print_json({"models": rows})
    else:
        for line in variant_lines(rows):
            print(line)


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Images in train/CLASS and val/CLASS, or ImageNet.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A folder for the shards.")],
    short_side: Annotated[
        Optional[int], typer.Option(min=1, help="Resize larger images, and encode them as JPEG; none when not given.")
    ] = None,
    quality: Annotated[
        Optional[int], typer.Option(min=1, max=100, help="Of JPEG, for images that are resized; 90 when not given.")
    ] = None,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="About, of one shard: 256MB, 1GB.")] = "256MB",
    workers: Annotated[Optional[int], typer.Option(min=1, help="Processes; as many as cores when not given.")] = None,
    on_error: Annotated[
        str, typer.Option(metavar="raise|skip", help="What becomes of an image that cannot be read.")
    ] = "raise",
    verify: Annotated[
        bool, typer.Option("--verify", help="Write nothing: check TARGET's shards against their checksums.")
    ] = False,
    rescan: Rescan = False,
    as_json: Json = False,
) -> Optional[int]:
    """An image folder as tar shards, resized if asked, that every host reads quickly and in any order."""
    import os

    from vit_ipu.cli.progress import CountDisplay
    from vit_ipu.data.packing import pack as packing
    from vit_ipu.data.packing.jobs import PackOptions
    from vit_ipu.data.sources.listing import ListingCache

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    console = make_console(as_json)
    options = PackOptions.of(short_side, quality, shard_size, on_error)
    count = workers or os.cpu_count() or 1
    cache = ListingCache(rescan=rescan, say=console.print)
    try:
        with CountDisplay(console, "images", quiet=as_json) as display:
            if verify:
                counts = packing.verify(target, workers=count, progress=display.show)
            else:
                packed = packing.pack(source, target, options, workers=count, cache=cache, progress=display.show)
    except (KeyboardInterrupt, packing.PackInterrupted) as error:
        print(f"vit-ipu: {interrupted_pack(error)}", file=sys.stderr)
        return 130
    if verify:
        print_verified(console, target, counts, as_json=as_json)
    else:
        print_packed(console, target, packed, as_json=as_json)
    return None


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")], as_json: Json = False) -> None:
    """One HTML page: curves, the pipeline's timetable, environment and config."""
    from vit_ipu.report.page import write_report
    from vit_ipu.runs.folder import RunFolder

    folder = RunFolder(run)
    write_report(folder)
    if as_json:
        print_json({"report": str(folder.report)})
    else:
        print(folder.report)


# ----------------------------------------------------------------------------------------- helpers


def _prepare(
    path: Path,
    device: str,
    overrides: Optional[List[str]],
    console: "Console",
    *,
    offline: bool = False,
    training: bool = True,
) -> "tuple[Config, Device]":
    """The config and the device, checked against each other before data or device is touched."""
    from vit_ipu.backends import find_instances, resolve_device
    from vit_ipu.config import unused_options
    from vit_ipu.config_file import load_config
    from vit_ipu.pipeline import require_runnable

    loaded = load_config(path, overrides or ())
    resolved = resolve_device(device, offline=offline)
    instances = find_instances(loaded, resolved)
    notes = require_runnable(loaded, resolved.kind, instances.count, training=training)
    for note in notes + unused_options(loaded):
        console.print(f"note: {note}")
    return loaded, resolved


def _refuse_synthetic_data(config: "Config") -> None:
    from vit_ipu.config import UserError

    if config.pipeline.synthetic_data:
        raise UserError("pipeline.synthetic_data makes inputs and weights meaningless: it is for benchmark only")


def _default_output(config: Path, *, resume: bool) -> Path:
    """runs/NAME, or the first free runs/NAME-2, -3, ...; to resume, the last one there is."""
    paths = [Path("runs") / config.stem] + [Path("runs") / f"{config.stem}-{n}" for n in range(2, 10000)]
    taken = [path for path in paths if (path / "config.yaml").exists()]
    if resume:
        return taken[-1] if taken else paths[0]
    return next(path for path in paths if path not in taken)

"""Commands that write other files: convert, pack, report.

Each command makes its heavy imports itself, so that the program starts quickly. Annotations are not postponed, because
on Python 3.8 typer cannot resolve Annotated in a postponed annotation.
"""

import os
from pathlib import Path
from typing import List, Optional

import typer
from typing_extensions import Annotated

from vit_ipu.cli.console import make_console, print_error
from vit_ipu.cli.file_output import interrupted_pack, print_conversion, print_packed, print_verified
from vit_ipu.cli.json_output import print_json
from vit_ipu.cli.options import Json, NumHeads, Rescan, TrustPickle
from vit_ipu.cli.paths import require_folder, require_parent
from vit_ipu.signals import INTERRUPTED


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
    push: Annotated[
        Optional[str],
        typer.Option(
            "--push",
            metavar="OWNER/NAME",
            help="Upload the huggingface export to this new or empty repository of the hub, with the token of HF_TOKEN "
            "or hf auth login. As with huggingface_hub, it is public unless --private or its organisation says "
            "otherwise.",
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository of --push private.")] = False,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
) -> None:
    """Convert checkpoints from and to other tools. Every tensor stays equal to the last bit."""
    from vit_ipu.convert import convert as run

    console = make_console(as_json)
    weights = run(
        source,
        target,
        to,
        sha256=sha256,
        trust_pickle=trust_pickle,
        num_heads=num_heads,
        features=features,
        push=push,
        private=private,
        notify=console.print,
    )
    print_conversion(console, weights, target, to, push=push, as_json=as_json)


def pack(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Images in train/CLASS and val/CLASS, or in CLASS; or ImageNet.")
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A folder for the shards.")],
    short_side: Annotated[
        Optional[int],
        typer.Option(min=1, help="Resize larger images to this short side, as JPEG; no resizing if not given."),
    ] = None,
    quality: Annotated[
        Optional[int], typer.Option(min=1, max=100, help="JPEG quality of resized images; 90 if not given.")
    ] = None,
    background: Annotated[
        Optional[str],
        typer.Option(
            metavar="COLOUR", help="Lay resized images on this colour, such as white, where they are transparent."
        ),
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
    from vit_ipu.data.packing import verification
    from vit_ipu.data.packing.jobs import PackOptions
    from vit_ipu.data.sources.listing import ListingCache
    from vit_ipu.errors import PackInterrupted

    console = make_console(as_json, keep_going=True)
    options = PackOptions.of(short_side, quality, shard_size, on_error, background)
    count = workers or os.cpu_count() or 1
    cache = ListingCache(rescan=rescan, notify=console.print)
    try:
        with CountBar(console, "image", quiet=as_json) as bar:
            if verify:
                counts = verification.verify(target, workers=count, progress=bar.show)
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


def report(
    runs: Annotated[List[Path], typer.Argument(metavar="RUN...", help="One run folder, or several to compare.")],
    output: Annotated[
        Optional[Path], typer.Option(help="HTML file; RUN/report.html, or comparison.html for several runs.")
    ] = None,
    pictures: Annotated[
        Optional[Path],
        typer.Option(metavar="FOLDER", help="Also write each picture of the page there, as SVG and PNG."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page about a run: mistakes, confusions, curves, pipeline, config. Several runs are compared."""
    from vit_ipu.report.comparison import one_line_results, write_comparison
    from vit_ipu.report.page import write_report
    from vit_ipu.report.pictures import write_pictures
    from vit_ipu.runs.folder import RunFolder

    console = make_console(as_json)
    folders = [RunFolder(path) for path in runs]
    target = output or (folders[0].report if len(folders) == 1 else Path("comparison.html"))
    if output is not None:
        require_parent(output, "--output")
    if pictures is not None:
        require_folder(pictures, "--pictures", "the pictures")
    if len(folders) == 1:
        write_report(folders[0], target, notify=console.print)
    else:
        write_comparison(folders, target)
    drawn = write_pictures(folders, pictures) if pictures is not None else []
    if as_json:
        paths = {"pictures": [str(path) for path in drawn]} if pictures is not None else {}
        print_json({"report": str(target), **paths})
        return
    for line in one_line_results(folders) if len(folders) > 1 else ():
        console.print(line)
    for path in (target, *drawn):
        console.print(str(path))

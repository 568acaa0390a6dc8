"""Options that several commands share, and what commands do before they begin.

Annotations are not postponed here, because on Python 3.8 typer cannot resolve Annotated in a postponed annotation.
"""

from pathlib import Path
from typing import TYPE_CHECKING, List, Optional, Tuple

import typer
from typing_extensions import Annotated

from vit_ipu.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from vit_ipu.backends.contract import Device
    from vit_ipu.config import Config

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


def prepare(
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
    console.quiet = not is_first_instance(loaded, resolved)
    for note in notes + unused_options(loaded):
        console.print(f"note: {note}")
    return loaded, resolved


def is_first_instance(config: "Config", device: "Device") -> bool:
    """Tells whether this is the only process of the run that writes files and shows results."""
    from vit_ipu.backends.build import find_instances

    return find_instances(config, device).index == 0


def require_parent(path: Path, option: str) -> None:
    """Raises UserError unless a file can be made at `path`, as far as its folder tells."""
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: {path.parent} is not a folder: make it first, or give another path")
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a file"
        raise UserError(f"{option} {path} is {kind}: give the path of a file")


def require_folder(path: Path, option: str, content: str) -> None:
    """Raises UserError if `path` is there and is not a folder; `content` is what the folder is for."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{option} {path} is not a folder: give a folder for {content}")

"""Options that several commands share.

Annotations are not postponed here, because on Python 3.8 typer cannot resolve Annotated in a postponed annotation.
"""

from pathlib import Path
from typing import List, Optional

import typer
from typing_extensions import Annotated

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file, the name of a shipped config, or a run folder.")
]
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

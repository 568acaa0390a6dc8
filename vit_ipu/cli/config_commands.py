"""Commands about configs: init, config, plan, check, models.

Each command makes its heavy imports itself, so that the program starts quickly. Annotations are not postponed, because
on Python 3.8 typer cannot resolve Annotated in a postponed annotation.
"""

from pathlib import Path
from typing import Any, Dict, Optional

import typer
from typing_extensions import Annotated

from vit_ipu.cli.config_output import print_check, print_config, print_models, print_shipped, print_started
from vit_ipu.cli.console import make_console
from vit_ipu.cli.json_output import print_json
from vit_ipu.cli.options import ConfigPath, DeviceName, Json, NumHeads, Overrides, TrustPickle
from vit_ipu.errors import ConfigError


def init(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Images, in one folder for each class.")],
    model: Annotated[
        Optional[str], typer.Option(metavar="WEIGHTS", help="Weights to fine-tune; random weights if not given.")
    ] = None,
    device: DeviceName = "auto",
    output: Annotated[
        Optional[Path], typer.Option(help="Config to write; FOLDER's name and .yaml if not given.")
    ] = None,
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


def plan(
    config: ConfigPath,
    hardware: Annotated[
        Optional[str],
        typer.Option(
            "--hardware", metavar="gc200|bow", help="IPUs to predict for; the config's if not given. gc200,bow: both."
        ),
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
    from vit_ipu.cli.plan_output import print_plan, print_search
    from vit_ipu.config_file import load_config
    from vit_ipu.plan import (
        describe_plan,
        describe_search,
        require_free_folder,
        require_searchable,
        search_plans,
        write_candidates,
    )

    require_searchable(hardware, pod, search=search)
    if output is not None and not search:
        raise ConfigError("--output has no effect without --search: add --search")
    if output is not None:
        require_free_folder(output)
    loaded = load_config(config, overrides or ())
    described = describe_plan(loaded, hardware)
    found = search_plans(loaded, hardware, pod) if search else None
    paths = write_candidates(found.candidates, output) if found is not None and output is not None else []
    if as_json:
        print_json({**described, **(describe_search(found) if found is not None else {})})
    else:
        print_plan(described)
        if found is not None:
            print_search(found, paths)
    return 2 if described["violations"] else None


def check(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: Json = False,
) -> Optional[int]:
    """Check whether PopTorch would take the model and the config. The exit code is 2 if not."""
    from vit_ipu.check import check_config
    from vit_ipu.config_file import load_config

    report = check_config(load_config(config, overrides or ()))
    print_check(make_console(as_json), config.name or str(config), report, as_json=as_json)
    return None if report.accepted else 2


def models(
    image_size: Annotated[int, typer.Option(min=1, help="Side of the input in pixels.")] = 224,
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of the head.")] = 1000,
    as_json: Json = False,
) -> None:
    """List the variants with their parameters and operations."""
    from vit_ipu.model_cost import describe_variants

    print_models(describe_variants(image_size, num_classes), as_json=as_json)

"""Output of the commands about configs: init, config, check, models."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Dict, List, Sequence, Tuple

from vit_ipu.cli.json_output import print_json
from vit_ipu.text import counted, message

if TYPE_CHECKING:
    from rich.console import Console

    from vit_ipu.check import CheckReport, Finding
    from vit_ipu.config import Config
    from vit_ipu.init import Started


def print_started(console: Console, found: Started, *, as_json: bool) -> None:
    """Prints what `init` found in the folder, the model, the config that it wrote, and the next command."""
    folder = found.folder
    if as_json:
        values = dict(asdict(folder), config=str(found.path), model=found.model, device=found.device)
        print_json(dict(values, next=found.train_command))
        return
    images = f"{counted(folder.num_train, 'image')} to train on ({folder.images_a_class} a class)"
    console.print(
        f"{folder.path}: {counted(len(folder.classes), 'class', 'classes')}, {images}, {folder.num_eval:,} held out"
    )
    if folder.holdout is not None:
        console.print(f"held out: {100 * folder.holdout:g} % of each class, chosen by the names of the files")
    console.print(
        f"median size: {folder.width} x {folder.height} pixels, of {counted(folder.num_probed, 'image')} looked at"
    )
    if folder.unreadable:
        console.print(
            f"{len(folder.unreadable)} of {folder.num_probed:,} cannot be read and are left out in training "
            f"(data.on_error: skip), such as: {folder.unreadable[0]}"
        )
    console.print(f"model: {found.model}")
    console.print(f"wrote {found.path}, for {found.device}; train with:")
    console.print(f"  {found.train_command}")


def print_config(config: Config, *, as_json: bool) -> None:
    """Prints a config with all its keys."""
    from vit_ipu.config_file import dump_config

    if as_json:
        print_json(config.model_dump(mode="json"))
    else:
        print(dump_config(config), end="")


def print_shipped(shipped: Dict[str, str], *, as_json: bool) -> None:
    """Prints the names of the shipped configs, each with what it is for."""
    if as_json:
        print_json({"configs": shipped})
        return
    for name, purpose in shipped.items():
        print(name)
        print(textwrap.fill(purpose, 79, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))
    print()
    print("vit-ipu config NAME shows one; vit-ipu train NAME trains it; vit-ipu init FOLDER")
    print("writes one for your images.")


def print_check(console: Console, name: str, report: CheckReport, *, as_json: bool) -> None:
    """Prints what PopTorch would refuse in a config and its model, with the place and the remedy; then the verdict."""
    if as_json:
        print_json(report.as_values())
        return
    for violation in report.violations:
        _print_wrapped(console, "refused: ", violation)
    for finding, programs in report.findings():
        console.print()
        for label, text in _lines_of(finding, programs):
            _print_wrapped(console, label, text)
    if report.violations or report.findings():
        console.print()
    for program in report.programs:
        what = f"{counted(program.num_operations, 'operation')} of {counted(program.num_kinds, 'kind')}"
        console.print(f"{program.name}: {what}, {counted(len(program.refused), 'place')} refused")
        if program.stopped is not None:
            _print_wrapped(console, "not judged to its end: ", program.stopped)
    console.print(f"settings: {counted(report.num_rules, 'rule')}, {len(report.violations)} violated")
    verdict = "would accept" if report.accepted else "would refuse"
    _print_wrapped(console, "", f"PopTorch {verdict} {name}. Only PopTorch and an IPU can tell {report.not_checked}.")


_SPOKEN = {"__bool__": "if or bool()", "__float__": "float()", "__int__": "int()", "__getitem__": "indexing"}
"""How a program calls methods of tensors that it does not call by their names."""


def _lines_of(finding: Finding, programs: Sequence[str]) -> List[Tuple[str, str]]:
    """Returns the labels and texts of a finding."""
    caller = _SPOKEN.get(finding.function, f"torch's {finding.function}")
    called = f", called by {caller}" if finding.function not in ("", finding.operation) else ""
    times = f", {finding.count} times" if finding.count > 1 else ""
    return [
        (f"{finding.verdict}: ", f"{finding.operation}{called}{times} ({' and '.join(programs)})"),
        ("  where: ", finding.where),
        ("  why: ", finding.reason),
        ("  do: ", finding.remedy),
    ]


def _print_wrapped(console: Console, label: str, text: str) -> None:
    """Prints a label and a text in lines of at most 80 characters; words, such as paths, are not broken."""
    indent = " " * min(len(label), 9)
    options: Dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    for line in textwrap.wrap(label + message(text), 80, subsequent_indent=indent, drop_whitespace=True, **options):
        console.print(line)


def print_models(rows: List[Dict[str, Any]], *, as_json: bool) -> None:
    """Prints the variants, one per line, and the figures that mmclassification prints for three of them."""
    from vit_ipu.model_cost import PRINTED_FORMULA

    if as_json:
        print_json({"models": rows})
        return
    print(
        f"{'variant':20} {'width':>5} {'depth':>5} {'heads':>5} {'pixels':>6} {'parameters':>12} {'GMACs':>8}   "
        "mmclassification prints"
    )
    for row in rows:
        printed = row.get("mmclassification")
        note = f"{printed['printed_parameters_m']:.2f} M, {printed['printed_flops_g']:.2f} G" if printed else ""
        shape = f"{row['variant']:20} {row['width']:5} {row['depth']:5} {row['num_heads']:5} {row['image_size']:6}"
        print(f"{shape} {row['parameters']:12,} {row['flops'] / 1e9:8.2f}   {note}".rstrip())
    print()
    for line in textwrap.wrap(f"What mmclassification prints, in every row: {PRINTED_FORMULA}.", 100):
        print(line)

"""Records of measurements: the command, the machine and the results."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from vit_ipu.backends.contract import Device
from vit_ipu.config import Config
from vit_ipu.config_file import dump_config
from vit_ipu.runs.environment import environment

FOLDER = Path(__file__).parent / "records"


def write_record(
    what: str,
    title: str,
    device: Device,
    config: Config,
    paragraphs: Sequence[str],
    table: Tuple[Sequence[str], Sequence[Sequence[str]]],
    results: Dict[str, Any],
    *,
    folder: Path = FOLDER,
) -> Path:
    """Writes DATE_WHAT_HARDWARE.md and prints the results as a last line of JSON; returns the path."""
    facts = environment(config, device)
    hardware = re.sub(r"[^a-z0-9]+", "-", facts["hardware"].lower()).strip("-")
    path = folder / f"{time.strftime('%Y-%m-%d')}_{what}_{hardware}.md"
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    lines = ["# " + title, ""]
    if facts["simulated"]:
        lines += ["**Simulated: no IPU was used.**", ""]
    lines += [
        f"- commit: {facts['commit']}",
        f"- command: `{' '.join(['python', *facts['command']])}`",
        f"- device: {device}, {facts['hardware']}, {facts['compute']}",
        f"- versions: vit_ipu {facts['vit_ipu']}, Python {facts['python']}, {versions}; {facts['platform']}",
        f"- time: {facts['time']}",
        "",
    ]
    for paragraph in paragraphs:
        lines += [paragraph, ""]
    lines += [*_table(*table), "", "Config:", "", "```yaml", dump_config(config).strip(), "```", ""]
    lines += ["Results:", "", "```json", json.dumps(results, indent=1), "```", ""]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    print(f"record {path}")
    print(json.dumps(dict(results, simulated=facts["simulated"], record=str(path))))
    return path


def picture_path(what: str, device: str) -> Path:
    """Returns the path of a picture for today's record: those of other days stay as they are."""
    return FOLDER / f"{time.strftime('%Y-%m-%d')}_{what}_{device}.svg"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
